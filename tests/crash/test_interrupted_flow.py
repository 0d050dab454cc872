"""`python -m flows.…` in a terminal, ended while it computes: its own Prefect server ends with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stacks import ROOT, processes_of
from waiting import PATIENCE, wait_until

FLOW = [sys.executable, "-m", "flows", "full-paper", "-p", 'domains=["nlu"]', "-p", 'methods=["lora"]']


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.once)]
)
def test_an_interrupted_flow_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    own = ("PREFECT_", "LORI_", "MLFLOW_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    env |= {"LORI_DIR": str(tmp_path), "LORI_EXECUTOR": "pool", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(FLOW, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    said = ""
    while not (line := process.stdout.readline()).startswith("[1/"):
        assert line, f"It ended, and no cell was done: {said}"
        said += line
    assert any("uvicorn" in each.cmdline() for each in processes_of(tmp_path))
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    wait_until(lambda: not processes_of(tmp_path), "for the server and the workers to end")
