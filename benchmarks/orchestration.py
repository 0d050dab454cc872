"""What orchestration costs beside the work: a cell, a cached one, a process, a job of a worker; a driver's memory.

python -m benchmarks.orchestration            # smoke profile, and a worker; six minutes on 2 cores; needs Postgres
python -m benchmarks.orchestration --scale    # and the scale profile, ten minutes more
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from tests.cluster import Cluster, cluster
from tests.databases import BIN, postgres_server

from benchmarks.measure import goal, report

ROUNDS = 5
SMOKE = {"profile": "smoke", "merge_methods": ["concat", "linear", "ties"]}
SCALE = {"profile": "scale"}
PASSWORD = "lori"  # of a database that is gone at the end
WORK = re.compile(r"([\d.]+) s, and")  # in the state of a flow run of lori-job


def run(directory: Path, *command: str, **settings: str) -> str:
    """What a new process prints; its stores are in `directory`."""
    own = ("PREFECT_", "LORI_", "MLFLOW_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**inherited, "LORI_DIR": str(directory), **settings},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def drive(directory: Path, study: dict[str, Any], **settings: str) -> dict[str, Any]:
    return json.loads(run(directory, "benchmarks.driver", json.dumps(study), **settings).splitlines()[-1])


def process_seconds(directory: Path, profile: str) -> float:
    """Of `python -m flows full-paper` from its start to its end, servers and report and all; the median."""
    seconds = []
    for _ in range(ROUNDS + 1):  # the first writes the report
        started = time.perf_counter()
        run(directory, "flows.paper", "--profile", profile)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def profile_costs(directory: Path, study: dict[str, Any], **settings: str) -> dict[str, Any]:
    """Of one profile: computed by `settings`' executor, then found in the cache."""
    computed = drive(directory, study, **settings)
    assert computed["cached"] == 0, computed
    cached = [drive(directory, study) for _ in range(ROUNDS)]
    assert all(again["cached"] == again["cells"] == computed["cells"] for again in cached)
    beyond = (computed["seconds"] - computed["work"]) / computed["cells"]
    return {
        "profile": study["profile"],
        "cells": computed["cells"],
        "inline: s a cell beyond its work": beyond if not settings else "",
        "s of the cheapest cell, all of it": computed["least work"] + max(beyond, 0),
        "cached: s in the flow body": statistics.median(again["seconds"] for again in cached),
        "cached: s as a process": process_seconds(directory, study["profile"]),
        "cached: driver's MiB": max(again["MiB"] for again in cached),
    }


def job_costs(directory: Path, **prefect_server: str) -> list[float]:
    """Seconds of each job of a worker beyond its work, as the driver sees it: asking, polls, processes, engine."""
    with cluster(directory, **prefect_server) as made:
        made.start_worker("driver", "lori-cpu")
        made.start_worker("gpu", "lori-gpu", limit=2, LORI_GPUS="cpu0,cpu1", OMP_NUM_THREADS="1")
        output, _ = made.run_paper(domains=["nlu"], methods=["base"]).communicate()
        (driver,) = made.flow_runs("lori smoke")
        assert driver.state is not None
        assert driver.state.is_completed(), output
        return [waited - work for waited, work in _jobs(made, driver.id)]


def _jobs(made: Cluster, driver_id: Any) -> list[tuple[float, float]]:
    """Of each job: seconds of the task that waited for it, and of the step itself."""
    with made.client() as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[driver_id])))
    jobs = []
    for task in tasks:
        for job in made.flow_runs(task.name):
            work = WORK.match(job.state.message or "") if job.state else None
            if work:
                jobs.append((task.total_run_time.total_seconds(), float(work[1])))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", action="store_true", help="the scale profile, too: ten minutes more")
    options = parser.parse_args()
    if BIN is None:
        parser.error("Prefect's server runs on Postgres, too: apt-get install postgresql")
    with tempfile.TemporaryDirectory() as scratch:
        rows = [profile_costs(Path(scratch, "smoke"), SMOKE)]
        if options.scale:
            rows.append(profile_costs(Path(scratch, "scale"), SCALE, LORI_EXECUTOR="pool"))
        on_sqlite = job_costs(Path(scratch, "sqlite"))
        with postgres_server(PASSWORD, "prefect") as address:
            url = f"postgresql+asyncpg://lori:{PASSWORD}@{address}/prefect"
            on_postgres = job_costs(Path(scratch, "postgres"), PREFECT_SERVER_DATABASE_CONNECTION_URL=url)
    smoke, largest = rows[0], rows[-1]
    goals = [
        goal("s a computed cell beyond its work, inline", smoke["inline: s a cell beyond its work"], "≤", 0.3),
        goal(  # 60 in a second
            f"{smoke['cells']} cached cells, s in the flow body",
            smoke["cached: s in the flow body"],
            "≤",
            round(smoke["cells"] / 60, 2),
        ),
        goal(f"{largest['profile']}, cached, s as a process", largest["cached: s as a process"], "≤", 15),
        goal(f"{largest['profile']}, cached, driver's MiB", largest["cached: driver's MiB"], "≤", 500),
        *(
            goal(f"s a job of a worker beyond its work, Prefect on {database}, {which}", of(jobs), "≤", 15)
            for database, jobs in {"Postgres": on_postgres, "SQLite": on_sqlite}.items()
            for which, of in {"the median": statistics.median, "the largest": max}.items()
        ),
    ]
    report("orchestration", rows, goals=goals, rounds=ROUNDS)
    for line in goals:
        print(line)


if __name__ == "__main__":
    main()
