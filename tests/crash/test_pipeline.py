"""The real thing once: servers, bootstrap, two workers, `prefect deployment run`, a kill on the way, a schedule."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.schedules import IntervalSchedule

from helpers.cluster import Cluster, cluster
from helpers.waiting import PATIENCE, wait_until

CELLS = {"domains": ["nlu"], "methods": ["base", "lori-s"], "merge_methods": ["concat"]}  # of the smoke profile
TITLES = [
    "dataset nlu test  12 rows",
    "dataset nlu train  64 rows",  # 4 steps of 16
    "dataset nlu validation  8 rows",
    "evaluate base nlu  seed 0  on nlu",
    "evaluate lori-s nlu  seed 0  4 steps  on nlu",
    "evaluate lori-s nlu  seed 0  4 steps  on nlu validation",
    "mask lori-d nlu  seed 0  4 steps  sparsity 0.9 model",
    "train base nlu  seed 0",
    "train lori-d nlu  seed 0  4 steps",
    "train lori-s nlu  seed 0  4 steps",
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        made.start_worker("driver", "lori-cpu")
        made.start_worker("box", "lori-gpu", limit=2, LORI_GPUS="cpu0,cpu1")
        yield made


@pytest.fixture(scope="module")
def paper(running: Cluster) -> str:
    """What `prefect deployment run lori/full-paper --watch` prints, while its first training is killed."""
    process = running.run_paper(**CELLS)
    wait_until(lambda: running.flow_runs("train lori-d"), "for the training")
    (job,) = wait_until(lambda: [each for each in running.processes("-m tasks.engine.job_main") if is_training(each)])
    job.kill()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output + running.log("driver") + running.log("box")
    return output


def is_training(process) -> bool:
    job_path = Path(process.cmdline()[-2])
    return '"method": "lori-d"' in job_path.read_text() and '"step": "train"' in job_path.read_text()


def test_every_cell_is_computed_by_a_flow_run_of_its_own_and_what_was_killed_by_two(
    running: Cluster, paper: str
) -> None:
    names = [run.name for run in running.flow_runs("nlu")]
    assert sorted(set(names)) == TITLES
    assert [name for name in TITLES if names.count(name) == 2] == ["train lori-d nlu  seed 0  4 steps"]
    gpus = {run.name.partition(" ")[0]: run.job_variables["gpus"] for run in running.flow_runs("nlu")}
    assert gpus == {"dataset": 0, "train": 1, "mask": 0, "evaluate": 1}  # of their pods, where there are some
    crashed, completed = running.flow_runs("train lori-d")
    assert crashed.state.name == "Crashed"
    assert "was killed by SIGKILL (out of memory?)" in crashed.state.message
    assert completed.state.name == "Completed"


def test_what_is_cached_asks_no_worker(running: Cluster, paper: str) -> None:
    before = len(running.flow_runs("nlu"))
    process = running.run_paper(**CELLS)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert running.flow_runs("lori smoke")[-1].state.message.startswith(f"Nothing to do: all {len(TITLES)} cells")
    assert len(running.flow_runs("nlu")) == before


def test_a_job_shows_its_progress_its_output_and_its_run_in_mlflow(running: Cluster, paper: str) -> None:
    run = running.flow_runs("train lori-s")[-1]
    with running.client() as client:
        artifacts = [each for each in client.read_artifacts(limit=200) if each.flow_run_id == run.id]
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), limit=200)
    kinds = {artifact.type: artifact for artifact in artifacts}
    assert float(kinds["progress"].data) == 100
    assert running.mlflow_uri in kinds["markdown"].data
    assert any("on cpu" in entry.message for entry in logs)


def test_a_study_leaves_its_tables_and_one_list_of_links(running: Cluster, paper: str) -> None:
    run = running.flow_runs("lori smoke")[-1]
    with running.client() as client:
        artifacts = {each.key: each.data for each in client.read_artifacts(limit=200) if each.flow_run_id == run.id}
    assert artifacts.keys() == {"lori-smoke-scale", "lori-smoke-scale-mlflow"}
    links = artifacts["lori-smoke-scale-mlflow"]
    assert "- [Report](" in links
    assert "- [01 Single-task](" in links
    assert links.count(running.mlflow_uri) == 7  # the report and six views
    assert "         01 Single-task: " in paper


def test_an_unknown_parameter_and_a_wrong_type_are_refused_before_anything_starts(running: Cluster) -> None:
    before = len(running.flow_runs("lori"))
    for name, value, message in [("domain", "nlu", "domain"), ("seeds", "many", "Validation")]:
        process = running.run_paper(watch=False, **{name: value})
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert message in output
    assert len(running.flow_runs("lori")) == before


def test_a_schedule_fires(running: Cluster, paper: str) -> None:
    often = IntervalSchedule(interval=timedelta(seconds=20))
    with running.client() as client:
        deployment = client.read_deployment_by_name("lori/full-paper")
        told = {"parameters": {"profile": "smoke", **CELLS}, "slug": "often"}
        (schedule,) = client.create_deployment_schedules(deployment.id, [(often, True)], **told)
    try:

        def fired() -> list:
            """Runs that the scheduler made of this deployment, and that the worker took and ended."""
            runs = running.flow_runs("lori smoke")
            return [run for run in runs if run.auto_scheduled and run.state.is_completed()]

        assert wait_until(fired, "for a scheduled run")[0].deployment_id == deployment.id
    finally:
        with running.client() as client:
            client.delete_deployment_schedule(deployment.id, schedule.id)
