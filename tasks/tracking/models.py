"""Adapters and masks as MLflow's logged models, and links from runs to what they were made from."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Run,
)
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.models import Model

from tasks.results import Handle, Runtime
from tasks.tracking.artifacts import CONTENT_TAG, LOG, MAX_DIGEST, intact_content, is_ready
from tasks.tracking.client import KEY_TAG, connect, key_lock
from tasks.tracking.digests import MLMODEL, NO_CONTENT, Content, measure
from tasks.tracking.runs import param_texts


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
    return intact_content(runtime, model.artifact_location, model.tags[CONTENT_TAG]) if is_ready(model) else None


def _note_other_bytes(model: LoggedModel, stored: Content, content: Content) -> None:
    if stored.sha256 != content.sha256:
        LOG.warning(
            "The model %s of key %s is in MLflow (%s) with other bytes: digest %.12s…, here %.12s…. On another kind of"
            " device, or with other `hardware`, it is as good, and kept. On the same, the step is not deterministic,"
            " or its numbers changed: then raise its version in tasks/engine/jobs.py.",
            *(model.name, model.tags[KEY_TAG], model.model_uri, stored.sha256, content.sha256),
        )


def _find_model(client: MlflowClient, run: Run, key: str) -> LoggedModel | None:
    condition = f"tags.`{KEY_TAG}` = '{key}' AND source_run_id = '{run.info.run_id}'"
    models = client.search_logged_models([run.info.experiment_id], condition)
    usable = [model for model in models if model.status != LoggedModelStatus.FAILED]
    # The newest whole one, which a refresh may have put beside older ones; else what is to be completed
    return max(usable, key=lambda model: (is_ready(model), model.creation_timestamp, model.model_id), default=None)


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
