"""The end of a study or of a job that somebody asks for.

A study that is interrupted (Ctrl-C) raises `JobCancelled` wherever a thread waits. The process of a job that is told
to end (SIGTERM) ends at once, or in a training after the step, which leaves a checkpoint.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TOLD_TO_END = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended
INTERRUPTED = threading.Event()  # this process's study was
_requested = False
_waits = False


class JobCancelled(RuntimeError):
    """The study was interrupted before this job was done."""


def check_wanted() -> None:
    """Raises:
    JobCancelled: if the study was interrupted.
    """
    if INTERRUPTED.is_set():
        raise JobCancelled("The run was interrupted.")


def install() -> None:
    """From now on SIGTERM raises SystemExit in the main thread, or waits for the end of `at_step_end`.

    It may come more than once: from systemd to all processes of a unit, and from the kernel when the parent died.
    """
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(*_: object) -> None:
    global _requested
    if not _requested:
        _requested = True
        if not _waits:
            sys.exit(TOLD_TO_END)


def requested() -> bool:
    """Whether this process was told to end."""
    return _requested


@contextmanager
def at_step_end() -> Iterator[None]:
    """In here SIGTERM is only noted; whoever asks `requested` comes to an end. Afterwards this process ends."""
    global _waits
    _waits = True
    try:
        yield
    finally:
        _waits = False
        if _requested:  # whatever was raised meanwhile: the other processes of the training end too
            sys.exit(TOLD_TO_END)
