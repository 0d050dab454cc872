"""The tables of the paper: which cells make a row, and which of their metrics its columns."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from lori.choices.domains import DOMAINS
from lori.evaluation.row_names import REFERENCE, THEN, TITLES
from lori.evaluation.scoring import OVER_REFUSAL_RATE, mean_of, validation_score
from tasks.report.scores import (
    NO_MERGE,
    Cell,
    by_seed,
    combined,
    estimate_of,
    grouped,
    headlines_of,
    mean_estimate,
    mean_num_trainable,
    metric_columns,
    models_of,
    of_table,
)
from tasks.report.table import Estimate, Table, Value, group_by

MEAN_FIRST = {"mean": "Mean ↑"}  # before the scores that it is of: the last column of a wide table is lost first


def _scored(cells: Sequence[Cell], metrics: Iterable[str]) -> dict[str, Value]:
    """The scores of a row: each metric, and the mean over domains."""
    seeds = by_seed(cells)
    scored: dict[str, Value] = {metric: estimate_of(seeds, metric) for metric in metrics}
    return scored | {"mean": mean_estimate(seeds, headlines_of(metrics))}


def single_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """One adapter per domain: a row a method."""
    metrics, groups = metric_columns(cells), grouped(cells, "method")
    sizes = {method: mean_num_trainable(group) for (method,), group in groups.items()}
    reference = sizes.get(REFERENCE)
    rows: list[dict[str, Value]] = [
        {
            "method": method,
            "num_trainable": sizes[method],
            "share": f"{sizes[method] / reference:.2%}" if reference else None,
            **_scored(group, metrics),
        }
        for (method,), group in groups.items()
    ]
    columns = {
        "method": "Method",
        "num_trainable": "Trainable",
        "share": f"Of {TITLES[REFERENCE]}'s",
        **MEAN_FIRST,
        **metrics,
    }
    return Table("One adapter per domain", columns, rows, [*map(models_of, groups.values())])


def merging_table(cells: Sequence[Cell], all_cells: Sequence[Cell]) -> Table:
    """One adapter for all domains: a row a method and merge, under the method's unmerged adapters where known."""
    metrics = metric_columns(cells)
    single = grouped(of_table(all_cells, "single"), "method")
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for (method,), of_method in grouped(cells, "method").items():
        groups |= {(method, NO_MERGE, ""): single[method,]} if (method,) in single else {}
        groups |= grouped(of_method, "method", "merge", "weights")
    rows: list[dict[str, Value]] = [
        {"method": method, "merge": merge, "weights": _weights(weights), **_scored(group, metrics)}
        for (method, merge, weights), group in groups.items()
    ]
    columns = {"method": "Method", "merge": "Merge", "weights": "Weights", **MEAN_FIRST, **metrics}
    return Table("Adapters of all domains merged into one", columns, rows, [*map(models_of, groups.values())])


def _weights(weights: Sequence[float] | str) -> str:
    return ", ".join(f"{weight:g}" for weight in (weights[:1] if len(set(weights)) == 1 else weights))


def continual_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """A first domain, then another: a row a method and pair."""
    rows: list[dict[str, Value]] = []
    groups = grouped(cells, "method", "first_domain", "new_domain")
    for (method, first, new), group in groups.items():
        before, after = by_seed(group, of_adapter=False), by_seed(group)
        kept = DOMAINS[first].headline
        rows.append(
            {
                "method": method,
                "domains": f"{first}{THEN}{new}",
                "first_before": estimate_of(before, kept),
                "first_after": estimate_of(after, kept),
                "over_refusal_before": estimate_of(before, OVER_REFUSAL_RATE),
                "over_refusal_after": estimate_of(after, OVER_REFUSAL_RATE),
                "new_after": estimate_of(after, DOMAINS[new].headline),
            }
        )
    columns = {
        "method": "Method",
        "domains": "Domains",
        "first_before": "First domain before ↑",
        "first_after": "First domain after ↑",
        "over_refusal_before": "Over-refusal before ↓",
        "over_refusal_after": "Over-refusal after ↓",
        "new_after": "New domain ↑",
    }
    return Table("Continual learning", columns, rows, [*map(models_of, groups.values())])


