"""Real MLflow stores for tests, a SQLite file and a server of their own, and small results to put there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from waiting import wait_until

from tasks import tracking
from tasks.results import Handle, Runtime

KEY = "train-v1-0123"


@dataclass(frozen=True)
class Store:
    """A place to track, and the directory under which it keeps artifacts."""

    runtime: Runtime
    artifact_dir: Path

    def files_of(self, uri: str) -> Path:
        """Where the store keeps what `uri` names."""
        name, _, path = uri.partition(":/")[2].partition("/")
        return next(self.artifact_dir.rglob(name)) / "artifacts" / path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once for all processes of pytest-xdist: a copy takes milliseconds, the migration five seconds."""
    own = tmp_path_factory.getbasetemp()
    database = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "mlflow" / "mlflow.db"
    database.parent.mkdir(exist_ok=True)
    tracking.ensure_store(f"sqlite:///{database}")
    return database


@pytest.fixture(scope="session")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URI of an MLflow server and its artifact directory."""
    root = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, root / "mlflow.db")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", f"{root}/artifacts"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=root, start_new_session=True)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", process, root / "log")
        yield f"http://127.0.0.1:{port}", root / "artifacts"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server and the worker it started: a session of their own
        process.wait()


def _wait_until_healthy(uri: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    def is_healthy() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            tracking.ensure_store(uri)
        except tracking.TrackingUnavailable:
            return False
        return True

    wait_until(is_healthy, "for MLflow's server")


@pytest.fixture
def sqlite_store(empty_database: Path, tmp_path: Path) -> Store:
    """A store of the test's own, without a server."""
    database = tmp_path / "mlflow" / "mlflow.db"
    database.parent.mkdir()
    shutil.copy(empty_database, database)
    return Store(Runtime(f"sqlite:///{database}", str(tmp_path / "cache"), "test"), database.parent / "artifacts")


@pytest.fixture(params=["sqlite", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same behaviour is expected of a file and of a server; an experiment of its own keeps tests apart."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_store")
    uri, artifact_dir = request.getfixturevalue("server")
    return Store(Runtime(uri, str(tmp_path / "cache"), f"test-{uuid.uuid4().hex}"), artifact_dir)


def open_run(runtime: Runtime, key: str = KEY, **params: Any) -> str:
    tags = {"lori.role": "train"}
    return tracking.open_run(runtime, key, "lora-nlu", experiment=runtime.experiment, tags=tags, params=params)


def client_of(store: Store) -> MlflowClient:
    return MlflowClient(store.runtime.tracking_uri)


def runs_of(store: Store) -> list[Run]:
    experiment = client_of(store).get_experiment_by_name(store.runtime.experiment)
    return client_of(store).search_runs([experiment.experiment_id])


def write_adapter(directory: Path, weights: bytes = b"weights") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(weights)
    return directory


def log_adapter(store: Store, directory: Path, key: str = KEY) -> Handle:
    run_id = open_run(store.runtime, key)
    uri, sha256 = tracking.log_model(
        store.runtime, run_id, key, directory, kind="adapter", name="lora-nlu", params={"rank": 8}
    )
    return Handle("adapter", key, "lora-nlu", run_id, uri, sha256)


def log_rows(store: Store, directory: Path, key: str = KEY) -> Handle:
    run_id = open_run(store.runtime, key)
    uri, sha256 = tracking.log_directory(store.runtime, run_id, directory, "rows")
    return Handle("dataset", key, "data-nlu", run_id, uri, sha256)


LOGGERS = {"model": log_adapter, "artifacts": log_rows}
