"""Where a job is computed: `LORI_EXECUTOR` names a row of `EXECUTORS`."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lori.config import Handle
from tasks import pool
from tasks.steps import Job, JobCancelled, run_step


@dataclass(frozen=True)
class Computed:
    """A result and the seconds that it took, without the time that it waited for its turn."""

    handle: Handle
    seconds: float


_INLINE = threading.Lock()  # one at a time: seeds are torch's, and torch's are the process's
_INTERRUPTED = threading.Event()


def run_inline(job: Job) -> Computed:
    """In this process, one job at a time."""
    with _INLINE:
        if _INTERRUPTED.is_set():
            raise JobCancelled(f"{job.step} {job.name}: interrupted before it started.")
        started = time.perf_counter()
        return Computed(run_step(job), time.perf_counter() - started)


def run_in_pool(job: Job) -> Computed:
    """In one of this process's warm workers; each has one torch thread."""
    return Computed(*pool.run(pool.shared_pool(), job))


EXECUTORS: dict[str, Callable[[Job], Computed]] = {"inline": run_inline, "pool": run_in_pool}


def check_executor() -> str:
    """The name in `LORI_EXECUTOR` (`inline` if unset).

    Raises:
        ValueError: if it is no row of `EXECUTORS`, or `LORI_WORKERS` is no number of workers.
    """
    pool.num_workers()
    name = os.environ.get("LORI_EXECUTOR", "inline")
    if name not in EXECUTORS:
        raise ValueError(f"Unknown executor LORI_EXECUTOR={name!r}. Known: {', '.join(EXECUTORS)}.")
    return name


def execute(job: Job) -> Computed:
    """Compute `job` where `LORI_EXECUTOR` says.

    Raises:
        JobCrashed: if its process died. JobFailed: if the step raised in another process.
        JobCancelled: if the run was interrupted.
    """
    return EXECUTORS[check_executor()](job)


@contextmanager
def interruptible() -> Iterator[None]:
    """On Ctrl-C or a termination signal: end the workers and the jobs that wait, so that no thread holds the exit."""
    _INTERRUPTED.clear()
    try:
        yield
    except Exception:
        raise
    except BaseException:
        _INTERRUPTED.set()
        pool.close_shared_pool()
        raise
