"""Measure how much one method's adapters of different domains interfere, from their files."""

import json
import tempfile
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from lori.adapters.interference import measure_pair
from lori.adapters.masks import load_masks
from lori.config import InterferenceConfig
from tasks import tracking
from tasks.result_files import PAIRS
from tasks.results import Handle, Runtime


def measure_interference(
    config: InterferenceConfig,
    *,
    adapters: list[Handle],
    masks: list[Handle] | None = None,
    key: str,
    runtime: Runtime,
) -> Handle:
    """Every pair of `adapters`, and of the `masks` that they were trained in, which are in the same order."""
    directories = [tracking.fetch(runtime, adapter) for adapter in adapters]
    loaded = [load_masks(tracking.fetch(runtime, mask)) for mask in masks or []]
    pairs = []
    for one, other in combinations(range(len(adapters)), 2):
        found = measure_pair(
            directories[one], directories[other], masks=(loaded[one], loaded[other]) if loaded else None
        )
        pairs.append({"domains": [config.domains[one], config.domains[other]], **found})
    name = f"interference-{config.method}-seed{config.seed}"
    tags = {"lori.role": "interference", "lori.method": config.method, "lori.seed": str(config.seed)}
    with (
        tracking.logged_run(runtime, key, name, tags=tags, params=asdict(config)) as run_id,
        tempfile.TemporaryDirectory() as scratch,
    ):
        (Path(scratch) / PAIRS).write_text(json.dumps(pairs, indent=2))
        uri, sha256 = tracking.log_directory(runtime, run_id, Path(scratch), "interference")
        tracking.link_inputs(runtime, run_id, [*adapters, *(masks or [])])
        worst = max(pairs, key=lambda pair: abs(pair["cosine"]))
        metrics = {"largest_cosine": abs(worst["cosine"])}
        tracking.log_metrics(runtime, run_id, metrics)
    return Handle("interference", key, name, run_id, uri, sha256, metrics, asdict(config))
