"""An installation as deploy/ describes it: servers on Postgres, a password, two workers, a schedule that fires."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.servers.services import choose_port, start, stop, wait_until_healthy
from helpers.databases import postgres_server
from helpers.waiting import PATIENCE, wait_until
from tasks.machine import ROOT

BIN = Path(sys.executable).parent
PASSWORD, AUTH = secrets.token_hex(8), f"admin:{secrets.token_hex(8)}"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a database server for the user lori, who has a password."""
    with postgres_server(PASSWORD, "prefect", "mlflow") as address:
        yield address


def example(name: str, directory: Path, **own: str) -> dict[str, str]:
    """The environment that an example file gives, with places, addresses and secrets of this test."""
    text = (ROOT / "deploy/environment" / f"{name}.env.example").read_text()
    told = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    placed = {key: value.replace("/var/lib/lori", str(directory)) for key, value in told.items()}
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "LORI_", "MLFLOW_"))
    }
    return {**inherited, **placed, "PATH": f"{BIN}:{os.environ['PATH']}", **own}


@dataclass(frozen=True)
class Installation:
    """Where its servers answer, and the environment of its workers."""

    api: str
    mlflow: str
    worker: dict[str, str]


@pytest.fixture(scope="module")
def installation(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    directory = tmp_path_factory.mktemp("installation")
    ports = choose_port("NO_SUCH_PORT"), choose_port("NO_SUCH_PORT")
    api, mlflow = f"http://127.0.0.1:{ports[0]}/api", f"http://127.0.0.1:{ports[1]}"
    own = {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": AUTH, "MLFLOW_TRACKING_URI": mlflow}
    worker = example("worker", directory, **own, LORI_HOME=str(ROOT), PREFECT_WORKER_QUERY_SECONDS="1")
    with ExitStack() as cleanup:

        def begin(name: str, command: Sequence[str], env: dict[str, str], health: str | None = None) -> None:
            service = start(name, command, log_dir=directory / "logs", cwd=directory, env=env)
            cleanup.callback(stop, service, seconds=60)
            if health:
                wait_until_healthy(service, health)

        database = {"PGPASSWORD": PASSWORD, "MLFLOW_BACKEND_STORE_URI": f"postgresql://lori@{postgres}/mlflow"}
        mlflow_env = example("mlflow", directory, **database)
        script = ["bash", str(ROOT / "mlflow/start.sh"), str(ports[1]), str(directory / "mlflow")]
        begin("mlflow", script, mlflow_env, f"{mlflow}/health")
        prefect_env = example(
            "prefect",
            directory,
            PGPASSWORD=PASSWORD,
            PREFECT_SERVER_API_AUTH_STRING=AUTH,
            PREFECT_SERVER_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://lori@{postgres}/prefect",
            PREFECT_SERVER_ENCRYPTION_KEY=Fernet.generate_key().decode(),
            PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="5",
        )
        begin("prefect", ["prefect", "server", "start", "--port", str(ports[0])], prefect_env, f"{api}/health")
        command = [sys.executable, "-m", "flows.servers.bootstrap"]
        subprocess.run(command, cwd=ROOT, env=worker, check=True)
        for name, pool, more in (("driver", "lori-cpu", "LORI_EXECUTOR"), ("gpu", "lori-gpu", "LORI_GPUS")):
            run = ["prefect", "worker", "start", "--pool", pool, "--name", name, "--limit", "2"]
            begin(name, run, {**worker, more: {"driver": "deployment", "gpu": "cpu0,cpu1"}[name]})
        yield Installation(api, mlflow, worker)


def test_without_the_password_the_api_and_its_page_give_nothing(installation: Installation) -> None:
    for path in ("flow_runs/filter", "deployments/filter", "block_documents/filter"):
        assert httpx.post(f"{installation.api}/{path}", json={}, timeout=PATIENCE).status_code == 401
    assert httpx.get(f"{installation.api}/health", timeout=PATIENCE).status_code == 200


@pytest.mark.once
def test_a_schedule_fires_and_its_run_is_computed_by_the_workers(installation: Installation) -> None:
    settings = {PREFECT_API_URL: installation.api, PREFECT_API_AUTH_STRING: AUTH}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("lori/full-paper")
        soon = datetime.now(UTC) + timedelta(seconds=15)
        often = IntervalSchedule(interval=timedelta(minutes=2), anchor_date=soon)  # if it is late, the next one comes
        small = {"profile": "smoke", "domains": ["nlu"], "methods": ["lora"]}
        client.create_deployment_schedules(deployment.id, [(often, True)], parameters=small)

        def done() -> FlowRun | None:
            same = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
            runs = client.read_flow_runs(deployment_filter=same)
            return next((run for run in runs if run.state and run.state.is_final()), None)

        run = wait_until(done, "for a run of the schedule")
    assert run.created_by.type == "SCHEDULE"
    assert run.state.is_completed(), run.state.message
    client = MlflowClient(installation.mlflow)
    experiment = client.get_experiment_by_name("lori-smoke")
    assert experiment
    roles = {found.data.tags.get("lori.role") for found in client.search_runs([experiment.experiment_id])}
    assert {"data", "train", "report"} <= roles
