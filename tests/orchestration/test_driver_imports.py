"""The process that runs a flow is cheap: what it has in the cache it finds without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from prefect.settings import PREFECT_API_URL

from flows.deployments import full_paper
from helpers.stacks import ROOT

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate")
MAX_MIB = 500
IMPORT = """
from importlib import import_module
for entrypoint in {entrypoints}:
    import_module(entrypoint.rpartition(".")[0])
"""
RUN = """
from flows.deployments import full_paper
print(full_paper(profile="smoke", domains=["nlu"], methods=["base"]))
"""
TELL = f"""
import json, re, sys
from pathlib import Path
from tasks.machine import ROOT
peak = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())  # ru_maxrss counts the parent's, too
print(json.dumps({{"heavy": [name for name in {HEAVY} if name in sys.modules], "mib": int(peak[1]) / 1024}}))
"""


def lines_of(code: str, **environment: str) -> list[str]:
    """What a new process prints that runs `code`; its last line is a JSON object of what it has loaded."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LORI_", "MLFLOW_"))
    }
    command = [sys.executable, "-c", code + TELL]
    done = subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_importing_the_flow_of_any_deployment_loads_nothing_heavy() -> None:
    entrypoints = [row["entrypoint"] for row in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
    loaded = json.loads(lines_of(IMPORT.format(entrypoints=entrypoints))[-1])
    assert loaded["heavy"] == []
    assert loaded["mib"] < MAX_MIB


def test_a_run_that_finds_all_in_the_cache_loads_nothing_heavy(state_dir: Path) -> None:
    computed = full_paper(profile="smoke", domains=["nlu"], methods=["base"])["computed"]
    stores = {"LORI_DIR": str(state_dir), "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(state_dir)}
    *_, found, loaded = lines_of(RUN, PREFECT_API_URL=str(PREFECT_API_URL.value()), **stores)
    assert found == str({"computed": 0, "cached": computed})
    assert json.loads(loaded)["heavy"] == []
    assert json.loads(loaded)["mib"] < MAX_MIB
