"""A flow in a terminal: Prefect and MLflow keep their databases under `.lori/local/`, and nothing else need run.

The Prefect server of such a run starts before anything that takes long is imported, so that both take their time
together. Prefect would start one as well, when it is first asked for, and leave it behind where its parent is killed.
"""

import atexit
import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path

from flows.servers.services import LOCALHOST, StackError, start, stop, wait_until_healthy
from tasks.machine import COMPUTE_SETTINGS, state_dir

LOCAL_SETTINGS = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the flow prints a line a cell, and failures itself
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
SERVER_SETTINGS = {  # as Prefect's own `SubprocessASGIServer`, which can't be had without importing the server here
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # a fifth of the start, and no block is used
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",  # it would import Prefect's integrations to see what is new
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_UI_ENABLED": "false",
}


class LocalServer:
    """A Prefect server that ends with this process, however that ends."""

    def __init__(self) -> None:
        # Taken at once: a free port could be another's by the time that the server has imported itself
        self._listener = socket.create_server((LOCALHOST, 0))
        self.url = f"http://{LOCALHOST}:{self._listener.getsockname()[1]}/api"
        self._database = Path(os.environ["PREFECT_HOME"]).expanduser().absolute() / "prefect.db"
        # Looking for migrations takes a second of each start, though there are none until Prefect is another version
        self._migrated = self._database.with_name(f"migrated-{version('prefect')}")
        self._start()
        atexit.register(self._stop)

    def _start(self) -> None:
        number = self._listener.fileno()
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "uvicorn", "--fd", str(number)]
        command += ["--log-level", "error", "--factory", "flows.servers.sqlite_server:create_app"]
        name, logs, env = f"prefect-{os.getpid()}", state_dir() / "logs", {**os.environ, **SERVER_SETTINGS}
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{self._database}"
        if self._migrated.exists() and self._database.exists():
            env["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] = "false"
        self._service = start(name, command, log_dir=logs, cwd=Path.cwd(), env=env, pass_fds=[number])

    def _stop(self) -> None:
        stop(self._service)
        self._service.log.unlink(missing_ok=True)

    def wait(self) -> None:
        """Until it answers.

        Raises:
            StackError: if it does not, or ends twice: two that make one database at the same moment break each other.
        """
        try:
            wait_until_healthy(self._service, f"{self.url}/health")
        except StackError:
            if self._service.process.poll() is None:
                raise
            self._start()
            wait_until_healthy(self._service, f"{self.url}/health")
        self._migrated.touch()
        self._listener.close()  # or nobody would be told of a server that is gone


_SERVERS: list[LocalServer] = []  # one, or none where jobs are found through a server that stays


def use_local_stores() -> None:
    """Settings of a quiet local run, and its server. Only before Prefect and torch are imported.

    What is set already stays, but for the server's address: only where jobs are found through it is it the user's.
    """
    # Apart from the servers' own: one experiment lives in a server or in a file, and one database has one writer
    home = state_dir() / "local" / "prefect"
    results = state_dir() / "local" / "results"
    stores = {"PREFECT_HOME": str(home), "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(results)}
    for name, value in {**LOCAL_SETTINGS, **COMPUTE_SETTINGS, **stores}.items():
        os.environ.setdefault(name, value)
    home.mkdir(parents=True, exist_ok=True)  # Prefect would not make its parent
    if os.environ.get("LORI_EXECUTOR") != "deployment":
        _SERVERS.append(LocalServer())
        os.environ |= {"PREFECT_API_URL": _SERVERS[0].url, "PREFECT_UI_URL": ""}  # no links to what ends with the flow


def wait_for_local_server() -> None:
    """Until a flow can be run.

    Raises:
        StackError: if the server that `use_local_stores` started does not answer.
        RuntimeError: if it started none, and there is no other.
    """
    from prefect.settings import PREFECT_API_URL  # not before `use_local_stores`

    if not PREFECT_API_URL.value():
        raise RuntimeError("LORI_EXECUTOR=deployment needs PREFECT_API_URL: the Prefect server of the workers.")
    for server in _SERVERS:
        server.wait()
