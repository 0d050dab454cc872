"""The one deployment that computes: a job in a process of its own on this machine's GPUs, seen and ended from Prefect.

It needs a worker of the pool `lori-gpu` with `MLFLOW_TRACKING_URI` in its environment. Its cache is the driver's: a
job is only asked for when its result is not there.
"""

import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed

from tasks.engine.job_process import FLOW_RUN, Listener, run_in_process
from tasks.engine.jobs import Computed, Job, JobFailed, make_job
from tasks.engine.locks import LOCKS

SHOW_SECONDS = 5


@flow(name="lori-job", flow_run_name="{step} {name}", persist_result=False)
def job(
    step: str,
    name: str,
    config: dict[str, Any],
    inputs: dict[str, Any],
    told: dict[str, Any],
    key: str,
) -> State:
    """Compute one cell. The driver of a study asks for it; by hand there is no reason to.

    Args:
        step: A row of STEPS (tasks/engine/jobs.py).
        name: What the cell is, for people.
        config: The fields of the step's config (lori/config.py).
        inputs: The handles that it reads, each as its fields.
        told: What the study says of where to compute (tasks/results.py); this worker's environment says the rest.
        key: The cell's key, as the driver's code names it.
    """
    log = get_run_logger()
    try:
        done, waited = _compute(make_job(step, name, config, inputs, told), key, log)
    except JobFailed as failure:
        log.error("\n".join([str(failure), *getattr(failure, "__notes__", [])]))
        return Failed(message=str(failure))
    except Exception as error:  # of this machine, not of the step: another one may do better
        log.exception("The job could not be run.")
        return Crashed(message=str(error))
    return Completed(message=f"{done.seconds:.1f} s, and {waited:.1f} s for its turn and its process.")


def _compute(asked: Job, key: str, log: Any) -> tuple[Computed, float]:
    """The result, and the seconds that were not spent on it.

    Raises:
        JobFailed: if the step raised. JobCrashed: if its process died. ValueError: if it can't be computed here.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ValueError("This worker has no MLFLOW_TRACKING_URI: its results would be where nobody finds them.")
    if asked.key != key:
        raise ValueError(
            f"The driver calls this cell {key}, the code here {asked.key}: they must be of the same commit."
        )
    os.environ[FLOW_RUN] = str(flow_run.id)
    show = progress_shower(log)
    started = time.monotonic()
    lock = f"{key}-worker"  # against what an attempt left here that was given up; the driver, maybe here, holds `key`
    with LOCKS.held(lock, os.environ[FLOW_RUN]):
        listener = Listener(on_line=log.info, on_progress=show, check=lambda: None)
        done = run_in_process(asked, listener, LOCKS.descriptors(lock))
    show({"what": asked.step, "done": 1, "total": 1})
    from tasks import tracking  # MLflow: two seconds, which the job's process has not to wait for

    try:
        if url := tracking.run_url(asked.runtime, done.handle.run_id):
            create_link_artifact(url, key="lori-job-mlflow", link_text="MLflow run", description=asked.title)
    except Exception as error:  # the result is there, whatever became of the link to it
        log.warning("No link to the result: %r", error)
    return done, time.monotonic() - started - done.seconds


def progress_shower(log: Any) -> Callable[[Mapping[str, Any]], None]:
    """A function that shows what `progress.report` was told as this flow run's progress artifact, now and then."""
    artifact = create_progress_artifact(progress=0.0, key="lori-job-progress")
    assert isinstance(artifact, UUID)
    begun = shown = time.monotonic()

    def show(point: Mapping[str, Any]) -> None:
        nonlocal shown
        now, share = time.monotonic(), point["done"] / point["total"]
        if share < 1 and now - shown < SHOW_SECONDS:
            return
        shown = now
        left = timedelta(seconds=round((now - begun) * (1 - share) / share)) if share else "?"
        numbers = "".join(f", {name} {value:.4g}" for name, value in point.items() if isinstance(value, float))
        text = f"{point['what']}: {point['done']} of {point['total']}{numbers}, {left} left"
        try:
            update_progress_artifact(artifact, progress=100 * share, description=text)
        except (httpx.HTTPError, PrefectException) as error:
            log.warning("Progress is not shown: %r", error)

    return show
