"""Prefect's server on SQLite, as Prefect and as `flows.servers.sqlite_server` start it, while several clients write.

python -m benchmarks.prefect_server      # about eight minutes on 2 cores
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flows.servers.services import choose_port, start, stop, wait_until_healthy

ROOT = Path(__file__).parents[1]
NUM_CLIENTS, SECONDS, ROUNDS = 4, 60, 2
SERVERS = {
    "Prefect's": ["prefect", "--no-prompt", "server", "start"],
    "flows.servers.sqlite_server": ["flows.servers.sqlite_server"],
}
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_COLORS": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOG_RETRYABLE_ERRORS": "true",  # else what is refused is not in its log
    "PREFECT_UI_ENABLED": "false",
}


def write() -> None:
    """As one client: flow runs from their start to their end, with the heartbeats that the automation reads."""
    import httpx
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.events import emit_event
    from prefect.states import Completed, Pending, Running

    done, failed, longest = 0, 0, 0.0
    started = time.monotonic()
    with get_client(sync_client=True) as client:
        while time.monotonic() < started + SECONDS:
            began = time.monotonic()
            try:
                run = client.create_flow_run(flow(write))
                for state in (Pending(), Running(), Completed()):
                    client.set_flow_run_state(run.id, state)
                    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
                    emit_event(event="prefect.flow-run.heartbeat", resource=resource)
                done += 1
            except httpx.HTTPError:  # after as many tries as the client makes
                failed += 1
            longest = max(longest, time.monotonic() - began)
    minutes = (time.monotonic() - started) / 60
    print(json.dumps({"rate": done / minutes, "failed": failed, "longest": longest}))


def measure(name: str) -> dict[str, Any]:
    """What `NUM_CLIENTS` clients find within `SECONDS` on a server that is new, with our pools and automation."""
    with tempfile.TemporaryDirectory() as scratch:
        port = choose_port()
        api = f"http://127.0.0.1:{port}/api"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        env = {**inherited, **SETTINGS, "PREFECT_HOME": scratch, "PREFECT_API_URL": api, "LORI_DIR": scratch}
        command = [sys.executable, "-m", *SERVERS[name], "--port", str(port)]
        service = start("prefect", command, log_dir=Path(scratch), cwd=ROOT, env=env)
        try:
            wait_until_healthy(service, f"{api}/health")
            subprocess.run(
                [sys.executable, "-m", "flows.servers.bootstrap"], cwd=ROOT, env=env, check=True, capture_output=True
            )
            client = [sys.executable, "-m", "benchmarks.prefect_server", "--client"]
            options = {"cwd": ROOT, "env": env, "stdout": subprocess.PIPE, "text": True}
            clients = [subprocess.Popen(client, **options) for _ in range(NUM_CLIENTS)]
            told = [json.loads(process.communicate()[0]) for process in clients]
            log = service.log.read_text()
        finally:
            stop(service)
    return {
        "server": name,
        "flow runs a minute": sum(each["rate"] for each in told),
        "given up": sum(each["failed"] for each in told),
        "s the longest flow run": max(each["longest"] for each in told),
        "transactions refused": log.count("OperationalError) database is locked"),
    }


def main() -> None:
    from benchmarks.measure import goal, report  # with torch, which no client needs

    rows = [measure(name) for number in range(ROUNDS) for name in (SERVERS if number % 2 else reversed(SERVERS))]
    ours, theirs = ([row for row in rows if row["server"] == name] for name in reversed(SERVERS))
    ratio = sum(row["flow runs a minute"] for row in ours) / sum(row["flow runs a minute"] for row in theirs)
    goals = [
        goal("flow runs a minute, ours / Prefect's", ratio, "≥", 1),
        goal("transactions refused, ours", sum(row["transactions refused"] for row in ours), "≤", 0),
        goal("s the longest flow run, ours", max(row["s the longest flow run"] for row in ours), "≤", 10),
    ]
    report("prefect_server", rows, goals=goals, clients=NUM_CLIENTS, seconds=SECONDS)
    for line in goals:
        print(line)


if __name__ == "__main__":
    write() if sys.argv[1:] == ["--client"] else main()
