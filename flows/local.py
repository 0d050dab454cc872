"""A flow in a terminal, without a server: Prefect and MLflow keep their databases under `.lori/local/`."""

import argparse
import json
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

from tasks.steps import COMPUTE_SETTINGS, state_dir

if TYPE_CHECKING:
    from prefect import Flow

LOCAL_SETTINGS = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the flow prints a line a cell, and failures itself
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # a fifth of the start, and no block is used
    "DO_NOT_TRACK": "1",
}


def use_local_stores() -> None:
    """Settings of a quiet local run; what is set already stays. Only before Prefect and torch are imported."""
    # Apart from the servers' own: one experiment lives in a server or in a file, and one database has one writer
    home = state_dir() / "local" / "prefect"
    results = state_dir() / "local" / "results"
    stores = {"PREFECT_HOME": str(home), "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(results)}
    if os.environ.get("LORI_EXECUTOR") != "deployment":  # workers are found through their server
        os.environ.pop("PREFECT_API_URL", None)
    for name, value in {**LOCAL_SETTINGS, **COMPUTE_SETTINGS, **stores}.items():
        os.environ.setdefault(name, value)
    home.mkdir(parents=True, exist_ok=True)  # Prefect would not make its parent


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
        flow(profile=options.profile, **dict(map(_parameter, options.param)))
    except (ValueError, RuntimeError, PrefectException) as error:
        sys.exit(f"{flow.name}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. What was computed stays: the next run goes on from there.")


def _parameter(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
