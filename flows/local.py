"""A flow in a terminal: Prefect and MLflow keep their databases under `.lori/local/`, and one process is all.

The Prefect server of such a run starts before anything that takes long is imported, so that both take their time
together. Prefect would start one as well, when it is first asked for, and leave it behind where its parent is killed.
"""

import argparse
import atexit
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.services import LOCALHOST, Service, choose_port, start, stop, wait_until_healthy
from tasks.state import COMPUTE_SETTINGS, state_dir

if TYPE_CHECKING:
    from prefect import Flow

LOCAL_SETTINGS = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the flow prints a line a cell, and failures itself
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # a fifth of the start, and no block is used
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_UI_URL": "",  # no links to a server that ends with the flow
    "DO_NOT_TRACK": "1",
}


_SERVERS: list[Service] = []  # of this process: one, or none where jobs are found through a server that stays


def use_local_stores() -> None:
    """Settings of a quiet local run, and its server; what is set already stays. Only before Prefect is imported."""
    # Apart from the servers' own: one experiment lives in a server or in a file, and one database has one writer
    home = state_dir() / "local" / "prefect"
    results = state_dir() / "local" / "results"
    stores = {"PREFECT_HOME": str(home), "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(results)}
    has_server = os.environ.get("LORI_EXECUTOR") == "deployment"  # workers are found through it
    for name, value in {**LOCAL_SETTINGS, **COMPUTE_SETTINGS, **stores}.items():
        os.environ.setdefault(name, value)
    home.mkdir(parents=True, exist_ok=True)  # Prefect would not make its parent
    if not has_server:
        _start_server()


def _start_server() -> None:
    """As Prefect's own `SubprocessASGIServer`, which can't be had without importing the server here."""
    address = ["--host", LOCALHOST, "--port", str(port := choose_port())]
    app = ["--factory", "prefect.server.api.server:create_app", "--log-level", "error"]
    # setpriv: it ends with this process, however that ends
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "uvicorn", *app, *address]
    ephemeral = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    log_dir = state_dir() / "logs"
    server = start("prefect-local", command, log_dir=log_dir, cwd=Path.cwd(), env={**os.environ, **ephemeral})
    atexit.register(stop, server)
    _SERVERS.append(server)
    os.environ["PREFECT_API_URL"] = f"http://{LOCALHOST}:{port}/api"


def wait_for_server() -> None:
    """Until a flow can be run.

    Raises:
        StackError: if the server that `use_local_stores` started does not answer.
    """
    from tasks import steps, tracking  # not before the server starts: it is MLflow, and takes as long

    tracking.import_store(steps.local_runtime().tracking_uri)
    for server in _SERVERS:
        wait_until_healthy(server, f"{os.environ['PREFECT_API_URL']}/health")


def main(flow: "Flow[..., Any]") -> None:
    """Run `flow` with the parameters on the command line; what a user can mend is one sentence, not a traceback."""
    from prefect.exceptions import PrefectException  # not before `use_local_stores`

    parser = argparse.ArgumentParser(description=(flow.description or "").partition("\n")[0])
    parser.add_argument("--profile", default="smoke", help="a row of PROFILES; smoke if left out")
    parser.add_argument("-p", "--param", action="append", default=[], metavar="NAME=VALUE", help="VALUE: JSON or text")
    options = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # transformers' to PEFT, nothing that we could mend
    # Without a handler a termination would be no exit, and Prefect's own server would be left running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        wait_for_server()
        flow(profile=options.profile, **dict(map(_parameter, options.param)))
    except (ValueError, RuntimeError, PrefectException) as error:  # StackError among them
        sys.exit(f"{flow.name}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. What was computed stays: the next run goes on from there.")


def _parameter(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
