"""The deployments of prefect.yaml, and the names that they must have."""

import yaml

from tasks.machine import ROOT

NAMES = {"full-paper", "adapt", "merge", "continual", "ablate", "claims", "sweep", "published", "daily", "gpu"}
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