def ablations_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """One setting changed at a time: a row a method and value. A merge has no entries that train, but a norm."""
    metrics, groups = metric_columns(cells), grouped(cells, "method", "setting", "value")
    rows: list[dict[str, Value]] = []
    for (method, setting, value), group in groups.items():
        norms = [made["update_norm"] for cell in group if "update_norm" in (made := cell.adapter.metrics)]
        size = mean_num_trainable(group) if "num_trainable" in group[0].adapter.metrics else None
        row: dict[str, Value] = {"method": method, "setting": setting, "value": value, "num_trainable": size}
        row |= {"update_norm": fmean(norms)} if norms else {}
        rows.append(row | _scored(group, metric_columns(group)))  # continual learning has a mean over its two domains
    columns = {"method": "Method", "setting": "Setting", "value": "Value"}
    columns |= {"num_trainable": "Trainable", "update_norm": "‖ΔW‖", **MEAN_FIRST, **metrics}
    return Table("One setting changed at a time", columns, rows, [*map(models_of, groups.values())])


def sweep_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """Learning rates: a row a method and factor, with its scores on validation rows, and which one is chosen.

    Only rates that were tried on all domains and seeds are to be chosen from. A choice at the edge of what was tried
    may have a better one beyond it.
    """
    groups = grouped(cells, "method", "factor")
    everything = grouped(cells, "domain", "seed").keys()
    rows: list[dict[str, Value]] = []
    for (method, factor), group in groups.items():
        is_whole = grouped(group, "domain", "seed").keys() == everything
        means = [mean_of(_validation_scores(of_seed)) for of_seed in grouped(group, "seed").values()]
        rates = ", ".join(dict.fromkeys(str(cell.row["rate"]) for cell in group))
        row: dict[str, Value] = {"method": method, "factor": factor, "rate": rates}
        for (domain,), of_domain in grouped(group, "domain").items():
            row[f"{domain}/validation"] = combined(_validation_scores(of_domain))
        rows.append({**row, "mean": combined(means) if is_whole else None})
    for of_method in group_by(rows, lambda row: row["method"]).values():
        _choose(of_method)
    columns = {"method": "Method", "factor": "Factor", "rate": "Learning rate", "mean": "Mean on validation rows ↑"}
    scored = {f"{name}/validation": domain.title for name, domain in DOMAINS.items()}
    columns |= {name: title for name, title in scored.items() if any(name in row for row in rows)}
    columns |= {"chosen": "Chosen", "edge": "At the edge"}
    return Table("Learning rates", columns, rows, [*map(models_of, groups.values())])


def _validation_scores(cells: Sequence[Cell]) -> list[tuple[float, float]]:
    return [validation_score(scores.metrics, scores.config["domain"]) for cell in cells for scores in cell.scores]


def _choose(rows: Sequence[dict[str, Value]]) -> None:
    """Mark the best of one method's rates, and whether it is at the edge of what was tried."""
    means = {float(str(row["factor"])): row["mean"] for row in rows}
    rivals = {factor: mean.mean for factor, mean in means.items() if isinstance(mean, Estimate)}
    chosen = max(rivals, key=rivals.__getitem__, default=None)
    for row, factor in zip(rows, means, strict=True):
        row["chosen"] = factor == chosen
        row["edge"] = factor == chosen and len(rivals) > 1 and factor in (min(rivals), max(rivals))


TABLES: dict[str, Callable[[Sequence[Cell], Sequence[Cell]], Table]] = {
    "single": single_table,
    "merging": merging_table,
    "continual": continual_table,
    "ablations": ablations_table,
    "sweep": sweep_table,
}
PAPER_TABLES = frozenset({"single", "merging", "continual"})  # all of them are a whole paper


def all_metrics(cells: Sequence[Cell]) -> Table:
    """Every metric of every cell and seed, one a row, with the runs to look it up in."""
    labels = list(dict.fromkeys(name for cell in cells for name in cell.row))
    rows: list[dict[str, Value]] = [
        {
            "table": cell.table,
            **{name: _csv_label(value) for name, value in cell.row.items()},
            "adapter": cell.adapter.name,
            "run_id": scores.run_id,
            "metric": metric,
            "measured": repr(value),
        }
        for cell in cells
        for scores in cell.scores
        for metric, value in scores.metrics.items()
    ]
    names = ["table", *labels, "adapter", "run_id", "metric", "measured"]
    return Table("All metrics", {name: name for name in names}, rows)


def _csv_label(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
