"""Results by key: the handle as a tag of its run, so that what lost only its record in Prefect isn't made again."""

import json
from dataclasses import asdict

from tasks.results import Handle, Runtime
from tasks.tracking.artifacts import is_available
from tasks.tracking.client import connect, experiment_id_of

HANDLE_TAG = "lori.handle"


def save_handle(runtime: Runtime, handle: Handle) -> None:
    """Note the result on its run. The last thing that is done for it: what has this tag is whole."""
    text = json.dumps(asdict(handle))
    connect(runtime.tracking_uri).set_tag(handle.run_id, _tag(handle.key), text)


def find_handle(runtime: Runtime, key: str) -> Handle | None:
    """The result of `key`, if MLflow still has its bytes. That of a run which is not deleted."""
    client = connect(runtime.tracking_uri)
    experiment_id = experiment_id_of(runtime.tracking_uri, runtime.experiment)
    runs = client.search_runs([experiment_id], f"tags.`{_tag(key)}` LIKE '%'")
    handles = (Handle(**json.loads(run.data.tags[_tag(key)])) for run in runs)
    return next((handle for handle in handles if is_available(runtime, handle)), None)


def _tag(key: str) -> str:
    return f"{HANDLE_TAG}/{key}"
