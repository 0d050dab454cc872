"""The flow of the claims as a process: interrupted, it goes on where it stopped and reports all that was asked."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from helpers.waiting import PATIENCE
from tasks.machine import ROOT

COMMAND = [sys.executable, "-m", "flows", "claims", "--profile", "smoke", "-p", "seeds=[0]"]
LINE = re.compile(r"^\[(\d+)/(\d+)\] (.*?)  (cached|[\d.]+ s)$")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("claims")


def start(home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "LORI_DIR": str(home), "LORI_EXECUTOR": "pool", "PYTHONPATH": str(ROOT)}
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "PREFECT_RESULTS_LOCAL_STORAGE_PATH"):
        environment.pop(name, None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(COMMAND, cwd=home, env=environment, **pipes)  # pyright: ignore[reportCallIssue]


@dataclass
class Interrupted:
    """The titles of what was computed before a termination signal, and the processes that were there then."""

    computed: set[str]
    processes: list[psutil.Process]


@pytest.fixture(scope="module")
def interrupted(home: Path) -> Interrupted:
    computed, processes = set(), []
    with start(home) as process:
        assert process.stdout
        for line in process.stdout:
            if found := LINE.match(line):
                computed.add(found[3])
            if len(computed) >= 60 and not processes:
                processes = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) != 0
    return Interrupted(computed, processes)


@pytest.fixture(scope="module")
def resumed(home: Path, interrupted: Interrupted) -> dict[str, str]:
    """By title `cached` or the seconds that it took."""
    output, _ = start(home).communicate(timeout=PATIENCE)
    (report,) = re.findall(r"^Report:  (.*)index\.html$", output, re.MULTILINE)
    (home / "report").symlink_to(report)
    return {found[3]: found[4] for line in output.splitlines() if (found := LINE.match(line))}


def test_an_interruption_leaves_no_process_behind(interrupted: Interrupted) -> None:
    assert len(interrupted.processes) > 2  # a server, and the pool's workers
    _, alive = psutil.wait_procs(interrupted.processes, timeout=PATIENCE)
    assert alive == []


def test_what_was_done_before_an_interruption_is_not_computed_again(
    interrupted: Interrupted, resumed: dict[str, str]
) -> None:
    assert interrupted.computed < resumed.keys()
    assert {resumed[title] for title in interrupted.computed} == {"cached"}
    assert any(took != "cached" for took in resumed.values())


def test_nothing_is_in_mlflow_twice(home: Path, resumed: dict[str, str]) -> None:
    client = MlflowClient(f"sqlite:///{home}/local/mlflow.db")
    experiment = client.get_experiment_by_name("lori-smoke")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert set(Counter(run.data.tags["lori.key"] for run in runs).values()) == {1}


def test_the_report_has_every_part(home: Path, resumed: dict[str, str]) -> None:
    text = (home / "report" / "README.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "The paper's claims",
        "Why: one thing changed at a time",
        "What else to know about the claims",
        "One adapter per domain",
        "Adapters of all domains merged into one",
        "Continual learning",
        "Differences, with 95 % intervals",
        "Interference between domains",
        "Compared with the paper's own figures",
        "How it was made",
    ]
    assert re.findall(r"^\d\. \*\*(.*):\*\*", text, re.MULTILINE) == ["Cannot tell"] * 3  # of one seed
    assert "`python -m flows claims --profile scale` computes" in text.partition("\n\n## ")[0]
    pictures = set(re.findall(r"\]\((\w+\.png)\)", text))
    assert {"claims.png", "interference.png", "overlap.png", "sparsity.png"} <= pictures
    assert all((home / "report" / name).stat().st_size > 5000 for name in [*pictures, "figures.html"])
