"""What the processes of one machine share: where state lies, how they compute, locks. It imports nothing heavy."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.1

# Of every process that computes: sums over more threads have other last bits, and two processes share the cores
COMPUTE_SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def state_dir() -> Path:
    """Where this machine keeps databases, results, locks and logs: `LORI_DIR`, or `.lori` in the working directory."""
    return Path(os.environ.get("LORI_DIR", ".lori")).resolve()


@contextmanager
def locked(path: Path, *, while_waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold `path` against the other processes and threads of this machine; a process that dies lets go of it.

    `while_waiting` is called now and then until it is free, and may raise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while while_waiting and not try_lock(file):
            while_waiting()
            time.sleep(POLL_SECONDS)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(file: IO[str]) -> bool:
    """Take the lock of an open file, for as long as it is open; False if somebody else holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
