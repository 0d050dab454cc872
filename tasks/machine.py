"""What the processes of one machine share: where state lies, how they compute, locks. It imports nothing heavy."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from lori.choices.profiles import COPIES
from lori.config import TrainRuntime
from tasks.results import Runtime

POLL_SECONDS = 0.1
ROOT = Path(__file__).resolve().parents[1]  # the checkout: a process started elsewhere imports this code
NOTHING_TOLD = Runtime()
# Of every process that computes: sums over more threads have other last bits, and two processes share the cores
COMPUTE_SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
# torchrun says so. Its processes do not ask MLflow each for itself: answers may differ, and they go the same way
IS_ONE_OF_SEVERAL = int(os.environ.get("WORLD_SIZE", "1")) > 1
IS_FIRST = os.environ.get("RANK", "0") == "0"


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


def work_dir(key: str) -> Path:
    """Where this machine keeps what a job may go on from, such as the checkpoints of a training."""
    return state_dir() / "work" / key


def experiment_of(profile: str = "") -> str:
    """MLflow's experiment of a profile: one whose numbers mean nothing has its own, beside no others in a view."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lori"
    return f"{name}-{profile}" if profile in COPIES else name


def local_runtime(told: Runtime = NOTHING_TOLD) -> Runtime:
    """`told`, and what it leaves empty as this process has it.

    MLflow is at `MLFLOW_TRACKING_URI`, or in a file under `state_dir()`; the rest is in `MLFLOW_EXPERIMENT_NAME`,
    `LORI_DATA`, `LORI_MODELS`, `LORI_DEVICE` and `LORI_CHECKPOINT_EVERY`.
    """
    store = f"sqlite:///{state_dir() / 'local' / 'mlflow.db'}"
    own = {
        "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI") or store,
        "cache_dir": str(state_dir() / "cache"),
        "experiment": experiment_of(),
        "device": os.environ.get("LORI_DEVICE") or "auto",
        "data_dir": os.environ.get("LORI_DATA"),
        "models_dir": os.environ.get("LORI_MODELS"),
        "checkpoint_every": int(os.environ.get("LORI_CHECKPOINT_EVERY") or TrainRuntime.checkpoint_every),
    }
    return replace(told, **{name: value for name, value in own.items() if not getattr(told, name)})
