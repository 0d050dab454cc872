"""Where a job is computed: `LORI_EXECUTOR` names a row of `EXECUTORS`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.engine import gpus, pool
from tasks.engine.shutdown import INTERRUPTED

# `module:function`, imported where it is used: from a `Job`, and the open files of its key's lock, to a `Computed`
EXECUTORS = {
    "inline": "tasks.engine.jobs:run_inline",  # in this process, one job at a time
    "pool": "tasks.engine.pool:run_in_pool",  # in one of this process's warm workers, with one torch thread each
    "subprocess": "tasks.engine.job_process:run_in_subprocess",  # in a process of its own, on this machine's GPUs
    "deployment": "tasks.engine.flow_runs:run_as_flow",  # as a flow run of `lori-job/gpu`, by a worker anywhere
}
HERE = ("inline", "pool")  # in processes that nobody gives a GPU of their own


def executor_name() -> str:
    """The name in `LORI_EXECUTOR`, `inline` if unset.

    Raises:
        ValueError: if it is no row of `EXECUTORS`.
    """
    name = os.environ.get("LORI_EXECUTOR", "inline")
    if name not in EXECUTORS:
        raise ValueError(f"Unknown executor LORI_EXECUTOR={name!r}. Known: {', '.join(EXECUTORS)}.")
    return name


def check_executor(num_gpus: int = 1) -> str:
    """`executor_name`, once it is known that it can be used for trainings on `num_gpus`.

    Raises:
        ValueError: as `executor_name`; if it can't train on `num_gpus`, if `LORI_WORKERS` is no number of workers, or
            if `LORI_GPUS` names a GPU that is not there.
    """
    name, workers = executor_name(), gpus.num_workers()
    if num_gpus > 1 and name in HERE:
        raise ValueError(
            f"LORI_EXECUTOR={name} trains on one GPU, not {num_gpus}: set it to subprocess (this machine's GPUs) or"
            " deployment (workers)."
        )
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


@contextmanager
def interruptible() -> Iterator[None]:
    """On Ctrl-C or a termination signal: end the workers and the jobs that wait, so that no thread holds the exit."""
    INTERRUPTED.clear()
    try:
        yield
    except Exception:
        raise
    except BaseException:
        INTERRUPTED.set()
        pool.close_shared_pool()
        raise
