"""A driver that only asks for cells: `python -m benchmarks.driver '{"profile": "smoke"}'` says what that took."""

from flows.servers.local import use_local_stores, wait_for_local_server

use_local_stores()

import json  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from flows.adapt import single_domain  # noqa: E402
from flows.continual import continual_learning  # noqa: E402
from flows.merge import merging  # noqa: E402
from prefect import flow  # noqa: E402
from prefect.futures import wait  # noqa: E402

from flows.study.run import THREADS, ask_all, begin  # noqa: E402
from tasks.engine.cells import recalled, submit_task  # noqa: E402


@flow(task_runner=THREADS)
def cells(profile: str, merge_methods: list[str] | None = None) -> dict[str, Any]:
    """Seconds from the first cell that is asked for to the last that is there, and what the jobs took themselves."""
    study = begin(profile, merge_methods=merge_methods)
    started = time.perf_counter()
    stages = (single_domain, merging, continual_learning)
    with recalled(lambda submit: ask_all(study, stages, submit)):
        asked = list(ask_all(study, stages, submit_task).titles)
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
