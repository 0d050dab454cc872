"""The newest checkpoint of a training, as artifacts of its run, where another machine finds it."""

import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException

from tasks.results import Runtime
from tasks.tracking.artifacts import delete_artifacts, download, is_listed
from tasks.tracking.client import connect
from tasks.tracking.digests import directory_digest

LOG = logging.getLogger(__name__)
CHECKPOINT_TAG = "lori.checkpoint"
PLACE = "checkpoint"  # among the run's artifacts; a directory a step under it


@dataclass(frozen=True)
class Published:
    """A checkpoint that is whole: `step`, and the digest of its files."""

    step: int
    sha256: str


def published_checkpoint(runtime: Runtime, run_id: str) -> Published | None:
    """What the run's tag says, if there is one."""
    tag = connect(runtime.tracking_uri).get_run(run_id).data.tags.get(CHECKPOINT_TAG)
    return Published(**json.loads(tag)) if tag else None


def publish_checkpoint(runtime: Runtime, run_id: str, directory: Path, step: int) -> None:
    """Upload a checkpoint, then say so, then remove the one before: at any moment one is whole."""
    client, before = connect(runtime.tracking_uri), published_checkpoint(runtime, run_id)
    if before and before.step >= step:
        return  # an attempt that was given up, and lives, is ahead of us
    client.log_artifacts(run_id, str(directory), f"{PLACE}/{step}")
    now = Published(step, directory_digest(directory))
    client.set_tag(run_id, CHECKPOINT_TAG, json.dumps(asdict(now)))
    if before:
        delete_artifacts(runtime, run_id, f"{PLACE}/{before.step}")


def fetch_checkpoint(runtime: Runtime, run_id: str, found: Published, directory: Path) -> bool:
    """Download a checkpoint in the place of `directory`.

    False, and `directory` as it was, if its files are not what was published, or if a newer one took its place.
    """
    try:
        return _download(runtime, run_id, found, directory)
    except (MlflowException, OSError):
        if published_checkpoint(runtime, run_id) == found and is_listed(runtime, run_id, f"{PLACE}/{found.step}"):
            raise  # the network or the disk
        return False


def _download(runtime: Runtime, run_id: str, found: Published, directory: Path) -> bool:
    location = f"{connect(runtime.tracking_uri).get_run(run_id).info.artifact_uri}/{PLACE}/{found.step}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".fetch-") as scratch:
        fetched = download(runtime, location, Path(scratch, "files"))
        if directory_digest(fetched) != found.sha256:
            return False
        shutil.rmtree(directory, ignore_errors=True)
        fetched.rename(directory)
    return True


def drop_checkpoints(runtime: Runtime, run_id: str) -> None:
    """Remove the checkpoints of a training that is over, or that is to begin anew; what can't be removed stays."""
    client = connect(runtime.tracking_uri)
    try:
        if CHECKPOINT_TAG in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, CHECKPOINT_TAG)
        if is_listed(runtime, run_id, PLACE):  # without a tag, too: an upload that was cut left it
            delete_artifacts(runtime, run_id, PLACE)
    except (MlflowException, OSError) as error:  # another attempt was sooner, or the store lets nothing be deleted
        LOG.warning("Checkpoints of run %s stay in MLflow: %s", run_id, error)
