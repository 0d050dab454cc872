"""Trainings are killed at random moments, fifteen and more: the same bytes, one run, one model, a whole curve."""

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from cluster import Cluster
from mlflow import MlflowClient

from lori.choices.profiles import PROFILES
from lori.recipes.configs import data_config, train_config
from tasks.engine.job_process import Listener, run_in_process
from tasks.engine.jobs import Computed, Job, JobCrashed, find_result
from tasks.results import Handle, Runtime

NUM_TRIALS = 15  # of one kill or two
PROFILE_STEPS = 60
MAX_SECONDS = (6.0, 1.0)  # from its start, where it loads what it needs; and after a step
RANDOM = random.Random(0)
PROFILE = replace(PROFILES["scale"], num_steps=PROFILE_STEPS)
IGNORED = Listener(on_line=lambda _: None, on_progress=lambda _: None, check=lambda: None)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """MLflow alone, and this process as the one that starts jobs."""
    directory = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        made = Cluster(directory)
        for name, value in made.environment(LORI_GPUS="cpu0", LORI_CHECKPOINT_EVERY="7").items():
            patch.setenv(name, value)
        made.start_mlflow()
        yield made
        made.close()


def training(experiment: str, dataset: Handle) -> Job:
    return Job(
        "train",
        "lori-d nlu",
        train_config(PROFILE, "lori-d", "nlu", 0),
        {"dataset": dataset},
        Runtime(experiment=experiment),
    )


@pytest.fixture(scope="module")
def dataset(running: Cluster) -> Handle:
    return run_in_process(Job("dataset", "nlu", data_config(PROFILE, "nlu", "train"), {}), IGNORED).handle


@pytest.fixture(scope="module")
def undisturbed(running: Cluster, dataset: Handle) -> Computed:
    return run_in_process(training("undisturbed", dataset), IGNORED)


def computed(job: Job) -> Computed:
    """As a study would have it: what was saved before the kill is not computed again."""
    found = find_result(job)
    return Computed(found, 0.0) if found else run_in_process(job, IGNORED)


def killed_after(step: int, seconds: float, job: Job, cluster: Cluster) -> Computed | None:
    """The result of `job`, None if it was killed before it had one: `seconds` after it has reported `step`.

    Step 0 is its process' start, and the last one the time when it logs and registers what it trained.
    """
    reached = [] if step else [time.monotonic()]

    def note(progress: Mapping[str, Any]) -> None:
        if progress["done"] >= step:
            reached.append(time.monotonic())

    def kill_in_time() -> None:
        if reached and time.monotonic() > reached[0] + seconds:
            for process in cluster.processes("-m tasks.engine.job_main"):
                process.kill()

    try:
        return run_in_process(job, replace(IGNORED, on_progress=note, check=kill_in_time))
    except JobCrashed:
        return None


def killed_at_random(experiment: str, dataset: Handle, cluster: Cluster) -> tuple[Computed | None, int]:
    """What the training has at last, and how often it was killed: not at all if it ended sooner than it was to be."""
    done, num_killed = None, 0
    while done is None and num_killed < 2:
        step = RANDOM.choice([0, *range(1, PROFILE_STEPS), *[PROFILE_STEPS] * 10])
        seconds = RANDOM.uniform(0.0, MAX_SECONDS[step > 0])
        done = killed_after(step, seconds, training(experiment, dataset), cluster)
        num_killed += done is None
    return done, num_killed


@pytest.mark.parametrize("trial", range(NUM_TRIALS))
def test_a_killed_training_ends_with_the_bytes_of_one_that_was_not(
    trial: int, running: Cluster, dataset: Handle, undisturbed: Computed
) -> None:
    num_killed, names = 0, (f"trial-{trial}-{number}" for number in count())
    while num_killed == 0:
        done, num_killed = killed_at_random(name := next(names), dataset, running)
    done = done or run_in_process(training(name, dataset), IGNORED)
    assert done.handle.sha256 == undisturbed.handle.sha256
    client = MlflowClient(running.mlflow_uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    (model,) = client.search_logged_models([experiment.experiment_id])
    registered = model.tags["lori.address"].removeprefix("models:/").partition("@")[0]
    versions = [
        each for each in client.search_model_versions(f"name = '{registered}'") if each.source == model.model_uri
    ]
    assert len(versions) == 1
    assert curve(client, run.info.run_id) == curve(client, undisturbed.handle.run_id)


def curve(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Each step's values, as often as they were logged."""
    names = ("train/loss", "train/learning_rate", "train/gradient_norm")
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name)) for name in names
    }
