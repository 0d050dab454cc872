"""MLflow as mlflow/compose.yaml runs it: Postgres, an object store, users. A smoke paper goes through it and back."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import mlflow.artifacts
import pytest
import torch
import yaml
from databases import postgres_server
from mlflow import MlflowClient
from mlflow.server.auth.client import AuthServiceClient
from moto.server import ThreadedMotoServer
from peft import PeftModel
from waiting import PATIENCE

from flows.servers.services import choose_port, start, stop, wait_until_healthy
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "mlflow/compose.yaml").read_text())["services"]
ADMIN, USER = ("admin", secrets.token_hex(16)), ("lori", secrets.token_hex(16))


@dataclass(frozen=True)
class Tracking:
    """Where it answers, where its objects are, and what a client's environment has of it."""

    uri: str
    storage: str
    client: dict[str, str]


def clean() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("LORI_", "MLFLOW_", "AWS_", "PG"))}
    return {**inherited, "PATH": path}


def server_environment(postgres: str, storage: str) -> dict[str, str]:
    """That of compose.yaml, with the addresses of this test and fresh secrets."""
    password = postgres.partition("@")[0]
    host, port = postgres.partition("@")[2].split(":")
    told = {name: str(value) for name, value in COMPOSE["mlflow"]["environment"].items() if name != "<<"}
    own = {
        "AWS_ACCESS_KEY_ID": "who",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_AUTH_CONFIG_PATH": str(ROOT / "mlflow/basic_auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_S3_ENDPOINT_URL": storage,
        "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*,localhost:*",
        "PGHOST": host,
        "PGPORT": port,
        "PGUSER": "lori",
        "PGPASSWORD": password,
    }
    filled = {**told, **own}
    assert not [name for name, value in filled.items() if "${" in value], "a variable that this test does not fill in"
    return {**clean(), **filled}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    directory, port = tmp_path_factory.mktemp("production"), choose_port("NO_SUCH_PORT")
    password, uri = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    store = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    store.start()
    host, store_port = store.get_host_and_port()
    storage = f"http://{host}:{store_port}"
    httpx.put(f"{storage}/mlflow", timeout=PATIENCE).raise_for_status()
    with postgres_server(password, "mlflow", "mlflow_auth") as address:
        command = ["bash", str(ROOT / "mlflow/start.sh"), str(port), str(directory / "mlflow")]
        env = server_environment(f"{password}@{address}", storage)
        service = start("mlflow", command, log_dir=directory, cwd=directory, env=env)
        try:
            wait_until_healthy(service, f"{uri}/health")
            name, secret = ADMIN
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MLFLOW_TRACKING_USERNAME", name)
                patch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
                AuthServiceClient(uri).create_user(*USER)
            credentials = {"MLFLOW_TRACKING_USERNAME": USER[0], "MLFLOW_TRACKING_PASSWORD": USER[1]}
            yield Tracking(uri, storage, {"MLFLOW_TRACKING_URI": uri, **credentials})
        finally:
            stop(service)
            store.stop()


def test_without_credentials_nobody_is_let_in(server: Tracking) -> None:
    search = f"{server.uri}/api/2.0/mlflow/experiments/search"
    assert httpx.post(search, json={"max_results": 1}, timeout=PATIENCE).status_code == 401
    assert httpx.post(search, json={"max_results": 1}, auth=("lori", "a guess"), timeout=PATIENCE).status_code == 401
    assert httpx.post(search, json={"max_results": 1}, auth=USER, timeout=PATIENCE).status_code == 200
    artifacts = f"{server.uri}/api/2.0/mlflow-artifacts/artifacts"
    assert httpx.get(artifacts, params={"path": "1"}, timeout=PATIENCE).status_code == 401


def test_a_foreign_host_is_refused_even_with_credentials(server: Tracking) -> None:
    search = f"{server.uri}/api/2.0/mlflow/experiments/search"
    answer = httpx.post(
        search, json={"max_results": 1}, auth=USER, headers={"Host": "mlflow.attacker.example"}, timeout=PATIENCE
    )
    assert answer.status_code == 403


def test_a_paper_goes_through_it_and_its_adapter_comes_back(
    server: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [sys.executable, "-m", "flows", "full-paper", "--profile", "smoke"]
    run += ["-p", 'domains=["nlu"]', "-p", 'methods=["lori-s"]']
    env = {**clean(), **server.client, "LORI_DIR": str(tmp_path / "state")}
    done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    for name, value in server.client.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(server.uri)
    (name,) = [model.name for model in client.search_registered_models() if ".lori-s-4_steps." in model.name]
    path = mlflow.artifacts.download_artifacts(
        f"models:/{name}@seed-0", dst_path=str(tmp_path / "adapter"), tracking_uri=server.uri
    )
    adapter = PeftModel.from_pretrained(load_base(BASE_MODELS["scale"]), path)
    bs = torch.cat([value.flatten() for key, value in adapter.state_dict().items() if "lora_B" in key])
    assert 0.05 < torch.count_nonzero(bs) / bs.numel() <= 0.1  # the mask's: some of what it keeps may be 0

    listing = httpx.get(
        f"{server.storage}/mlflow", params={"prefix": "artifacts/", "list-type": "2"}, timeout=PATIENCE
    ).text
    assert re.search(r"adapter_model\.safetensors</Key>", listing)
