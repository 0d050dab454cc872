"""Intervals as they are logged and shown; `bootstrap.py` computes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lori.evaluation.row_names import RowName

QUANTILE = 1.96  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, in percentage points, from `num_seeds` seeds; without ends where none is known."""

    mean: float
    low: float
    high: float
    num_seeds: int


Intervals = Mapping[RowName, Mapping[str, Interval]]  # by row or difference of rows, and domain


def to_metrics(intervals: Intervals) -> dict[str, float]:
    """Flat and finite, as JSON and MLflow want numbers: ends that are not known are left out."""
    numbers = {
        f"{row}/{domain}/{name}": float(getattr(interval, name))
        for row, by_domain in intervals.items()
        for domain, interval in by_domain.items()
        for name in Interval.__dataclass_fields__
    }
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def from_metrics(metrics: Mapping[str, float]) -> dict[RowName, dict[str, Interval]]:
    """What `to_metrics` flattened."""
    found: dict[RowName, dict[str, Interval]] = {}
    for place in dict.fromkeys(name.rpartition("/")[0] for name in metrics):
        row, _, domain = place.rpartition("/")
        low, high = metrics.get(f"{place}/low", -math.inf), metrics.get(f"{place}/high", math.inf)
        interval = Interval(metrics[f"{place}/mean"], low, high, int(metrics[f"{place}/num_seeds"]))
        found.setdefault(RowName.parse(row), {})[domain] = interval
    return found
