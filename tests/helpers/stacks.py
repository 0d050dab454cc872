"""`python -m flows.servers.stack` in a process of its own, and what it started."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tasks.machine import ROOT

ANY_PORTS = {"LORI_PREFECT_PORT": "0", "LORI_MLFLOW_PORT": "0"}  # no test takes a user's, or another test's


def run_stack(*arguments: str, directory: Path, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.servers.stack", *arguments]
    environment = {**os.environ, "LORI_DIR": str(directory), "PYTHONPATH": str(ROOT), **ANY_PORTS, **env}
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def processes_of(directory: Path) -> list[psutil.Process]:
    """Everything that was started for `directory`, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("LORI_DIR") == str(directory):
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
