"""Where a job is computed: `LORI_EXECUTOR` names a row of `EXECUTORS`."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tasks.engine import gpus, pool, progress
from tasks.engine.flow_runs import run_as_flow
from tasks.engine.job_process import Listener, run_in_process
from tasks.engine.jobs import Computed, Job, JobCancelled, compute, find_result

_INLINE = threading.Lock()  # one at a time: seeds are torch's, and torch's are the process's
_INTERRUPTED = threading.Event()


def run_inline(job: Job) -> Computed:
    """In this process, one job at a time."""
    with _INLINE:
        check_wanted()
        return compute(job)


def run_in_pool(job: Job) -> Computed:
    """In one of this process's warm workers; each has one torch thread."""
    shared = pool.shared_pool()
    check_wanted()  # after it: it may be a new one, made for nobody since an interruption closed the last
    return pool.run(shared, job)


def run_in_subprocess(job: Job) -> Computed:
    """In a process of its own on this machine, as many at once as there are GPUs."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def show(point: Mapping[str, Any]) -> None:
        progress.report(**point)

    return run_in_process(job, Listener(on_line=say, on_progress=show, check=check_wanted))


def run_on_worker(job: Job) -> Computed:
    """As a flow run of `lori-job/gpu`, by a worker on any machine."""
    return run_as_flow(job, check=check_wanted)


EXECUTORS: dict[str, Callable[[Job], Computed]] = {
    "inline": run_inline,
    "pool": run_in_pool,
    "subprocess": run_in_subprocess,
    "deployment": run_on_worker,
}
HERE = ("inline", "pool")  # in processes that nobody gives a GPU of their own


def check_executor(num_gpus: int = 1) -> str:
    """The name in `LORI_EXECUTOR` (`inline` if unset).

    Raises:
        ValueError: if it is no row of `EXECUTORS`, if it can't train on `num_gpus`, if `LORI_WORKERS` is no number of
            workers, or if `LORI_GPUS` names a GPU that is not there.
    """
    name = os.environ.get("LORI_EXECUTOR", "inline")
    if name not in EXECUTORS:
        raise ValueError(f"Unknown executor LORI_EXECUTOR={name!r}. Known: {', '.join(EXECUTORS)}.")
    if num_gpus > 1 and name in HERE:
        raise ValueError(
            f"LORI_EXECUTOR={name} trains on one GPU, not {num_gpus}: set it to subprocess (this machine's GPUs) or"
            " deployment (workers)."
        )
    workers = gpus.num_workers()
    if name == "deployment" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ValueError("LORI_EXECUTOR=deployment needs MLFLOW_TRACKING_URI: the MLflow server of the workers.")
    if name != "deployment":
        _check_gpus(name, num_gpus, workers)
    return name


def _check_gpus(executor: str, num_gpus: int, workers: int) -> None:
    ids = gpus.gpu_ids()
    if executor == "subprocess" and num_gpus > max(len(ids), 1):
        raise ValueError(f"num_gpus is {num_gpus}; this machine has {len(ids)} that jobs may use.")
    if executor == "pool" and workers > 1 and gpus.environment_of(ids)["CUDA_VISIBLE_DEVICES"]:
        raise ValueError(
            f"{workers} pool workers would share a GPU: set LORI_EXECUTOR=subprocess, which gives each job its own, or"
            " LORI_WORKERS=1, or LORI_DEVICE=cpu."
        )


def execute(job: Job) -> Computed:
    """The result of `job`: MLflow's if it is there, else computed where `LORI_EXECUTOR` says.

    Raises:
        JobCrashed: if its process died. JobFailed: if the step raised in another process.
        JobCancelled: if the run was interrupted.
    """
    run = EXECUTORS[check_executor(job.num_gpus)]
    if found := find_result(job):
        return Computed(found, 0.0)
    return run(job)


def check_wanted() -> None:
    """Raises:
    JobCancelled: if the run was interrupted.
    """
    if _INTERRUPTED.is_set():
        raise JobCancelled("The run was interrupted.")


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
