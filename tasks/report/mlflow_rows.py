"""The rows of the report's tables as runs of their own: a line of a table is a line of MLflow's page of runs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks import tracking
from tasks.report.table import Estimate, Table, Value
from tasks.results import Runtime, step_key

VERSION = 1
SETTINGS = ("base_model", "rank", "sparsity", "scope", "seeds")
DECIMALS = 2  # MLflow's page shows all that it gets; the report's CSV files have the rest


@dataclass(frozen=True)
class Row:
    """A row as a run: `labels` say which it is, `metrics` are its numbers, `models` the adapters behind them."""

    suite: str
    labels: Mapping[str, str]
    metrics: Mapping[str, float]
    models: Sequence[str]

    @property
    def name(self) -> str:
        """For people, and in charts: `lori-s · concat`."""
        return " · ".join(text for name, text in self.labels.items() if name != "weights")

    @property
    def digest(self) -> str:
        """Of what the run would say."""
        text = json.dumps([self.labels, self.metrics, self.models], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def log_rows(tables: Mapping[str, Table], about: Mapping[str, Any], runtime: Runtime) -> None:
    """A run a row, with its adapters as inputs, and the views of them. One that is there as it is costs nothing."""
    known = tracking.find_tags(runtime, "result", "lori.row")
    params = {"profile": about["name"], **{name: about[name] for name in SETTINGS if name in about}}
    rows = _rows(tables)
    for row in rows:
        key = step_key("result", VERSION, about, {"suite": row.suite, **row.labels})
        if known.get(key) != row.digest:
            _log_row(key, row, params, runtime)
    tracking.provision_views(runtime, {name for row in rows for name in row.metrics})


def _rows(tables: Mapping[str, Table]) -> list[Row]:
    return [
        Row(suite, _labels(values), _metrics(values), models)
        for suite, table in tables.items()
        for values, models in zip(table.rows, table.models, strict=True)
    ]


def _labels(values: Mapping[str, Value]) -> dict[str, str]:
    return {name: value for name, value in values.items() if isinstance(value, str) and name != "share"}


def _metrics(values: Mapping[str, Value]) -> dict[str, float]:
    """Percentages with their standard errors, and what is counted or measured; yes is 1, no is 0."""
    metrics: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Estimate):
            metrics |= {name: round(value.mean, DECIMALS), f"{name}_se": round(value.error, DECIMALS)}
        elif isinstance(value, int | float):
            metrics[name] = float(value)
    return metrics


def _log_row(key: str, row: Row, settings: Mapping[str, Any], runtime: Runtime) -> None:
    tags = {
        "lori.role": "result",
        "lori.suite": row.suite,
        "lori.method": row.labels["method"],
        "lori.base_model": settings["base_model"],
        **tracking.colour_of(row.labels["method"]),
    }
    setting = row.labels.get("setting", "").replace(" ", "_")
    changed = {setting: row.labels["value"]} if setting in settings else {}
    params = {"row": row.name, **row.labels, **settings, **changed}
    with tracking.logged_run(runtime, key, row.name, tags=tags, params=params) as run_id:
        tracking.link_models(runtime, run_id, row.models)
        tracking.log_metrics(runtime, run_id, row.metrics)
        tracking.set_tag(runtime, run_id, "lori.row", row.digest)  # last: what has it is whole
