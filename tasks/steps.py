"""What the pipeline can compute: one row a step. A worker process needs this, and no Prefect."""

import os
import pkgutil
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lori.config import Handle, Runtime, step_key

# Of every process that computes: sums over more threads have other last bits, and two processes share the cores
COMPUTE_SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True)
class Step:
    """A kind of result.

    `body` is `module:function` and is imported only where it runs: the driver then needs no torch to find a result
    in the cache. `version` is raised when the step's numbers change. Of two waiting jobs the lower `turn` is first:
    what unlocks others goes before what nothing waits for.
    """

    body: str
    version: int
    turn: int


STEPS = {
    "dataset": Step("tasks.data:prepare_dataset", version=2, turn=0),
    "import": Step("tasks.published:import_adapter", version=1, turn=0),
    "mask": Step("tasks.masks:extract_mask", version=2, turn=1),
    "train": Step("tasks.adapters:train_adapter", version=3, turn=2),
    "merge": Step("tasks.adapters:merge_adapters", version=2, turn=3),
    "evaluate": Step("tasks.evaluation:evaluate", version=2, turn=4),
}


@dataclass(frozen=True)
class Job:
    """One step on one config: all that a process must be told to compute it. `inputs` are the handles it reads."""

    step: str
    name: str
    config: Any
    inputs: Mapping[str, Handle | list[Handle]]
    runtime: Runtime


class JobFailed(RuntimeError):
    """The step raised: it would raise again, so it is not retried."""


class JobCrashed(RuntimeError):
    """The process that computed it went away (out of memory, killed): it is tried again."""


class JobCancelled(RuntimeError):
    """The run was interrupted before this job was done."""


def job_key(job: Job) -> str:
    """The identity of the job's result: what it is, never where it runs."""
    return step_key(job.step, STEPS[job.step].version, job.config, job.inputs)


def run_step(job: Job) -> Handle:
    """Compute the result here and now.

    Raises:
        JobFailed: whatever the step raised, with the traceback as a note: it survives pickling and Prefect's storage.
    """
    try:
        body = pkgutil.resolve_name(STEPS[job.step].body)
        return body(job.config, key=job_key(job), runtime=job.runtime, **job.inputs)
    except Exception as error:
        failure = JobFailed(f"{type(error).__name__}: {error}")
        failure.add_note(traceback.format_exc())
        raise failure from error


def state_dir() -> Path:
    """Where this machine keeps databases, results, locks and logs: `LORI_DIR`, or `.lori` in the working directory."""
    return Path(os.environ.get("LORI_DIR", ".lori")).resolve()


def local_runtime(**place: Any) -> Runtime:
    """The `Runtime` of this process: MLflow at `MLFLOW_TRACKING_URI`, or in a file under `state_dir()`.

    `place` gives fields of it that a flow run was told; what it leaves out, `LORI_DATA`, `LORI_MODELS` and
    `LORI_DEVICE` say.
    """
    store = f"sqlite:///{state_dir() / 'local' / 'mlflow.db'}"
    settings = {
        "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI") or store,
        "cache_dir": str(state_dir() / "cache"),
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lori",
        "device": os.environ.get("LORI_DEVICE") or "auto",
        "data_dir": os.environ.get("LORI_DATA"),
        "models_dir": os.environ.get("LORI_MODELS"),
    }
    return Runtime(**{**settings, **{name: value for name, value in place.items() if value is not None}})
