"""What happens in days, in minutes: everything that can be killed is killed while an adapter trains."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, cluster
from mlflow import MlflowClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling
from waiting import PATIENCE, wait_until

from flows.servers.bootstrap import ensure_zombie_automation

ZOMBIE_SECONDS = 180  # six heartbeats: a while without a server, and its start, and one that was due, fit in
SOONER = 90  # the least that three heartbeats take: where a machine is lost, the test waits for it
CELLS = {"profile": "scale", "domains": ["nlu"], "methods": ["lori-d"]}  # a training of 100 steps


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), "--zombie-seconds", str(ZOMBIE_SECONDS)) as made:
        made.start_worker("driver", "lori-cpu")
        start_gpu_worker(made, "box")
        yield made


def start_gpu_worker(cluster: Cluster, name: str) -> None:
    cluster.start_worker(name, "lori-gpu", limit=2, LORI_GPUS="cpu0,cpu1", LORI_CHECKPOINT_EVERY="10")


def training(cluster: Cluster, seed: int) -> psutil.Process:
    """The process that trains, in the middle of it and held there, with a checkpoint where others find it."""
    query = f"tags.`lori.role` = 'train' and tags.`lori.seed` = '{seed}'"

    def with_checkpoint() -> bool:
        return any("lori.checkpoint" in run.data.tags for run in cluster.mlflow_runs(query))

    wait_until(with_checkpoint, "for a checkpoint")
    (process,) = cluster.processes("-m tasks.engine.job_main")
    process.suspend()
    return process


def attempts(cluster: Cluster, seed: int) -> list[FlowRun]:
    return cluster.flow_runs(f"train lori-d nlu  seed {seed}")


def ends(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def assert_trained_once(cluster: Cluster, seed: int) -> None:
    """One run, one model, and each of the 100 steps once in its curve."""
    client = MlflowClient(cluster.mlflow_uri)
    (run,) = cluster.mlflow_runs(f"tags.`lori.role` = 'train' and tags.`lori.seed` = '{seed}'")
    assert run.info.status == "FINISHED"
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert len(models) == 1
    steps = sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/loss"))
    assert steps == list(range(1, 101))


def newest_study(cluster: Cluster) -> FlowRun:
    return cluster.flow_runs("lori scale")[-1]


def log_of(cluster: Cluster, run: FlowRun) -> str:
    with cluster.client() as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), limit=200)
    return "\n".join(entry.message for entry in logs)


@pytest.mark.once
def test_a_killed_training_is_tried_again_from_its_last_checkpoint(running: Cluster) -> None:
    paper = running.run_paper(**CELLS, seeds=[1])
    training(running, 1).kill()
    ends(paper)
    first, second = attempts(running, 1)
    assert first.state.is_crashed()
    assert "was killed by SIGKILL (out of memory?)" in first.state.message
    assert second.state.is_completed()
    assert "from the checkpoint of step" in log_of(running, second)
    assert_trained_once(running, 1)


@pytest.fixture
def noticed_sooner(running: Cluster) -> Iterator[None]:
    with running.client() as client:
        ensure_zombie_automation(client, SOONER)
        yield
        ensure_zombie_automation(client, ZOMBIE_SECONDS)


@pytest.mark.once
def test_a_lost_machine_is_noticed_by_its_silence_and_another_goes_on(running: Cluster, noticed_sooner: None) -> None:
    paper = running.run_paper(**CELLS, seeds=[2])
    training(running, 2)
    running.kill("box")
    start_gpu_worker(running, "box")
    ends(paper)
    first, second = attempts(running, 2)
    assert first.state.is_crashed()
    assert f"no heartbeat for {SOONER} s" in first.state.message
    assert second.state.is_completed()
    assert "from the checkpoint of step" in log_of(running, second)
    assert_trained_once(running, 2)


@pytest.mark.once
def test_a_killed_driver_finds_the_job_that_it_left(running: Cluster) -> None:
    ended = running.run_paper(**CELLS, seeds=[3])
    job = training(running, 3)
    driver = psutil.Process(running.services["driver"].process.pid)
    for process in driver.children(recursive=True):
        if "prefect.engine" in " ".join(process.cmdline()):
            process.kill()
    ended.communicate(timeout=PATIENCE)
    assert ended.returncode == 1
    again = running.run_paper(**CELLS, seeds=[3])
    wait_until(lambda: "which was there already" in log_of(running, newest_study(running)), "for the new driver")
    job.resume()
    ends(again)
    (only,) = attempts(running, 3)
    assert only.state.is_completed()
    assert_trained_once(running, 3)


@pytest.mark.once
def test_a_server_that_is_away_while_a_training_ends_fails_nothing(running: Cluster) -> None:
    paper = running.run_paper(watch=False, **CELLS, seeds=[4])
    ends(paper)
    job = training(running, 4)
    running.kill("prefect")
    job.resume()
    wait_until(lambda: not running.processes("-m tasks.engine.job_main"), "for the end of the training")
    running.start_prefect()

    def all_over() -> bool:
        runs = [newest_study(running), *attempts(running, 4)]
        return all(run.state.is_final() for run in runs)

    wait_until(all_over, "for the end of the runs")
    assert newest_study(running).state.is_completed()
    assert [run.state.name for run in attempts(running, 4)] == ["Completed"]
    assert_trained_once(running, 4)


def test_a_worker_that_is_told_to_end_leaves_a_checkpoint_and_says_so_at_once(running: Cluster) -> None:
    paper = running.run_paper(**CELLS, seeds=[5])
    job = training(running, 5)
    worker = running.services.pop("box").process
    worker.send_signal(signal.SIGTERM)
    job.resume()
    worker.wait(PATIENCE)
    wait_until(lambda: attempts(running, 5)[0].state.is_final(), "for the first attempt's end")
    start_gpu_worker(running, "box")
    ends(paper)
    first, second = attempts(running, 5)
    assert first.state.is_crashed()
    assert "no heartbeat" not in first.state.message
    assert second.state.is_completed()
    assert_trained_once(running, 5)


@pytest.mark.once
def test_cancelling_ends_the_jobs_frees_their_gpus_and_closes_their_runs(running: Cluster) -> None:
    paper = running.run_paper(**CELLS, seeds=[6])
    training(running, 6).resume()
    with running.client() as client:
        client.set_flow_run_state(newest_study(running).id, Cancelling())
    paper.communicate(timeout=PATIENCE)
    assert paper.returncode == 1
    wait_until(lambda: not running.processes("-m tasks.engine.job_main"), "for the job's end")
    wait_until(lambda: attempts(running, 6)[0].state.is_cancelled(), "for its state")
    (run,) = running.mlflow_runs("tags.`lori.role` = 'train' and tags.`lori.seed` = '6'")
    assert run.info.status == "KILLED"


@pytest.fixture
def two_machines(running: Cluster) -> None:
    """A second machine for drivers: it shares no lock and no record with the first."""
    for name in ("driver", "driver2"):
        if before := running.services.pop(name, None):
            before.process.send_signal(signal.SIGTERM)
            before.process.wait(PATIENCE)
        running.start_worker(name, "lori-cpu", limit=1, LORI_DIR=str(running.directory / f"state-{name}"))


def test_two_drivers_that_want_the_same_share_one_job(running: Cluster, two_machines: None) -> None:
    both = [running.run_paper(**CELLS, seeds=[7]) for _ in range(2)]
    for paper in both:
        ends(paper)
    assert len(attempts(running, 7)) == 1
    assert_trained_once(running, 7)


def test_who_waits_for_the_job_of_a_study_that_is_cancelled_gets_one_of_its_own(
    running: Cluster, two_machines: None
) -> None:
    first = running.run_paper(**CELLS, seeds=[10])
    process = training(running, 10)
    second = running.run_paper(**CELLS, seeds=[10])
    wait_until(lambda: "which was there already" in log_of(running, newest_study(running)), "for the second")
    with running.client() as client:
        client.set_flow_run_state(running.flow_runs("lori scale")[-2].id, Cancelling())
    process.resume()
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    ends(second)
    assert_trained_once(running, 10)


def test_a_pool_without_a_worker_is_named(running: Cluster, tmp_path: Path) -> None:
    worker = running.services.pop("box").process
    worker.send_signal(signal.SIGTERM)
    worker.wait(PATIENCE)
    paper = running.run_paper(**CELLS, seeds=[8])

    def said() -> bool:
        return "no worker is online for the work pool lori-gpu" in log_of(running, newest_study(running))

    wait_until(said, "for a warning")
    start_gpu_worker(running, "box")
    ends(paper)


@pytest.mark.once
def test_an_mlflow_that_is_away_when_a_training_asks_for_it_fails_nothing(running: Cluster) -> None:
    paper = running.run_paper(**CELLS, seeds=[9])
    job = training(running, 9)
    running.kill("mlflow")
    job.resume()
    wait_until(lambda: "Retrying" in log_of(running, attempts(running, 9)[0]), "for a request without an answer")
    running.start_mlflow()
    ends(paper)
    assert [run.state.name for run in attempts(running, 9)] == ["Completed"]
    assert_trained_once(running, 9)
