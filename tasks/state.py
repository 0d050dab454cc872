"""What every process of this machine shares: where its state lies, and how it computes. It imports nothing heavy."""

import os
from pathlib import Path

# Of every process that computes: sums over more threads have other last bits, and two processes share the cores
COMPUTE_SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def state_dir() -> Path:
    """Where this machine keeps databases, results, locks and logs: `LORI_DIR`, or `.lori` in the working directory."""
    return Path(os.environ.get("LORI_DIR", ".lori")).resolve()
