"""The bytes of results: run artifacts and logged models, complete or made whole, fetched by digest."""

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    FileInfo,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Run,
)
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from lori.config import Handle, Runtime
from tasks.tracking.client import KEY_TAG, connect, is_server, key_lock
from tasks.tracking.content import MLMODEL, NO_CONTENT, Content, DamagedError, cached_directory, measure
from tasks.tracking.reading import run_reader
from tasks.tracking.runs import param_texts

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
    if tag is None or _intact_content(runtime, location, tag) != content:
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


def log_model(  # noqa: PLR0913 - each argument is a column of the Models tab
    runtime: Runtime, run_id: str, key: str, directory: Path, *, kind: str, name: str, params: Mapping[str, Any]
) -> tuple[str, str]:
    """Files as a logged model, at its root: PEFT loads what MLflow downloads. Returns its `models:/` URI and digest.

    A model that an earlier attempt left unfinished, or whose files were removed from the store, is completed. One that
    is intact and has other bytes, computed on another kind of device, is as good and stays the key's; if the runtime
    says `refresh`, a new model takes its place.
    """
    client = connect(runtime.tracking_uri)
    content, run = measure(directory), client.get_run(run_id)
    tags = {KEY_TAG: key, CONTENT_TAG: content.to_text()}
    with key_lock(runtime, key):
        model = _find_model(client, run, key)
        stored = model and _intact_model(runtime, model)
        if model and stored and (stored == content or not runtime.refresh):
            _note_other_bytes(model, stored, content)
            return model.model_uri, stored.sha256
        if model is None or stored:
            model = client.create_logged_model(
                run.info.experiment_id, name, run_id, tags=tags, params=param_texts(params), model_type=kind
            )
        _upload(client, run, model, directory)
        if model.tags.get(CONTENT_TAG) != tags[CONTENT_TAG]:  # left by an earlier attempt
            client.set_logged_model_tags(model.model_id, tags)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model.model_uri, content.sha256


def _intact_model(runtime: Runtime, model: LoggedModel) -> Content | None:
    return _intact_content(runtime, model.artifact_location, model.tags[CONTENT_TAG]) if _is_ready(model) else None


def _note_other_bytes(model: LoggedModel, stored: Content, content: Content) -> None:
    if stored.sha256 != content.sha256:
        LOG.warning(
            "The model %s of key %s is in MLflow (%s) with other bytes: digest %.12s…, here %.12s…. On another kind of"
            " device, or with other `hardware`, it is as good, and kept. On the same, the step is not deterministic,"
            " or its numbers changed: then raise its version in tasks/steps.py.",
            *(model.name, model.tags[KEY_TAG], model.model_uri, stored.sha256, content.sha256),
        )


def _is_ready(model: LoggedModel) -> bool:
    return model.status == LoggedModelStatus.READY


def _find_model(client: MlflowClient, run: Run, key: str) -> LoggedModel | None:
    condition = f"tags.`{KEY_TAG}` = '{key}' AND source_run_id = '{run.info.run_id}'"
    models = client.search_logged_models([run.info.experiment_id], condition)
    usable = [model for model in models if model.status != LoggedModelStatus.FAILED]
    # The newest whole one, which a refresh may have put beside older ones; else what is to be completed
    return max(usable, key=lambda model: (_is_ready(model), model.creation_timestamp, model.model_id), default=None)


def _upload(client: MlflowClient, run: Run, model: LoggedModel, directory: Path) -> None:
    """Upload, overwriting what is there, and note the model as the run's output (which MLflow refuses to do twice)."""
    client.log_model_artifacts(model.model_id, str(directory))
    with tempfile.TemporaryDirectory() as scratch:
        description = Model(artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run.info.run_id)
        is_peft = (directory / "adapter_config.json").exists()  # or a mask, or a whole model
        description.add_flavor("peft" if is_peft else str(model.model_type), data=".")
        description.save(Path(scratch, MLMODEL))
        client.log_model_artifact(model.model_id, str(Path(scratch, MLMODEL)))
    outputs = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
    if model.model_id not in outputs:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])


def write_beside(runtime: Runtime, uri: str, name: str, text: str) -> None:
    """Write a file of `NO_CONTENT` at the root of a logged model, in the place of an older one."""
    assert name in NO_CONTENT
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, name).write_text(text)
        connect(runtime.tracking_uri).log_model_artifact(uri.removeprefix("models:/"), str(Path(scratch, name)))


def link_dataset(runtime: Runtime, run_id: str, handle: Handle, context: str) -> None:
    """Note the rows that a run read, by our digest: MLflow's own is of the first 10,000 alone.

    `context` says what for, `train` or `eval`.
    """
    source = json.dumps({"uri": handle.uri, "sha256": handle.sha256})
    dataset = Dataset(handle.name, handle.sha256[:MAX_DIGEST], "mlflow", source)
    tag = InputTag("mlflow.data.context", context)
    connect(runtime.tracking_uri).log_inputs(run_id, datasets=[DatasetInput(dataset, [tag])])


def link_inputs(runtime: Runtime, run_id: str, handles: Iterable[Handle]) -> None:
    """Note the models that a run was made from, with links to them; handles of run artifacts have none in MLflow."""
    models = [handle for handle in handles if handle.uri.startswith("models:/")]
    link_models(runtime, run_id, [handle.uri for handle in models])
    if models:
        client = connect(runtime.tracking_uri)
        place = f"#/experiments/{client.get_run(run_id).info.experiment_id}/models"
        links = [f"[{handle.name}]({place}/{handle.uri.removeprefix('models:/')})" for handle in models]
        client.set_tag(run_id, "mlflow.note.content", f"Made from {', '.join(links)}.")


def link_models(runtime: Runtime, run_id: str, uris: Sequence[str]) -> None:
    """Note the models, `models:/m-…`, that a run was made from."""
    if uris:
        models = [LoggedModelInput(model_id=uri.removeprefix("models:/")) for uri in uris]
        connect(runtime.tracking_uri).log_inputs(run_id, models=models)


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
    reader = run_reader(runtime.tracking_uri, runtime.experiment)
    runs = reader.read_all(list(dict.fromkeys(handle.run_id for handle in handles)))
    models = reader.read_all_models([_model_id(handle) for handle in handles if _is_model(handle)])
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
    content = _intact_content(runtime, location, tag)
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
        run = runs.get(handle.run_id) or run_reader(runtime.tracking_uri, runtime.experiment).read(handle.run_id)
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
    if not _is_ready(model):
        raise LookupError(f"model {model.model_id} is {model.status}")
    return model.artifact_location, model.tags[CONTENT_TAG]


def _is_model(handle: Handle) -> bool:
    return handle.uri.startswith("models:/")


def _model_id(handle: Handle) -> str:
    return handle.uri.removeprefix("models:/")


def _intact_content(runtime: Runtime, location: str, tag: str) -> Content | None:
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
