"""A whole installation in one directory: MLflow, Prefect, workers, each a real process that a test may kill."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.servers.services import Service, choose_port, start, stop, wait_until_healthy
from tasks.machine import ROOT

PYTHON = sys.executable
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "LORI_EXECUTOR": "deployment",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the least that Prefect takes
    "PREFECT_LOGGING_COLORS": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_CLIENT_MAX_RETRIES": "7",
}


@dataclass
class Cluster:
    """The processes by name, and where they answer."""

    directory: Path
    prefect_port: int = field(default_factory=choose_port)
    mlflow_port: int = field(default_factory=choose_port)
    services: dict[str, Service] = field(default_factory=dict)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def mlflow_uri(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    def environment(self, **own: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LORI_"))}
        return {
            **inherited,
            **SETTINGS,
            "LORI_CLUSTER": str(self.directory),  # a mark, to find what is left
            "LORI_DIR": str(self.directory / "state"),
            "LORI_HOME": str(ROOT),
            "LORI_LOCK_DIR": str(self.directory / "slots"),
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(self.directory / "prefect"),
            **own,
        }

    def start_prefect(self, **own: str) -> None:
        command = [PYTHON, "-m", "flows.servers.sqlite_server", "--port", str(self.prefect_port), "--no-ui"]
        self._start("prefect", command, **own)
        wait_until_healthy(self.services["prefect"], f"{self.api}/health")

    def start_mlflow(self) -> None:
        script = [str(ROOT / "mlflow/start.sh"), str(self.mlflow_port), str(self.directory / "mlflow")]
        self._start("mlflow", ["bash", *script])
        wait_until_healthy(self.services["mlflow"], f"{self.mlflow_uri}/health")

    def start_worker(self, name: str, pool: str, *, limit: int = 10, **own: str) -> Service:
        command = [PYTHON, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", pool, "--name", name]
        return self._start(name, [*command, "--limit", str(limit)], **own)

    def _start(self, name: str, command: Sequence[str], **own: str) -> Service:
        environment = self.environment(**own)
        self.services[name] = start(
            name, command, log_dir=self.directory / "logs", cwd=self.directory, env=environment
        )
        return self.services[name]

    def bootstrap(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [PYTHON, "-m", "flows.servers.bootstrap", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def run_paper(self, *, watch: bool = True, **parameters: Any) -> subprocess.Popen[str]:
        """`prefect deployment run lori/full-paper`, on as few cells as `parameters` leave."""
        told = [f"{name}={json.dumps(value)}" for name, value in {"profile": "smoke", **parameters}.items()]
        command = [PYTHON, "-m", "prefect", "--no-prompt", "deployment", "run", "lori/full-paper"]
        command += ["--watch"] * watch + [word for text in told for word in ("-p", text)]
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with temporary_settings({PREFECT_API_URL: self.api}), get_client(sync_client=True) as client:
            yield client

    def flow_runs(self, name: str) -> list[FlowRun]:
        """Flow runs whose name has these words, the oldest first."""
        with self.client() as client:
            like = FlowRunFilter(name=FlowRunFilterName(like_=name))
            return sorted(client.read_flow_runs(flow_run_filter=like), key=lambda run: run.created)

    def mlflow_runs(self, query: str = "") -> list[Run]:
        client = MlflowClient(self.mlflow_uri)
        experiments = client.search_experiments(filter_string="name LIKE 'lori%'")  # a profile's own among them
        return list(client.search_runs([each.experiment_id for each in experiments], query)) if experiments else []

    def log(self, name: str) -> str:
        return (self.directory / "logs" / f"{name}.log").read_text()

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of this cluster whose command line has all of `words`."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if process.environ().get("LORI_CLUSTER") == str(self.directory) and all(
                    word in line for word in words
                ):
                    found.append(process)
        return found

    def kill(self, name: str) -> None:
        """SIGKILL a service and all that it started, as when a machine is lost."""
        service = self.services.pop(name)
        family = [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        service.process.wait()

    def close(self) -> None:
        for service in reversed(self.services.values()):
            stop(service)
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@contextmanager
def cluster(directory: Path, *bootstrap: str, **prefect_server: str) -> Iterator[Cluster]:
    """Both servers, pools and deployments; no worker yet. `prefect_server` are settings of Prefect's alone."""
    made = Cluster(directory)
    (directory / "prefect").mkdir(parents=True)
    try:
        made.start_mlflow()
        made.start_prefect(**prefect_server)
        made.bootstrap(*bootstrap)
        yield made
    finally:
        made.close()
