"""Intervals as they are logged and shown; `stats.py` computes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

QUANTILE = 1.96  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, in percentage points, from `num_seeds` seeds; without ends where none is known."""

    mean: float
    low: float
    high: float
    num_seeds: int


Intervals = Mapping[str, Mapping[str, Interval]]  # by row or pair of rows, and domain


def to_metrics(intervals: Intervals) -> dict[str, float]:
    """Flat and finite, as JSON and MLflow want numbers: ends that are not known are left out."""
    numbers = {
        f"{row}/{domain}/{name}": float(getattr(interval, name))
        for row, by_domain in intervals.items()
        for domain, interval in by_domain.items()
        for name in Interval.__dataclass_fields__
    }
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def from_metrics(metrics: Mapping[str, float]) -> dict[str, dict[str, Interval]]:
    """What `to_metrics` flattened."""
    found: dict[str, dict[str, Interval]] = {}
    for place in dict.fromkeys(name.rpartition("/")[0] for name in metrics):
        row, _, domain = place.rpartition("/")
        low, high = metrics.get(f"{place}/low", -math.inf), metrics.get(f"{place}/high", math.inf)
        interval = Interval(metrics[f"{place}/mean"], low, high, int(metrics[f"{place}/num_seeds"]))
        found.setdefault(row, {})[domain] = interval
    return found
