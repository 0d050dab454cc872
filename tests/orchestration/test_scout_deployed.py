"""The scout as prefect.yaml deploys it: with its tags, its schedule and its automation, on a real server."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.flow_engine import run_flow
from prefect.states import Completed, Pending, Running, Scheduled

from flows.deployments import scout
from helpers.cluster import Cluster
from helpers.rows import real_data_dir
from helpers.small_base import small_llama
from helpers.waiting import wait_until

PAPER, SCOUT = "lori/full-paper", "scout/daily"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Cluster]:
    """A Prefect server after the bootstrap, and two base models. No worker runs: papers wait, tests run scouts."""
    made = Cluster(tmp_path_factory.mktemp("installation"))
    (made.directory / "prefect").mkdir()
    (made.directory / "state" / "local").mkdir(parents=True)
    shutil.copy(empty_database, made.directory / "state" / "local" / "mlflow.db")
    data_dir = real_data_dir(made.directory / "rows")
    llama = small_llama(made.directory / "first", data_dir)
    shutil.copytree(llama, made.directory / "second")
    bases = [str(made.directory / name) for name in ("first", "second")]
    (made.directory / "bases.yaml").write_text(json.dumps({"base_models": bases}))
    try:
        made.start_prefect(PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS="6")  # as many as tests take
        made.bootstrap()
        EventsWorker.drain_all()  # a process has one, for the server that it knew first
        yield made
        EventsWorker.drain_all()
    finally:
        made.close()


@pytest.fixture
def client(installation: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """Of a server without papers."""
    monkeypatch.setenv("LORI_DIR", str(installation.directory / "state"))
    monkeypatch.setenv("LORI_DATA", str(installation.directory / "rows"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with installation.client() as client:
        for run in runs_of(client, PAPER):
            client.delete_flow_run(run.id)
        yield client


def runs_of(client: SyncPrefectClient, deployment: str) -> list[FlowRun]:
    """Its flow runs, the first expected first."""
    about = DeploymentFilter(id=DeploymentFilterId(any_=[client.read_deployment_by_name(deployment).id]))
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter(), deployment_filter=about)
    return sorted(found, key=lambda run: run.expected_start_time)


def scheduled(client: SyncPrefectClient, by: str) -> list[FlowRun]:
    """Scouts that a schedule or an automation asked for, and that nobody took yet."""
    runs = [run for run in runs_of(client, SCOUT) if run.created_by and run.created_by.type == by]
    return [run for run in runs if run.state_type == StateType.SCHEDULED]


def released(client: SyncPrefectClient, base: Path) -> FlowRun:
    """The scout that the automation asks for when somebody says that a base model is out."""
    before = {run.id for run in runs_of(client, SCOUT)}
    emit_event(
        "lori.base-model.released", {"prefect.resource.id": "lori.base-model.new", "lori.base-model": str(base)}
    )

    def new() -> FlowRun | None:
        return next((run for run in scheduled(client, by="AUTOMATION") if run.id not in before), None)

    return wait_until(new, "for the automation")


def take(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """Run a scout now, as a worker does that finds it due: what becomes of each candidate."""
    client.set_flow_run_state(run.id, Scheduled())
    client.set_flow_run_state(run.id, Pending())
    rows = run_flow(scout, flow_run=client.read_flow_run(run.id), parameters=run.parameters)
    return [row["action"] for row in rows]


def next_run(client: SyncPrefectClient, **parameters: Any) -> FlowRun:
    """The next run of the daily schedule, with these parameters changed."""
    run = wait_until(lambda: scheduled(client, by="SCHEDULE"), "for the scheduler")[0]
    client.update_flow_run(run.id, parameters={**run.parameters, **parameters})
    return client.read_flow_run(run.id)


def test_the_daily_look_out_runs_as_a_worker_runs_it_and_starts_nothing(
    installation: Cluster, client: SyncPrefectClient
) -> None:
    run, *later = wait_until(lambda: scheduled(client, by="SCHEDULE"), "for the scheduler")
    assert later, "those of the coming days are scheduled, too"
    client.set_flow_run_state(run.id, Scheduled())
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)],
        env=installation.environment(MLFLOW_TRACKING_URI=""),
        capture_output=True,
        text=True,
    )
    state = client.read_flow_run(run.id).state
    assert state.is_completed(), done.stdout + done.stderr
    assert state.message == "4 left out", "all of base-models.yaml: there is no hub, nor a copy"
    assert runs_of(client, PAPER) == []


def test_the_schedule_starts_as_many_papers_as_its_limit(installation: Cluster, client: SyncPrefectClient) -> None:
    for limit, dry_run, expected in (
        (1, True, ["would start", "waits"]),
        (2, True, ["would start", "would start"]),
        (1, False, ["started", "waits"]),
        (1, False, ["running", "waits"]),
        (2, False, ["running", "started"]),
    ):
        run = next_run(client, source=str(installation.directory / "bases.yaml"), dry_run=dry_run, limit=limit)
        assert take(client, run) == expected, (limit, dry_run)
    bases = [Path(run.parameters["base_model"]).name for run in runs_of(client, PAPER)]
    assert bases == ["first", "second"]


def test_a_released_base_model_has_its_paper_as_soon_as_no_other_waits_or_runs(
    installation: Cluster, client: SyncPrefectClient
) -> None:
    first, second = installation.directory / "first", installation.directory / "second"
    assert take(client, released(client, first)) == ["started"]
    (paper,) = runs_of(client, PAPER)
    for state in (Pending(), Running()):
        client.set_flow_run_state(paper.id, state, force=True)
        assert take(client, released(client, second)) == ["waits"]
    client.set_flow_run_state(paper.id, Completed(), force=True)
    assert take(client, released(client, second)) == ["started"]
