"""What the processes of one machine share: where state lies, how they compute, locks. It imports nothing heavy."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tasks.results import Runtime

POLL_SECONDS = 0.1
ROOT = Path(__file__).resolve().parents[1]  # the checkout: a process started elsewhere imports this code
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
