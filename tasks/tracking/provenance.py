"""What a result was made with: commit, library versions, machine."""

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "peft", "prefect", "mlflow")
UNKNOWN = "unknown"


@cache
def provenance() -> dict[str, str]:
    """Tags of a run. `lori.dirty` is `true` where tracked or new files differ from `lori.commit`.

    Outside a git checkout both are `unknown`. Read once per process: a commit made while it works changes nothing.
    """
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {
        "lori.commit": commit or UNKNOWN,
        "lori.dirty": UNKNOWN if changes is None else str(bool(changes)).lower(),
        "lori.python": platform.python_version(),
        "lori.cpu": _cpu_model(),
        **{f"lori.{name}": version(name) for name in LIBRARIES},
    }


def _git(*arguments: str) -> str | None:
    """What git prints, None where there is no git, no checkout or no commit yet."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
