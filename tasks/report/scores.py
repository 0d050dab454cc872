"""The cells of a report, grouped into rows, with their means and errors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lori.choices.domains import DOMAINS
from lori.evaluation.scoring import OVER_REFUSAL_RATE, mean_of
from tasks.report.table import Estimate, combine, group_by
from tasks.results import Handle

UNMERGED = "none"  # in place of a merge's name
NO_MERGE = f"{UNMERGED} (an adapter each)"  # likewise, in tables


@dataclass(frozen=True)
class Cell:
    """A result of one seed and its place: `table` is a row of `TABLES`, `row` says which row and seed.

    `row` has `method` and `seed`, and by table: `domain`; `merge` and `weights`; `first_domain` and `new_domain`;
    `setting`, `value` and `domain`.
    `scores` are of `adapter`; in `continual` also those of the adapter it started from (another run).
    """

    table: str
    row: Mapping[str, Any]
    adapter: Handle
    scores: Sequence[Handle]


Seeds = dict[int, dict[str, float]]  # the metrics of each seed


def of_table(cells: Sequence[Cell], table: str) -> list[Cell]:
    """The cells of one table."""
    return [cell for cell in cells if cell.table == table]


def grouped(cells: Sequence[Cell], *labels: str) -> dict[tuple[Any, ...], list[Cell]]:
    """Cells by the values of `labels`, in the order in which those come first."""
    return group_by(cells, lambda cell: tuple(cell.row[label] for label in labels))


def by_seed(cells: Sequence[Cell], *, of_adapter: bool = True) -> Seeds:
    """The metrics of a row; without `of_adapter`, of what its adapters started from."""
    seeds: Seeds = {}
    for cell in cells:
        for scores in cell.scores:
            if (scores.run_id == cell.adapter.run_id) == of_adapter:
                seeds.setdefault(cell.row["seed"], {}).update(scores.metrics)
    return seeds


def estimate_of(seeds: Seeds, metric: str) -> Estimate | None:
    """The mean over seeds and its error; None where no seed has the metric."""
    measured = [(found[metric], found[f"{metric}_se"]) for found in seeds.values() if metric in found]
    return combined(measured) if measured else None


def mean_estimate(seeds: Seeds, metrics: Sequence[str]) -> Estimate | None:
    """The mean over `metrics`, of the seeds that have them all: means over different domains do not compare."""
    complete = [found for found in seeds.values() if all(metric in found for metric in metrics)]
    means = [mean_of([(found[metric], found[f"{metric}_se"]) for metric in metrics]) for found in complete]
    return combined(means) if means else None


def combined(scores: Sequence[tuple[float, float]]) -> Estimate:
    """The mean over seeds of scores with their errors."""
    return combine(*zip(*scores, strict=True))


def metric_columns(cells: Sequence[Cell]) -> dict[str, str]:
    """The headline metric of each domain that was scored, and over-refusal beside safety, with their titles."""
    found = {name for cell in cells for scores in cell.scores for name in scores.metrics}
    columns = {domain.headline: f"{domain.title} ↑" for domain in DOMAINS.values() if domain.headline in found}
    return columns | ({OVER_REFUSAL_RATE: "Over-refusal ↓"} if OVER_REFUSAL_RATE in found else {})


def headlines_of(metrics: Iterable[str]) -> list[str]:
    """Those of them that a mean over domains is of."""
    return [metric for metric in metrics if metric != OVER_REFUSAL_RATE]


def mean_num_trainable(cells: Sequence[Cell]) -> int:
    """Of one adapter, on average: masks of different domains may keep a few entries more on a tie."""
    return round(sum(cell.adapter.metrics["num_trainable"] for cell in cells) / len(cells))


def models_of(cells: Sequence[Cell]) -> list[str]:
    """The adapters of a row, each once."""
    return list(dict.fromkeys(cell.adapter.uri for cell in cells))
