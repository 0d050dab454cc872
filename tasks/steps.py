"""What the pipeline can compute: one row a step. A worker process needs this, and no Prefect."""

import json
import os
import pkgutil
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lori.config import (
    CompareConfig,
    DataConfig,
    EvalConfig,
    Handle,
    InterferenceConfig,
    MaskConfig,
    MergeConfig,
    PublishedConfig,
    RandomMaskConfig,
    Runtime,
    TrainConfig,
    step_key,
)
from tasks.state import locked, state_dir

FULL_BYTES = 1 << 20
ONE, ALL = 1, None  # of the GPUs that a training may have
# torchrun says so. Its processes do not ask MLflow each for itself: answers may differ, and they go the same way
IS_ONE_OF_SEVERAL = int(os.environ.get("WORLD_SIZE", "1")) > 1
IS_FIRST = os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Step:
    """A kind of result.

    `body` is `module:function` and is imported only where it runs: the driver then needs no torch to find a result
    in the cache. `version` is raised when the step's numbers change. Of two waiting jobs the lower `turn` is first:
    what unlocks others goes before what nothing waits for. `gpus` is how many it computes on, `ALL` that it is
    started as one process for each of the runtime's `num_gpus`.
    """

    body: str
    config: type
    version: int
    turn: int
    gpus: int | None = 0


STEPS = {
    "dataset": Step("tasks.data:prepare_dataset", DataConfig, version=2, turn=0),
    "import": Step("tasks.published:import_adapter", PublishedConfig, version=1, turn=0),
    "mask": Step("tasks.masks:extract_mask", MaskConfig, version=2, turn=1),
    "random-mask": Step("tasks.masks:draw_mask", RandomMaskConfig, version=1, turn=1),
    "train": Step("tasks.adapters:train_adapter", TrainConfig, version=3, turn=2, gpus=ALL),
    "merge": Step("tasks.adapters:merge_adapters", MergeConfig, version=2, turn=3),
    "evaluate": Step("tasks.evaluation:evaluate", EvalConfig, version=2, turn=4, gpus=ONE),
    "interference": Step("tasks.interfering:measure_interference", InterferenceConfig, version=2, turn=5),
    "compare": Step("tasks.comparing:compare_rows", CompareConfig, version=2, turn=5),
}


@dataclass(frozen=True)
class Job:
    """One step on one config: all that a process must be told to compute it, wherever it is.

    `inputs` are the handles that it reads. `place` gives fields of `Runtime`; what it leaves out, the process that
    computes says.
    """

    step: str
    name: str
    config: Any
    inputs: Mapping[str, Handle | list[Handle]]
    place: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For people: `train lora math  seed 0`."""
        return f"{self.step} {self.name}"

    @property
    def runtime(self) -> Runtime:
        """Where this process computes it."""
        return local_runtime(**self.place)

    @property
    def num_gpus(self) -> int:
        """How many GPUs it computes on."""
        gpus = STEPS[self.step].gpus
        return self.runtime.num_gpus if gpus is None else gpus


def job_to_json(job: Job) -> str:
    """The job as text for another process; `job_from_json` reads it."""
    return json.dumps(asdict(job))


def job_from_json(text: str) -> Job:
    """The job that `job_to_json` wrote."""
    return make_job(**json.loads(text))


def make_job(step: str, name: str, config: Any, inputs: Mapping[str, Any], place: Mapping[str, Any]) -> Job:
    """A job from plain data: `config` and the handles in `inputs` are mappings of their fields."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    handles = {
        role: [Handle(**item) for item in value] if isinstance(value, list) else Handle(**value)
        for role, value in inputs.items()
    }
    return Job(step, name, STEPS[step].config(**fields), handles, place)


class JobFailed(RuntimeError):
    """The step raised: it would raise again, so it is not retried."""


class JobCrashed(RuntimeError):
    """The process that computed it went away (out of memory, killed): it is tried again."""


class JobCancelled(RuntimeError):
    """The run was interrupted before this job was done."""


def job_key(job: Job) -> str:
    """The identity of the job's result: what it is, never where it runs."""
    return step_key(job.step, STEPS[job.step].version, job.config, job.inputs)


def find_result(job: Job) -> Handle | None:
    """The result as MLflow has it, whoever computed it; None if it has not, or if the job is to `refresh` it."""
    from tasks import tracking  # MLflow: two seconds, which whoever starts a process for a job has not to wait for

    runtime = job.runtime
    return None if runtime.refresh else tracking.find_handle(runtime, job_key(job))


def run_step(job: Job) -> Handle:
    """Compute the result here and now, unless MLflow has it by now.

    Raises:
        JobFailed: whatever the step raised, with the traceback as a note: it survives Prefect's storage.
    """
    try:
        runtime, key = job.runtime, job_key(job)
        if not IS_ONE_OF_SEVERAL and (found := find_result(job)):
            return found
        body = pkgutil.resolve_name(STEPS[job.step].body)
        handle = body(job.config, key=key, runtime=runtime, **job.inputs)
        if IS_FIRST:
            from tasks import tracking

            tracking.save_handle(runtime, handle)
        return handle
    except Exception as error:
        failure = JobFailed(f"{type(error).__name__}: {error}{_advice(error)}")
        failure.add_note(traceback.format_exc())
        raise failure from error


def _advice(error: Exception) -> str:
    """What to do about a full disk, which no library calls by the same name."""
    places = (state_dir() / "work", state_dir(), Path(tempfile.gettempdir()))
    free = {place: shutil.disk_usage(place).free for place in places if place.is_dir()}
    if "No space left on device" not in str(error) and min(free.values()) > FULL_BYTES:  # torch says it in no words
        return ""
    listed = ", ".join(f"{place} ({number / 1e6:.0f} MB free)" for place, number in free.items())
    return f" A disk is full: make room at {listed} or in MLflow's store, and run the flow again. What is done stays."


@contextmanager
def work_dir(key: str, *, while_waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Where this machine keeps the checkpoints of a training, held against its other processes."""
    directory = state_dir() / "work" / key
    with locked(directory.with_suffix(".lock"), while_waiting=while_waiting):
        yield directory


def local_runtime(**place: Any) -> Runtime:
    """The `Runtime` of this process: MLflow at `MLFLOW_TRACKING_URI`, or in a file under `state_dir()`.

    `place` gives fields of it that a flow run was told; what it leaves out, `LORI_DATA`, `LORI_MODELS`,
    `LORI_DEVICE` and `LORI_CHECKPOINT_EVERY` say.
    """
    store = f"sqlite:///{state_dir() / 'local' / 'mlflow.db'}"
    settings = {
        "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI") or store,
        "cache_dir": str(state_dir() / "cache"),
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lori",
        "device": os.environ.get("LORI_DEVICE") or "auto",
        "data_dir": os.environ.get("LORI_DATA"),
        "models_dir": os.environ.get("LORI_MODELS"),
        "checkpoint_every": int(os.environ.get("LORI_CHECKPOINT_EVERY") or Runtime.checkpoint_every),
    }
    return Runtime(**{**settings, **{name: value for name, value in place.items() if value is not None}})
