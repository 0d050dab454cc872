"""The bytes of results: run artifacts and logged models, complete or made whole, fetched by digest."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import mlflow.artifacts
from mlflow.entities import (
    FileInfo,
    LoggedModel,
    Run,
)
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from tasks.results import Handle, Runtime
from tasks.tracking.client import connect, is_server
from tasks.tracking.digests import NO_CONTENT, Content, DamagedError, cached_directory, measure
from tasks.tracking.reading import read_models, read_runs

LOG = logging.getLogger(__name__)
CONTENT_TAG = "lori.content"
MAX_DIGEST = 36  # characters, MLflow's limit
THREADS = 16  # that ask a server at the same time
DAMAGED = "damaged"  # a content tag's value: the store lists the files, but their bytes are not what was logged


class ArtifactMissing(RuntimeError):
    """A handle whose bytes are no longer in the store."""


def log_directory(runtime: Runtime, run_id: str, directory: Path, artifact_path: str) -> tuple[str, str]:
    """Files as artifacts of the run, in the place of an earlier attempt's. Returns their `runs:/` URI and digest.

    Their content tag is written last: until then nothing there is believed.
    """
    client = connect(runtime.tracking_uri)
    content, run = measure(directory), client.get_run(run_id)
    location = f"{run.info.artifact_uri}/{artifact_path}"
    tag = run.data.tags.get(_content_tag(artifact_path))
    if tag is None or intact_content(runtime, location, tag) != content:
        if tag is not None:
            client.delete_tag(run_id, _content_tag(artifact_path))
        if any(_listed(runtime, location)):
            delete_artifacts(runtime, run_id, artifact_path)
        client.log_artifacts(run_id, str(directory), artifact_path)
        client.set_tag(run_id, _content_tag(artifact_path), content.to_text())
    return f"runs:/{run_id}/{artifact_path}", content.sha256


def find_directory(runtime: Runtime, run_id: str, artifact_path: str) -> Path | None:
    """What `log_directory` logged there, fetched; None if it is not there or not whole."""
    client = connect(runtime.tracking_uri)
    tag = client.get_run(run_id).data.tags.get(_content_tag(artifact_path))
    if tag in (None, DAMAGED):
        return None
    sha256 = Content.from_text(tag).sha256
    handle = Handle("files", "", artifact_path, run_id, f"runs:/{run_id}/{artifact_path}", sha256)
    try:
        return fetch(runtime, handle)
    except ArtifactMissing:
        return None


def drop_directory(runtime: Runtime, run_id: str, artifact_path: str) -> None:
    """Remove what `log_directory` logged there and nobody needs any more; what can't be removed stays."""
    try:
        connect(runtime.tracking_uri).delete_tag(run_id, _content_tag(artifact_path))
        delete_artifacts(runtime, run_id, artifact_path)
    except (MlflowException, OSError) as error:  # another attempt was sooner, or the store lets nothing be deleted
        LOG.warning("%s of run %s stays in MLflow: %s", artifact_path, run_id, error)


def delete_artifacts(runtime: Runtime, run_id: str, artifact_path: str) -> None:
    """Remove a directory of a run's artifacts from the store."""
    artifact_uri = connect(runtime.tracking_uri).get_run(run_id).info.artifact_uri
    assert artifact_uri
    get_artifact_repository(artifact_uri, tracking_uri=runtime.tracking_uri).delete_artifacts(artifact_path)


def is_listed(runtime: Runtime, run_id: str, artifact_path: str) -> bool:
    """Whether the store has any file there, whole or not."""
    location = f"{connect(runtime.tracking_uri).get_run(run_id).info.artifact_uri}/{artifact_path}"
    return any(_listed(runtime, location))


def _content_tag(artifact_path: str) -> str:
    return f"{CONTENT_TAG}/{artifact_path}"


def is_ready(model: LoggedModel) -> bool:
    """Whether an upload was finished."""
    return model.status == LoggedModelStatus.READY


def fetch(runtime: Runtime, handle: Handle) -> Path:
    """The files of `handle`, in the local cache under their digest.

    Raises:
        ArtifactMissing: if the store no longer has them, or has other bytes.
    """

    def download_it(scratch: Path) -> Path:
        return download(runtime, _locate(runtime, handle, {}, {})[0], scratch)

    try:
        return cached_directory(Path(runtime.cache_dir), handle.sha256, download_it)
    except DamagedError as error:
        if is_available(runtime, handle):
            _mark_damaged(runtime, handle)
        raise ArtifactMissing(_missing(handle, str(error))) from error
    except (MlflowException, OSError, LookupError) as error:
        if is_available(runtime, handle):
            raise  # the network or the disk, not the store
        raise ArtifactMissing(_missing(handle, "its files are gone")) from error


