"""What an attempt that did not end leaves to the next one: checkpoints and completions, on any machine."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from helpers.stores import Store, client_of, open_run
from lori.choices.profiles import PROFILES
from lori.recipes.configs import data_config, eval_config, train_config
from tasks import tracking, train_callback
from tasks.engine.jobs import Job, JobFailed, run_inline
from tasks.results import Handle, Runtime

LOG_ARTIFACTS = MlflowClient.log_artifacts


def write_checkpoint(directory: Path, step: int) -> Path:
    place = directory / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "state").write_text(f"at {step}")
    return directory


def publish(store: Store, run_id: str, directory: Path, step: int) -> None:
    tracking.publish_checkpoint(store.runtime, run_id, write_checkpoint(directory, step), step)


def steps_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("checkpoint-*"))


@pytest.mark.parametrize(("here", "expected"), [(None, 14), (7, 14), (21, 21)])
def test_the_newest_checkpoint_is_taken_be_it_here_or_in_mlflow(
    store: Store, tmp_path: Path, here: int | None, expected: int
) -> None:
    run_id, work = open_run(store.runtime), tmp_path / "work"
    publish(store, run_id, tmp_path / "elsewhere", 14)
    if here:
        write_checkpoint(work, here)
    train_callback.restore(store.runtime, run_id, work)
    assert steps_in(work) == [f"checkpoint-{expected}"]


def cut(file: Path) -> None:
    file.write_text("at")


def remove(file: Path) -> None:
    shutil.rmtree(file.parents[1])


@pytest.mark.parametrize("harm", [cut, remove])
def test_one_that_is_damaged_in_mlflow_is_removed_and_an_older_one_here_is_taken(
    store: Store, tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run_id, work = open_run(store.runtime), tmp_path / "work"
    publish(store, run_id, tmp_path / "elsewhere", 14)
    harm(next(store.artifact_dir.rglob(f"{run_id}/artifacts/checkpoint/14/checkpoint-14/state")))
    write_checkpoint(work, 7)
    with caplog.at_level(logging.WARNING):
        train_callback.restore(store.runtime, run_id, work)
    assert steps_in(work) == ["checkpoint-7"]
    assert "step 14 is no longer whole in MLflow" in caplog.text
    assert tracking.published_checkpoint(store.runtime, run_id) is None
    assert not [path for path in store.artifact_dir.rglob(f"{run_id}/artifacts/**/*") if path.is_file()]
    publish(store, run_id, tmp_path / "again", 14)  # by the training that comes there again
    train_callback.restore(store.runtime, run_id, work)
    assert steps_in(work) == ["checkpoint-14"]


def test_what_an_upload_that_was_cut_left_goes_with_the_training(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store.runtime)
    client_of(store).log_artifacts(run_id, str(write_checkpoint(tmp_path / "here", 7)), "checkpoint/7")
    assert tracking.published_checkpoint(store.runtime, run_id) is None
    tracking.drop_checkpoints(store.runtime, run_id)
    assert client_of(store).list_artifacts(run_id) == []


def evaluation(experiment: str) -> Job:
    """Of the base model, on a few rows."""
    told, profile = Runtime(experiment=experiment), PROFILES["smoke"]

    def rows(split: str) -> Handle:
        return run_inline(Job("dataset", split, data_config(profile, "nlu", split), {}, told)).handle

    training = Job("train", "base", train_config(profile, "base", "nlu", 0), {"dataset": rows("train")}, told)
    inputs = {"adapter": run_inline(training).handle, "dataset": rows("test")}
    return Job("evaluate", "base", eval_config(profile, "nlu"), inputs, told)


def die_with_scores(self: MlflowClient, run_id: str, local_dir: str, artifact_path: str) -> None:
    if artifact_path.startswith("scores/"):
        raise InterruptedError(artifact_path)
    LOG_ARTIFACTS(self, run_id, local_dir, artifact_path)


def test_completions_are_kept_before_they_are_scored_and_not_made_twice(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORI_DIR", str(tmp_path / "lori"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_store.runtime.tracking_uri)
    undisturbed = run_inline(evaluation("undisturbed")).handle

    job = evaluation("interrupted")
    adapter = job.inputs["adapter"]
    assert isinstance(adapter, Handle)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifacts", die_with_scores)
        with pytest.raises(JobFailed, match="scores/nlu"):
            run_inline(job)
    client = client_of(sqlite_store)
    client.delete_logged_model(adapter.uri.removeprefix("models:/"))  # without it no completion can be made
    shutil.rmtree(tmp_path / "lori" / "cache")
    done = run_inline(job).handle
    assert (done.sha256, done.metrics) == (undisturbed.sha256, undisturbed.metrics)
    assert client.list_artifacts(adapter.run_id, "unscored") == []
