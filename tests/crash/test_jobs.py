"""Jobs in processes of their own, as the executors `subprocess` and `deployment` start them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from lori.choices.hardware import Hardware
from lori.choices.profiles import PROFILES
from lori.recipes.configs import data_config, train_config
from tasks import tracking
from tasks.engine.job_process import Listener, run_in_process
from tasks.engine.jobs import Job, JobCrashed, JobFailed, job_to_json, run_inline
from tasks.machine import ROOT
from tasks.results import Handle, Runtime

PROFILE = replace(PROFILES["scale"], num_steps=30)
CONFIG = train_config(PROFILE, "lori-d", "nlu", 0)


@pytest.fixture(scope="module")
def lori_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "LORI_DIR": str(directory),
            "LORI_LOCK_DIR": str(directory / "slots"),
            "LORI_GPUS": "cpu0,cpu1",
            "LORI_CHECKPOINT_EVERY": "5",
            "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db",
        }.items():
            patch.setenv(name, value)
        tracking.ensure_store(os.environ["MLFLOW_TRACKING_URI"])
        yield directory


class Heard:
    """What a job's process said; `act` is called with the process at each look, and may end it."""

    def __init__(self, act: Any = None):
        self.lines: list[str] = []
        self.points: list[dict[str, Any]] = []
        self.act = act

    def listener(self) -> Listener:
        return Listener(self.lines.append, self.points.append, self._look)

    def _look(self) -> None:
        if self.act and any(point["what"].startswith("train") for point in self.points):
            (process,) = [each for each in psutil.Process().children() if "tasks.engine.job_main" in each.cmdline()]
            self.act(process)
            self.act = None


def training(experiment: str, dataset: Handle, num_gpus: int = 1) -> Job:
    told = Runtime(experiment=experiment, hardware=Hardware(num_gpus=num_gpus))
    return Job("train", "lori-d nlu", CONFIG, {"dataset": dataset}, told)


@pytest.fixture(scope="module")
def dataset(lori_dir: Path) -> Handle:
    config = data_config(PROFILE, "nlu", "train")
    return run_inline(Job("dataset", "nlu", config, {}, Runtime(experiment="inline"))).handle


@pytest.fixture(scope="module")
def inline(dataset: Handle) -> Handle:
    return run_inline(training("inline", dataset)).handle


def run_of(experiment: str):
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    (model,) = client.search_logged_models([found.experiment_id])
    return run, model


def test_a_process_gives_what_this_one_gives_and_tells_how_far_it_is(inline: Handle, dataset: Handle) -> None:
    heard = Heard()
    done = run_in_process(training("process", dataset), heard.listener())
    assert done.handle.sha256 == inline.sha256
    assert heard.lines[0] == "train lori-d nlu on cpu0"
    last = heard.points[-1]
    assert (last["what"], last["done"], last["total"]) == ("train lori-d-nlu-seed0-30_steps", 30, 30)
    assert last["loss"] == pytest.approx(inline.metrics["final_loss"])


@pytest.mark.once
def test_a_training_that_is_told_to_end_leaves_a_checkpoint_and_the_next_one_ends_alike(
    inline: Handle, dataset: Handle, lori_dir: Path
) -> None:
    heard = Heard(act=lambda process: process.terminate())
    with pytest.raises(JobCrashed, match="its process ended with exit code 143"):
        run_in_process(training("told", dataset), heard.listener())
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("told").experiment_id])
    assert run.info.status == "KILLED"
    step = json.loads(run.data.tags["lori.checkpoint"])["step"]
    assert 0 < step < 30

    for path in (lori_dir / "work").glob("train-*"):  # as another machine, which has nothing of it
        subprocess.run(["rm", "-r", path], check=True)
    heard = Heard()
    done = run_in_process(training("told", dataset), heard.listener())
    assert any(f"goes on from the checkpoint of step {step}" in line for line in heard.lines)
    assert done.handle.sha256 == inline.sha256
    run, _ = run_of("told")
    assert run.info.status == "FINISHED"
    assert "lori.checkpoint" not in run.data.tags
    assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == []
    steps = sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/loss"))
    assert steps == list(range(1, 31))


