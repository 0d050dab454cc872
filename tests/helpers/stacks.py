"""`python -m flows.servers.stack` in a process of its own, and what it started."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tasks.machine import ROOT


def run_stack(*arguments: str, directory: Path, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.servers.stack", *arguments]
    environment = {**os.environ, "LORI_DIR": str(directory), "PYTHONPATH": str(ROOT), **env}
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
