"""Where the results are kept: the store behind a tracking URI, its client, its experiments, and the lock per key."""

from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from pathlib import Path
from urllib.parse import urlparse

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.machine import locked
from tasks.results import Runtime

KEY_TAG = "lori.key"
HEALTH_SECONDS = (2, 3)  # to connect, and to answer


class TrackingUnavailable(RuntimeError):
    """No MLflow where `MLFLOW_TRACKING_URI` says."""


def ensure_store(tracking_uri: str) -> None:
    """Make sure that the store can be written; call it once, before parallel workers start.

    A new SQLite file gets its tables here, under a lock: several processes that do it at once break each other.

    Raises:
        ValueError: for a URI that is neither a server nor an absolute SQLite file.
        TrackingUnavailable: if nothing healthy answers within five seconds, or the file cannot be made.
    """
    if is_server(tracking_uri):
        _check_health(tracking_uri)
    elif tracking_uri.startswith("sqlite:////"):
        _migrate(tracking_uri)
    else:
        raise ValueError(
            f"MLFLOW_TRACKING_URI is {tracking_uri!r}. Expected a server such as http://127.0.0.1:5000 (`make serve`"
            " starts one) or an absolute SQLite file such as sqlite:////home/me/lori/mlflow.db."
        )


def import_store(tracking_uri: str) -> None:
    """What `connect` imports for a store in a file, two seconds of it, before anybody waits for that."""
    if not is_server(tracking_uri):
        import_module("mlflow.store.tracking.sqlalchemy_store")
        import_module("mlflow.store.model_registry.sqlalchemy_store")


def is_server(tracking_uri: str) -> bool:
    """Whether the store is reached over HTTP; otherwise it is a file of this machine."""
    return urlparse(tracking_uri).scheme in ("http", "https")


def _check_health(tracking_uri: str) -> None:
    advice = "Start one with `make serve`, or set MLFLOW_TRACKING_URI to one that runs."
    try:
        answer = requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=HEALTH_SECONDS)
    except requests.RequestException as error:
        reason = type(error).__name__
        raise TrackingUnavailable(f"No MLflow server answers at {tracking_uri} ({reason}). {advice}") from None
    if answer.text.strip() != "OK":
        raise TrackingUnavailable(f"{tracking_uri} answers, but is no healthy MLflow ({answer.status_code}). {advice}")


def _migrate(tracking_uri: str) -> None:
    database = _database(tracking_uri)
    try:
        with locked(database.with_name(f".{database.name}.lock")):
            connect(tracking_uri).search_experiments(max_results=1)
    except (OSError, MlflowException) as error:
        raise TrackingUnavailable(f"MLflow's database {database} cannot be opened: {error}") from error


def _database(tracking_uri: str) -> Path:
    return Path(urlparse(tracking_uri).path[1:])


@cache
def connect(tracking_uri: str) -> MlflowClient:
    """The client of a store, one per process; threads may share it."""
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@cache
def experiment_id_of(tracking_uri: str, name: str) -> str:
    """Find or create; the name is unique in MLflow, so that of two processes one creates and both find."""
    client = connect(tracking_uri)
    if client.get_experiment_by_name(name) is None:
        # Without a server MLflow would put artifacts under the working directory of whoever is first
        location = None if is_server(tracking_uri) else (_database(tracking_uri).parent / "artifacts").as_uri()
        try:
            client.create_experiment(name, location, tags={"mlflow.experimentKind": "custom_model_development"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"Experiment {name!r} was deleted in MLflow. Restore it (`mlflow experiments restore -x"
            f" {experiment.experiment_id}`), remove it for good (`mlflow gc`), or choose another name."
        )
    if not is_server(tracking_uri) and experiment.artifact_location.startswith("mlflow-artifacts:"):
        raise ValueError(
            f"Experiment {name!r} was made through an MLflow server, which holds its artifacts: set"
            f" MLFLOW_TRACKING_URI to that server instead of {tracking_uri}, or choose another name."
        )
    return experiment.experiment_id


def key_lock(runtime: Runtime, key: str) -> AbstractContextManager[None]:
    """Held while the run or model of `key` is looked for and made, against the other processes of this machine."""
    is_remote = is_server(runtime.tracking_uri)
    shared_dir = Path(runtime.cache_dir) if is_remote else _database(runtime.tracking_uri).parent
    return locked(shared_dir / "locks" / key)