@pytest.mark.once
def test_a_killed_process_is_a_crash_that_says_so(dataset: Handle) -> None:
    heard = Heard(act=lambda process: process.kill())
    with pytest.raises(JobCrashed, match=r"train lori-d nlu: its process was killed by SIGKILL \(out of memory\?\)"):
        run_in_process(training("killed", dataset), heard.listener())


def test_a_job_that_nobody_wants_any_more_is_ended(dataset: Handle) -> None:
    class NotWanted(Exception):
        pass

    def raise_it(process: psutil.Process) -> None:
        raise NotWanted

    with pytest.raises(NotWanted):
        run_in_process(training("unwanted", dataset), Heard(act=raise_it).listener())
    assert not [each for each in psutil.Process().children() if "tasks.engine.job_main" in each.cmdline()]


def test_what_a_step_raises_comes_back_with_its_traceback(dataset: Handle) -> None:
    job = replace(training("process", dataset), config=replace(CONFIG, method="lori-s"))
    with pytest.raises(JobFailed, match="Method 'lori-s' and mask None do not go together") as caught:
        run_in_process(job, Heard().listener())
    assert "in train_adapter" in caught.value.__notes__[0]


def test_two_gpus_train_one_adapter_in_one_run(inline: Handle, dataset: Handle) -> None:
    heard = Heard()
    done = run_in_process(training("two", dataset, num_gpus=2), heard.listener())
    assert heard.lines[0] == "train lori-d nlu on cpu0, cpu1"
    assert (heard.points[-1]["done"], heard.points[-1]["total"]) == (30, 30)
    run, model = run_of("two")
    assert (run.info.run_id, model.model_uri) == (done.handle.run_id, done.handle.uri)
    ours, theirs = (weights(handle) for handle in (done.handle, inline))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.allclose(theirs[name], rtol=1e-3, atol=1e-5), name  # sums in another order


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.once
def test_of_two_processes_a_killed_one_is_a_crash_and_not_a_failure(dataset: Handle, rank: str) -> None:
    def kill(process: psutil.Process) -> None:
        (one,) = [each for each in process.children() if each.environ()["RANK"] == rank]
        one.kill()

    with pytest.raises(JobCrashed):
        run_in_process(training(f"one-of-two-{rank}", dataset, num_gpus=2), Heard(act=kill).listener())


def test_what_fails_on_two_gpus_ends_both_and_comes_back_with_its_message(dataset: Handle) -> None:
    broken = replace(dataset, uri="runs:/0123/rows", run_id="0123", sha256="0" * 64)  # no process can read it
    with pytest.raises(JobFailed, match="dataset data-nlu-train is not in MLflow as it was logged"):
        run_in_process(training("broken", broken, num_gpus=2), Heard().listener())


def weights(handle: Handle):
    runtime = Job("train", "", None, {}).runtime
    return load_file(tracking.fetch(runtime, handle) / "adapter_model.safetensors")


@pytest.mark.once
def test_a_full_disk_is_named_and_a_run_with_room_succeeds(inline: Handle, dataset: Handle, tmp_path: Path) -> None:
    job_path, answer_path = tmp_path / "job.json", tmp_path / "answer.json"
    job_path.write_text(job_to_json(training("full", dataset)))
    work = Path(os.environ["LORI_DIR"]) / "work"
    shutil.rmtree(work, ignore_errors=True)  # with checkpoints of two processes, whose sums have other last bits
    work.mkdir()
    command = ["bwrap", "--dev-bind", "/", "/", "--size", "100000", "--tmpfs", str(work)]
    command += [sys.executable, "-m", "tasks.engine.job_main", str(job_path), str(answer_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    answer = json.loads(answer_path.read_text())
    assert "No space left on device" in answer["error"]
    assert f"A disk is full: make room at {os.environ['LORI_DIR']}" in answer["error"]
    assert run_in_process(training("full", dataset), Heard().listener()).handle.sha256 == inline.sha256
