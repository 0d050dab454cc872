"""A Prefect server with a password, made ready by `python -m flows.servers.bootstrap`; and its deployments."""

import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from moto.server import ThreadedMotoServer
from prefect import flow, tags, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.servers import bootstrap
from flows.servers.bootstrap import DRIVER_POOL, GPU_POOL, ZOMBIES, BootstrapError
from flows.servers.services import choose_port, start, stop, wait_until_healthy
from helpers.deployments import NAMES
from helpers.waiting import PATIENCE, wait_until
from tasks.machine import ROOT

AUTH = "admin:only-a-test"


def run_bootstrap(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.servers.bootstrap", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of the clients of a server that wants a password."""
    directory = tmp_path_factory.mktemp("server")
    url = f"http://127.0.0.1:{choose_port()}/api"
    environment = {
        "DO_NOT_TRACK": "1",
        "PREFECT_API_AUTH_STRING": AUTH,
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(directory),
        "PREFECT_SERVER_API_AUTH_STRING": AUTH,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "flows.servers.sqlite_server", "--no-ui", "--port", url.split(":")[2][:-4]]
    service = start("prefect", command, log_dir=directory, cwd=directory, env={**os.environ, **environment})
    try:
        wait_until_healthy(service, f"{url}/health")
        EventsWorker.drain_all()  # a process has one, for the server that it knew first
        yield environment
        EventsWorker.drain_all()  # or it looks for this one for minutes, when the process ends
    finally:
        stop(service)


@pytest.fixture(scope="module")
def ready(server: dict[str, str]) -> dict[str, str]:
    done = run_bootstrap(**server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Work pool {DRIVER_POOL} (process): made" in done.stdout
    assert f"Deployments: {len(NAMES)} of prefect.yaml" in done.stdout
    assert f"No worker is online for {GPU_POOL}: start one with `prefect worker start" in done.stdout
    return server


@pytest.fixture
def client(ready: dict[str, str]) -> Iterator[SyncPrefectClient]:
    settings = {PREFECT_API_URL: ready["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: AUTH}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def everything(client: SyncPrefectClient) -> dict[str, Any]:
    """What there is on a server, without times and without the ids that deploying a trigger makes anew."""
    passing = {"updated", "last_polled"}
    return {
        "pools": [pool.model_dump(exclude=passing) for pool in client.read_work_pools()],
        "queues": [queue.model_dump(exclude=passing) for queue in client.read_work_queues()],
        "automations": [
            found.model_dump(exclude={"id", "owner_resource"} | passing)
            for name in (ZOMBIES, "lori-base-model-released")
            for found in client.read_automations_by_name(name)
        ],
        "deployments": [
            deployment.model_dump(exclude={"schedules": {"__all__": passing}, **dict.fromkeys(passing, True)})
            for deployment in client.read_deployments()
        ],
    }


def test_a_second_bootstrap_changes_nothing(ready: dict[str, str], client: SyncPrefectClient) -> None:
    before = everything(client)
    assert [len(found) for found in before.values()] == [2, 2, 2, len(NAMES)]
    again = run_bootstrap(**ready)
    assert again.returncode == 0, again.stderr
    assert "made" not in again.stdout
    assert everything(client) == before


def test_nobody_without_the_password_gets_in(server: dict[str, str]) -> None:
    url = server["PREFECT_API_URL"]
    body = {"limit": 1}
    assert httpx.post(f"{url}/work_pools/filter", json=body, timeout=PATIENCE).status_code == 401
    assert (
        httpx.post(f"{url}/work_pools/filter", json=body, auth=("admin", "only-a-test"), timeout=PATIENCE).status_code
        == 200
    )
    done = run_bootstrap(**{**server, "PREFECT_API_AUTH_STRING": "admin:wrong"})
    assert done.returncode == 1
    assert done.stderr == (
        f"lori: {url}/ refuses us (401): set PREFECT_API_AUTH_STRING to the server's PREFECT_SERVER_API_AUTH_STRING.\n"
    )


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, r"lori: PREFECT_API_URL is not set: name the server, as in http://127.0.0.1:4200/api\.\n"),
        (
            {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
            r"lori: No Prefect server answers at PREFECT_API_URL=http://127.0.0.1:9/api/ since 1 s \(.*\): start it,"
            r" or correct the address\.\n",
        ),
    ],
)
def test_a_server_that_is_not_there_is_one_sentence(
    environment: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    done = run_bootstrap("--wait", "1", **environment, PREFECT_HOME=str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(sentence, done.stderr), done.stderr


def test_an_address_without_api_is_named(ready: dict[str, str]) -> None:
    wrong = {PREFECT_API_URL: ready["PREFECT_API_URL"].removesuffix("/api"), PREFECT_API_AUTH_STRING: AUTH}
    message = r"is no Prefect API \(HTTP 40[45]\): PREFECT_API_URL ends in /api"
    with temporary_settings(wrong), get_client(sync_client=True) as client:
        bootstrap.wait_for_server(client, 1)
        with pytest.raises(BootstrapError, match=message):
            bootstrap.check_access(client)


def test_limits_are_set_changed_and_taken_away(client: SyncPrefectClient) -> None:
    bootstrap.set_limit(client, GPU_POOL, 8)
    bootstrap.set_limit(client, "lori-cpu/default", 2)
    assert client.read_work_pool(GPU_POOL).concurrency_limit == 8
    assert client.read_work_queue_by_name("default", DRIVER_POOL).concurrency_limit == 2
    bootstrap.set_limit(client, GPU_POOL, None)
    bootstrap.set_limit(client, "lori-cpu/default", None)
    assert client.read_work_pool(GPU_POOL).concurrency_limit is None
    assert client.read_work_queue_by_name("default", DRIVER_POOL).concurrency_limit is None
    with pytest.raises(BootstrapError, match="--limit lori-tpu: this server has no such work pool or queue"):
        bootstrap.set_limit(client, "lori-tpu", 1)


def test_runs_are_given_up_after_three_heartbeats_at_the_earliest(client: SyncPrefectClient) -> None:
    with pytest.raises(BootstrapError, match="--zombie-seconds 539 with a heartbeat each 180 s: it takes 3 of them"):
        bootstrap.check_zombie_seconds(3 * 180 - 1)
    bootstrap.ensure_zombie_automation(client, 720)
    (automation,) = client.read_automations_by_name(ZOMBIES)
    assert automation.trigger.within == timedelta(seconds=720)
    bootstrap.ensure_zombie_automation(client, 540)
    (automation,) = client.read_automations_by_name(ZOMBIES)
    assert automation.trigger.within == timedelta(seconds=540)


def test_a_pool_of_another_type_is_named_and_left(client: SyncPrefectClient) -> None:
    template = bootstrap.kubernetes_template("lori:1")
    with pytest.raises(BootstrapError, match="lori-gpu is of type process, not kubernetes: `prefect work-pool delete"):
        bootstrap.ensure_pool(client, GPU_POOL, "kubernetes", template)
    bootstrap.ensure_pool(client, "lori-k8s", "kubernetes", template)
    newer = bootstrap.kubernetes_template("lori:2")
    bootstrap.ensure_pool(client, "lori-k8s", "kubernetes", newer)
    assert client.read_work_pool("lori-k8s").base_job_template == newer
    client.delete_work_pool("lori-k8s")


def test_results_are_kept_in_s3_without_a_secret_in_the_block(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "who",
        "AWS_SECRET_ACCESS_KEY": "only-a-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    httpx.put(f"http://{host}:{port}/lori", timeout=PATIENCE).raise_for_status()
    calls = []

    @task(persist_result=True, result_serializer="json", cache_key_fn=lambda *_: "an-answer", cache_policy=None)
    def answer() -> int:
        calls.append(1)
        return 42

    @flow
    def twice() -> list[int]:
        return [answer(), answer()]

    bootstrap.ensure_results(client, "s3://lori/results")
    try:
        assert twice() == [42, 42]
        assert len(calls) == 1
        assert "<Key>results/an-answer</Key>" in httpx.get(f"http://{host}:{port}/lori", timeout=PATIENCE).text
        block = client.read_block_document_by_name(bootstrap.RESULTS, "remote-file-system")
        assert block.data == {"basepath": "s3://lori/results", "settings": {}}
    finally:
        client.clear_server_default_result_storage()
        store.stop()


def test_every_parameter_of_every_deployment_has_a_type_and_a_description(client: SyncPrefectClient) -> None:
    deployments = {deployment.name: deployment for deployment in client.read_deployments()}
    assert deployments.keys() == NAMES
    for deployment in deployments.values():
        for name, schema in deployment.parameter_openapi_schema["properties"].items():
            assert schema.keys() & {"type", "anyOf", "$ref", "allOf"}, (deployment.name, name)
            assert len(schema.get("description", "")) > 10, (deployment.name, name)


@pytest.fixture
def webhook() -> Iterator[tuple[str, queue.Queue[str]]]:
    """The address of a server, and what was posted there."""
    posted: queue.Queue[str] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", posted
    server.shutdown()
    server.server_close()


def test_the_notification_of_the_runbook_tells_of_a_failed_study_alone(
    client: SyncPrefectClient, webhook: tuple[str, queue.Queue[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, posted = webhook
    monkeypatch.setenv("LORI_WEBHOOK", address)
    (code,) = re.findall(r"<!-- notify -->\n```python\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    exec(compile(code, "operations.md", "exec"), {})

    @flow(name="lori", flow_run_name="lori paper mistral-7b")
    def study() -> None:
        raise ValueError("2 of 60 cells failed")

    for tag in ("step:train", "study"):
        with tags(tag), pytest.raises(ValueError, match="cells failed"):
            study()
    text = json.loads(posted.get(timeout=PATIENCE))["text"]
    assert text.startswith("lori paper mistral-7b Failed: Flow run encountered an exception: ValueError: 2 of 60")
    assert "/flow-run/" in text
    assert posted.empty()


def wait_for_runs(client: SyncPrefectClient, deployment: str, *, by: str) -> list[FlowRun]:
    of_deployment = DeploymentFilter(name=DeploymentFilterName(any_=[deployment]))

    def found() -> list[FlowRun]:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(), deployment_filter=of_deployment)
        return [run for run in runs if run.created_by and run.created_by.type == by]

    return wait_until(found, f"for a run of {deployment} by {by}")


def test_a_released_base_model_starts_the_scout_for_it_alone(ready: dict[str, str], client: SyncPrefectClient) -> None:
    (command,) = re.findall(r"^    prefect (event emit .*)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    emit = [sys.executable, "-m", "prefect", *command.split()]
    subprocess.run(emit, env={**os.environ, **ready}, check=True)
    (run,) = wait_for_runs(client, "daily", by="AUTOMATION")
    assert run.parameters == {"source": "", "profile": "paper", "base_models": ["org/new"], "dry_run": False}


def test_the_daily_schedule_makes_runs(client: SyncPrefectClient) -> None:
    runs = wait_for_runs(client, "daily", by="SCHEDULE")
    assert all(run.parameters["dry_run"] for run in runs)
    assert all(run.expected_start_time.hour == 6 for run in runs)
