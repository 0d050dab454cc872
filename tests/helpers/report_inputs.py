"""Cells, intervals and pairs for tests of the report."""

from collections.abc import Mapping
from typing import Any

from helpers.stores import Store, open_run
from lori.evaluation.intervals import Interval, Intervals
from lori.evaluation.row_names import RowName
from tasks.report.table import Table
from tasks.report.write import Analyses, Cell, write_report
from tasks.result_files import Pairs
from tasks.results import Handle


def named(intervals: Mapping[str, Mapping[str, Interval]]) -> Intervals:
    return {RowName.parse(name): found for name, found in intervals.items()}


HEADLINES = {"nlu": "nlu/accuracy", "math": "math/accuracy", "code": "code/pass_at_1"}
HEADLINES["safety"] = "safety/refusal_rate"
SETTINGS = {
    "name": "smoke",
    "base_model": "scale@0123",
    "seeds": (0, 1),
    "rank": 6,
    "wall_seconds": 75.0,
    "num_computed": 3,
    "num_cached": 4,
}
CONFIG = {
    "base_model": "scale@0123", "rank": 6, "alpha": 12, "learning_rate": 0.003, "num_epochs": 1, "batch_size": 16,
    "max_length": 160,
}  # fmt: skip
NO_TABLES = {name: Table(name, {}, []) for name in ("claims", "single", "merging", "continual", "ablations")}
INTERVALS = named(
    {
        "lori-d": {"nlu": Interval(85.0, 82.0, 88.0, 5), "mean": Interval(85.0, 82.0, 88.0, 5)},
        "lori-d − lora": {"nlu": Interval(1.0, -1.5, 2.5, 5), "mean": Interval(1.0, -1.5, 2.5, 5)},
        "lori-s − lora": {"nlu": Interval(3.0, 1.0, 5.0, 5), "mean": Interval(3.0, 1.0, 5.0, 5)},
        "lori-s-fresh-a − lori-s": {"mean": Interval(-4.0, -6.0, -2.0, 5)},
        "lori-s-trained-a − lori-s": {"mean": Interval(-1.0, -3.0, 1.0, 5)},
        "lori-s-random-mask − lori-s": {"mean": Interval(-4.0, -6.0, -2.0, 4)},
        "lori-s − dora": {"mean": Interval(1.0, 0.5, 1.5, 5)},
        "lori-s kept − lora kept": {"safety": Interval(9.0, 2.0, 16.0, 4), "mean": Interval(9.0, 2.0, 16.0, 4)},
    }
)


def adapter(run_id: str, *, num_trainable: int = 100, **config: Any) -> Handle:
    metrics = {"num_trainable": float(num_trainable), "train_seconds": 60.0}
    return Handle("adapter", "key", f"adapter-{run_id}", run_id, "models:/m-1", "0", metrics, {**CONFIG, **config})


def scores(run_id: str, domain: str, value: float, error: float = 1.0, **more: float) -> Handle:
    metrics = {HEADLINES[domain]: value, f"{HEADLINES[domain]}_se": error, **more}
    return Handle("scores", "key", f"scores-{domain}", run_id, f"runs:/{run_id}/scores", "0", metrics)


def single(method: str, domain: str, value: float, *, seed: int = 0, num_trainable: int = 100, **more: float) -> Cell:
    run_id = f"{method}-{domain}-{seed}"
    trained = adapter(run_id, num_trainable=num_trainable, method=method, domain=domain)
    row = {"method": method, "domain": domain, "seed": seed}
    return Cell("single", row, trained, [scores(run_id, domain, value, **more)])


def merged(method: str, merge: str, values: dict[str, float], weights: tuple[float, ...] = (0.5, 0.5)) -> Cell:
    run_id = f"{method}-{merge}"
    row = {"method": method, "merge": merge, "weights": weights, "seed": 0}
    measured = [scores(run_id, domain, value) for domain, value in values.items()]
    return Cell("merging", row, adapter(run_id, method=merge, density=0.7), measured)


def tracked(store: Store, cell: Cell) -> Cell:
    """The cell on a run that MLflow has."""
    run_id = open_run(store.runtime, cell.adapter.run_id)
    config, metrics = cell.adapter.config, cell.adapter.metrics
    trained = Handle("adapter", "key", cell.adapter.name, run_id, "models:/m-1", "0", metrics, config)
    measured = [Handle("scores", "key", s.name, run_id, f"runs:/{run_id}/s", "0", s.metrics) for s in cell.scores]
    return Cell(cell.table, cell.row, trained, measured)


def report(
    store: Store,
    cells: list[Cell],
    *,
    intervals: Intervals | None = None,
    pairs: Pairs | None = None,
    is_complete: bool = True,
    **settings: Any,
) -> tuple[Handle, str]:
    about = {**SETTINGS, **settings}
    analyses = Analyses(intervals or {}, pairs or {})
    return write_report(cells, analyses, settings=about, is_complete=is_complete, runtime=store.runtime)


def pair_of(domains: list[str], cosine: float, overlap: float | None) -> dict[str, Any]:
    modules = {
        f"model.layers.{layer}.{name}": {
            "cosine": sign * cosine,
            "kept": [0.1, 0.2] if overlap else None,
            "z": sign * 3.0 if overlap else None,
        }
        for layer, name, sign in ((1, "q_proj", 1), (0, "q_proj", -1), (10, "mlp.up_proj", 0))
    }
    return {
        "domains": domains,
        "cosine": cosine,
        "alignment": 0.05,
        "chance": 0.04,
        "overlap": overlap,
        "modules": modules,
    }


def found(low: float, high: float, num_seeds: int = 5) -> Interval:
    return Interval((low + high) / 2, float(low), float(high), num_seeds)


def of_base(store: Store, base: str, cells: list[Cell], **settings: Any) -> str:
    """The Markdown of a complete report on another base."""
    return report(store, cells, base_model=base, **settings)[1]


def section(markdown: str) -> list[list[str]]:
    text = markdown.partition("## Compared with other base models\n\n")[2].partition("\n\n#")[0]
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[text.strip() for text in line.strip("|").split("|")] for line in lines]
