"""A job: one step on one config, computed here, or carried as JSON to the process that computes it.

A worker process needs this, and no Prefect.
"""

import json
import os
import pkgutil
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lori.choices.hardware import Hardware
from tasks.engine import shutdown
from tasks.engine.steps import STEPS
from tasks.machine import IS_FIRST, NOTHING_TOLD, local_runtime, state_dir
from tasks.results import Handle, Runtime, step_key

FULL_BYTES = 1 << 20
WATCH_SECONDS = 0.5  # a process looks this often whether its parent is still there
_ONE_AT_A_TIME = threading.Lock()  # in this process: seeds are torch's, and torch's are the process's


@dataclass(frozen=True)
class Job:
    """One step on one config: all that a process must be told to compute it, wherever it is.

    `inputs` are the handles that it reads; `told` is what the study says of where to compute.
    """

    step: str
    name: str
    config: Any
    inputs: Mapping[str, Handle | list[Handle]]
    told: Runtime = NOTHING_TOLD

    @property
    def title(self) -> str:
        """For people: `train lora math  seed 0`."""
        return f"{self.step} {self.name}"

    @property
    def key(self) -> str:
        """The identity of the result: what it is, never where it is computed."""
        return step_key(self.step, STEPS[self.step].version, self.config, self.inputs)

    @property
    def runtime(self) -> Runtime:
        """Where this process computes it."""
        return local_runtime(self.told)

    @property
    def num_gpus(self) -> int:
        """How many GPUs it computes on."""
        gpus = STEPS[self.step].gpus
        return self.told.hardware.num_gpus if gpus is None else gpus


@dataclass(frozen=True)
class Computed:
    """A result and the seconds that it took; those of a flow run of its own count its wait for a GPU, too."""

    handle: Handle
    seconds: float


class JobFailed(RuntimeError):
    """The step raised: it would raise again, so it is not retried."""


class JobCrashed(RuntimeError):
    """The process that computed it went away (out of memory, killed): it is tried again."""


def run_inline(job: Job, _lock: Sequence[int] = ()) -> Computed:
    """Compute `job` in this process, one job at a time.

    Raises:
        JobFailed: whatever the step raised, with the traceback as a note: it survives Prefect's storage.
        JobCancelled: if the study was interrupted.
    """
    with _ONE_AT_A_TIME:
        shutdown.check_wanted()
        started = time.perf_counter()
        return Computed(run_job(job), time.perf_counter() - started)


def run_job(job: Job) -> Handle:
    """Compute the result here and now, and save it in MLflow.

    Raises:
        JobFailed: as `run_inline`.
    """
    step, runtime = STEPS[job.step], job.runtime
    try:
        handle = pkgutil.resolve_name(step.body)(job.config, key=job.key, runtime=runtime, **job.inputs)
        if IS_FIRST:
            from tasks import tracking  # MLflow: two seconds, which whoever starts a process for a job does without

            tracking.save_handle(runtime, handle)
            if step.forget:
                pkgutil.resolve_name(step.forget)(handle, runtime)
        return handle
    except Exception as error:
        failure = JobFailed(f"{type(error).__name__}: {error}{_advice(error)}")
        failure.add_note(traceback.format_exc())
        raise failure from error


def find_result(job: Job) -> Handle | None:
    """The result as MLflow has it, whoever computed it; None if it has not."""
    from tasks import tracking

    return tracking.find_handle(job.runtime, job.key)


def _advice(error: Exception) -> str:
    """What to do about a full disk, which no library calls by the same name."""
    places = (state_dir() / "work", state_dir(), Path(tempfile.gettempdir()))
    free = {place: shutil.disk_usage(place).free for place in places if place.is_dir()}
    if "No space left on device" not in str(error) and min(free.values()) > FULL_BYTES:  # torch says it in no words
        return ""
    listed = ", ".join(f"{place} ({number / 1e6:.0f} MB free)" for place, number in free.items())
    return f" A disk is full: make room at {listed} or in MLflow's store, and run the flow again. What is done stays."


def job_to_json(job: Job) -> str:
    """The job as text for another process; `job_from_json` reads it."""
    return json.dumps(asdict(job))


def job_from_json(text: str) -> Job:
    """The job that `job_to_json` wrote."""
    return make_job(**json.loads(text))


def make_job(step: str, name: str, config: Any, inputs: Mapping[str, Any], told: Mapping[str, Any]) -> Job:
    """A job from plain data: mappings of the fields of `config`, of the handles in `inputs`, and of `told`."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    handles = {
        role: [Handle(**item) for item in value] if isinstance(value, list) else Handle(**value)
        for role, value in inputs.items()
    }
    runtime = Runtime(**{**told, "hardware": Hardware(**told["hardware"])})
    return Job(step, name, STEPS[step].config(**fields), handles, runtime)


def answer(job: Job) -> bytes:
    """Compute `job`: its result, or what went wrong, as JSON for `read_answer`."""
    try:
        return json.dumps(asdict(run_inline(job))).encode()
    except JobFailed as failure:
        return json.dumps({"error": str(failure), "notes": failure.__notes__}).encode()


def is_error(text: bytes) -> bool:
    """Whether an answer says what went wrong."""
    return "error" in json.loads(text)


def read_answer(text: bytes) -> Computed:
    """What `answer` wrote.

    Raises:
        JobFailed: if the step raised.
    """
    record = json.loads(text)
    if "error" in record:
        failure = JobFailed(record["error"])
        for note in record["notes"]:
            failure.add_note(note)
        raise failure
    return Computed(Handle(**record["handle"]), record["seconds"])


def end_with_parent(parent: int) -> None:
    """End this process as soon as `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)