def download(runtime: Runtime, location: str, directory: Path) -> Path:
    """The files under a place in the store, in `directory`."""

    def attempt() -> Path:
        path = mlflow.artifacts.download_artifacts(
            artifact_uri=location, dst_path=str(directory), tracking_uri=runtime.tracking_uri
        )
        return Path(path)

    try:
        return attempt()
    except (MlflowException, OSError):
        # MLflow repeats a request without an answer; not one whose answer breaks off when the server goes away
        return attempt()


def _missing(handle: Handle, reason: str) -> str:
    return (
        f"{handle.kind} {handle.name} is not in MLflow as it was logged ({handle.uri}): {reason}."
        " Run the flow again: what is missing is made again, the rest comes from the cache."
    )


def are_available(runtime: Runtime, handles: Sequence[Handle]) -> list[bool]:
    """`is_available` of each, their runs and models read together."""
    runs = read_runs(runtime, list(dict.fromkeys(handle.run_id for handle in handles)))
    models = read_models(runtime, [_model_id(handle) for handle in handles if _is_model(handle)])
    with ThreadPoolExecutor(THREADS if is_server(runtime.tracking_uri) else 1) as threads:
        return list(threads.map(lambda handle: is_available(runtime, handle, runs, models), handles))


def is_available(
    runtime: Runtime,
    handle: Handle,
    runs: Mapping[str, Run] = MappingProxyType({}),
    models: Mapping[str, LoggedModel] = MappingProxyType({}),
) -> bool:
    """Whether the store still lists all files of `handle`, unread: run not deleted, model READY, digest as logged.

    `runs` and `models` are those, by id, that were read just now.
    """
    try:
        location, tag = _locate(runtime, handle, runs, models)
    except LookupError:
        return False
    content = intact_content(runtime, location, tag)
    return content is not None and content.sha256 == handle.sha256


def _locate(
    runtime: Runtime, handle: Handle, runs: Mapping[str, Run], models: Mapping[str, LoggedModel]
) -> tuple[str, str]:
    """Where the files of `handle` are, and their content tag.

    Raises:
        LookupError: if its run or model was deleted or is not finished.
    """
    client = connect(runtime.tracking_uri)
    try:
        run = runs.get(handle.run_id) or client.get_run(handle.run_id)
        if run.info.lifecycle_stage == "deleted":
            raise LookupError(f"run {handle.run_id} is deleted")
        if not _is_model(handle):
            artifact_path = handle.uri.removeprefix("runs:/").partition("/")[2]
            return f"{run.info.artifact_uri}/{artifact_path}", run.data.tags[_content_tag(artifact_path)]
        model = models.get(_model_id(handle)) or client.get_logged_model(_model_id(handle))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LookupError(error.message) from error
    if not is_ready(model):
        raise LookupError(f"model {model.model_id} is {model.status}")
    return model.artifact_location, model.tags[CONTENT_TAG]


def _is_model(handle: Handle) -> bool:
    return handle.uri.startswith("models:/")


def _model_id(handle: Handle) -> str:
    return handle.uri.removeprefix("models:/")


def intact_content(runtime: Runtime, location: str, tag: str) -> Content | None:
    """What `tag` says is at `location`, if the store lists just that; a result without files still has its MLmodel."""
    listed = [] if tag == DAMAGED else list(_listed(runtime, location))
    if not listed:
        return None
    content = Content.from_text(tag)
    sizes = [file.file_size or 0 for file in listed if Path(file.path).name not in NO_CONTENT]
    return content if (len(sizes), sum(sizes)) == (content.num_files, content.num_bytes) else None


def _listed(runtime: Runtime, location: str) -> Iterator[FileInfo]:
    for entry in mlflow.artifacts.list_artifacts(artifact_uri=location, tracking_uri=runtime.tracking_uri):
        if entry.is_dir:
            yield from _listed(runtime, f"{location}/{Path(entry.path).name}")
        else:
            yield entry


def _mark_damaged(runtime: Runtime, handle: Handle) -> None:
    """So that `is_available` knows, without reading them, that these bytes are not the ones that were logged."""
    client = connect(runtime.tracking_uri)
    if _is_model(handle):
        client.set_logged_model_tags(_model_id(handle), {CONTENT_TAG: DAMAGED})
    else:
        client.set_tag(handle.run_id, _content_tag(handle.uri.removeprefix("runs:/").partition("/")[2]), DAMAGED)
