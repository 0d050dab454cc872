"""Files of results that both the steps and the report read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lori.evaluation.intervals import Intervals, from_metrics
from tasks import tracking
from tasks.results import Handle, Runtime

PAIRS = "pairs.json"
Pairs = Mapping[str, Sequence[Mapping[str, Any]]]  # by method, those of all its seeds


def read_pairs(handles: Sequence[Handle], runtime: Runtime) -> Pairs:
    """What the steps `interference` found, as `measure_pair` says it, with the two `domains`."""
    pairs: dict[str, list[Mapping[str, Any]]] = {}
    for handle in handles:
        found = json.loads((tracking.fetch(runtime, handle) / PAIRS).read_text())
        pairs.setdefault(handle.config["method"], []).extend(found)
    return pairs


INTERVALS = "intervals.json"


def read_intervals(handle: Handle, runtime: Runtime) -> Intervals:
    """What the step `compare` found."""
    return from_metrics(json.loads((tracking.fetch(runtime, handle) / INTERVALS).read_text()))
