"""A driver that only asks for cells: `python -m benchmarks.driver '{"profile": "smoke"}'` says what that took."""

from flows.servers.local import use_local_stores, wait_for_local_server

use_local_stores()

import json  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from prefect import flow  # noqa: E402
from prefect.futures import wait  # noqa: E402

from flows.deployments import THREADS  # noqa: E402
from flows.study.run import prepare_study  # noqa: E402
from flows.tables import STAGES  # noqa: E402
from tasks.engine.cells import Future, compute, submit_cells  # noqa: E402
from tasks.engine.prefetch import looked_up  # noqa: E402


@flow(task_runner=THREADS)
def cells(profile: str, merge_methods: list[str] | None = None) -> dict[str, Any]:
    """Seconds from the first cell that is asked for to the last that is there, and what the jobs took themselves."""
    study = prepare_study(profile, merge_methods=merge_methods)
    started = time.perf_counter()
    for stage in STAGES.values():
        stage(study)
    with looked_up([*study.cells.by_key.values()], compute, refreshed=(), told=study.told):
        futures: dict[str, Future] = {}
        submit_cells(study.cells, futures, study.told)
        asked = [*futures.values()]
        wait(asked)
    seconds = time.perf_counter() - started
    work = [future.result()["seconds"] for future in asked]
    return {
        "cells": len(asked),
        "cached": sum(future.state.name == "Cached" for future in asked),
        "seconds": seconds,
        "work": sum(work),
        "least work": min(work),
    }


if __name__ == "__main__":
    wait_for_local_server()
    taken = cells(**json.loads(sys.argv[1]))
    peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())  # ru_maxrss counts the parent's, too
    assert peak
    print(json.dumps({**taken, "MiB": int(peak[1]) / 1024}))
