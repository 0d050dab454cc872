"""The tables of the paper: which cells make a row, and which of their metrics its columns."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from lori.choices.domains import DOMAINS
from lori.evaluation.row_names import REFERENCE, THEN
from lori.evaluation.scoring import OVER_REFUSAL_RATE, mean_of, validation_score
from tasks.report.scores import (
    NO_MERGE,
    Cell,
    by_seed,
    estimate_of,
    grouped,
    headlines_of,
    mean_estimate,
    mean_num_trainable,
    metric_columns,
    models_of,
    of_table,
)
from tasks.report.table import Estimate, Table, Value, combine


def single_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """One adapter per domain: a row a method."""
    metrics, groups = metric_columns(cells), grouped(cells, "method")
    headlines = headlines_of(metrics)
    reference = mean_num_trainable(groups[REFERENCE,]) if (REFERENCE,) in groups else None
    rows: list[dict[str, Value]] = []
    for (method,), group in groups.items():
        num_trainable, seeds = mean_num_trainable(group), by_seed(group)
        share = f"{num_trainable / reference:.2%}" if reference else None
        row: dict[str, Value] = {"method": method, "num_trainable": num_trainable, "share": share}
        row |= {metric: estimate_of(seeds, metric) for metric in metrics}
        rows.append({**row, "mean": mean_estimate(seeds, headlines)})  # for MLflow alone
    columns = {"method": "Method", "num_trainable": "Trainable", "share": f"of {REFERENCE}'s"}
    return Table("One adapter per domain", columns | metrics, rows, [*map(models_of, groups.values())])


def merging_table(cells: Sequence[Cell], all_cells: Sequence[Cell]) -> Table:
    """One adapter for all domains: a row a method and merge, under the method's unmerged adapters where known."""
    metrics = metric_columns(cells)
    headlines = headlines_of(metrics)
    single = grouped(of_table(all_cells, "single"), "method")
    rows: list[dict[str, Value]] = []
    models = []
    for (method,), of_method in grouped(cells, "method").items():
        merges = {(NO_MERGE, ""): single[method,]} if (method,) in single else {}
        for (merge, weights), group in {**merges, **grouped(of_method, "merge", "weights")}.items():
            seeds = by_seed(group)
            row: dict[str, Value] = {"method": method, "merge": merge, "weights": _weights(weights)}
            row |= {metric: estimate_of(seeds, metric) for metric in metrics}
            rows.append({**row, "mean": mean_estimate(seeds, headlines)})
            models.append(models_of(group))
    columns = {"method": "Method", "merge": "Merge", "weights": "Weights"}
    return Table("Adapters of all domains merged into one", {**columns, **metrics, "mean": "Mean ↑"}, rows, models)


def _weights(weights: Sequence[float] | str) -> str:
    return ", ".join(f"{weight:g}" for weight in (weights[:1] if len(set(weights)) == 1 else weights))


def continual_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """A first domain, then another: a row a method and pair."""
    rows: list[dict[str, Value]] = []
    groups = grouped(cells, "method", "first_domain", "new_domain")
    for (method, first, new), group in groups.items():
        before, after = by_seed(group, of_adapter=False), by_seed(group)
        kept, headline = DOMAINS[first].headline, DOMAINS[new].headline
        rows.append(
            {
                "method": method,
                "domains": f"{first}{THEN}{new}",
                "first_before": estimate_of(before, kept),
                "first_after": estimate_of(after, kept),
                "over_refusal_before": estimate_of(before, OVER_REFUSAL_RATE),
                "over_refusal_after": estimate_of(after, OVER_REFUSAL_RATE),
                "new_after": estimate_of(after, headline),
            }
        )
    columns = {
        "method": "Method",
        "domains": "Domains",
        "first_before": "First domain before ↑",
        "first_after": "after ↑",
        "over_refusal_before": "Over-refusal before ↓",
        "over_refusal_after": "after ↓",
        "new_after": "New domain ↑",
    }
    return Table("Continual learning", columns, rows, [*map(models_of, groups.values())])


def ablations_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """One setting changed at a time: a row a method and value. A merge has no entries that train, but a norm."""
    metrics, groups = metric_columns(cells), grouped(cells, "method", "setting", "value")
    headlines = headlines_of(metrics)
    rows: list[dict[str, Value]] = []
    for (method, setting, value), group in groups.items():
        seeds = by_seed(group)
        row: dict[str, Value] = {"method": method, "setting": setting, "value": value}
        made = group[0].adapter.metrics
        row["num_trainable"] = mean_num_trainable(group) if "num_trainable" in made else None
        if "update_norm" in made:
            row["update_norm"] = fmean(cell.adapter.metrics["update_norm"] for cell in group)
        found = [metric for metric in headlines if any(metric in metrics for metrics in seeds.values())]
        row |= {metric: estimate_of(seeds, metric) for metric in metrics}
        rows.append({**row, "mean": mean_estimate(seeds, found)})
    columns = {"method": "Method", "setting": "Setting", "value": "Value"}
    columns |= {"num_trainable": "Trainable", "update_norm": "‖ΔW‖"}
    return Table(
        "One setting changed at a time",
        {**columns, **metrics, "mean": "Mean ↑"},
        rows,
        [*map(models_of, groups.values())],
    )


def sweep_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """Learning rates: a row a method and factor, with its scores on validation rows, and which one is chosen.

    Only rates that were tried on all domains and seeds are to be chosen from. A choice at the edge of what was tried
    may have a better one beyond it.
    """
    groups = grouped(cells, "method", "factor")
    everything = {_trial(cell) for cell in cells}
    rows: list[dict[str, Value]] = []
    for (method, factor), group in groups.items():
        by_seed = grouped(group, "seed")
        means = [
            mean_of(
                [validation_score(each.metrics, each.config["domain"]) for cell in of_seed for each in cell.scores]
            )
            for of_seed in by_seed.values()
        ]
        rates = dict.fromkeys(str(cell.row["rate"]) for cell in group)
        row: dict[str, Value] = {"method": method, "factor": factor, "rate": ", ".join(rates)}
        for (domain,), of_domain in grouped(group, "domain").items():
            scored = [
                validation_score(each.metrics, each.config["domain"]) for cell in of_domain for each in cell.scores
            ]
            row[f"{domain}/validation"] = _combined(scored)
        rows.append({**row, "mean": _combined(means) if {_trial(cell) for cell in group} == everything else None})
    for row in rows:
        rivals = {float(str(r["factor"])): r["mean"] for r in rows if r["method"] == row["method"] and r["mean"]}
        factor = float(str(row["factor"]))
        row["chosen"] = factor in rivals and factor == max(rivals, key=lambda rival: _mean(rivals[rival]))
        row["edge"] = bool(row["chosen"]) and len(rivals) > 1 and factor in (min(rivals), max(rivals))
    columns = {"method": "Method", "factor": "Factor", "rate": "Learning rate"}
    scored = {f"{name}/validation": domain.title for name, domain in DOMAINS.items()}
    columns |= {name: title for name, title in scored.items() if any(name in row for row in rows)}
    columns |= {"mean": "Mean on validation rows ↑", "chosen": "Chosen", "edge": "at the edge"}
    return Table("Learning rates", columns, rows, [*map(models_of, groups.values())])


def _validation_scores(cells: Sequence[Cell]) -> list[tuple[float, float]]:
    return [validation_score(scores.metrics, scores.config["domain"]) for cell in cells for scores in cell.scores]


def _trial(cell: Cell) -> tuple[Any, Any]:
    return cell.row["domain"], cell.row["seed"]


def _combined(scores: Iterable[tuple[float, float]]) -> Estimate:
    values, errors = zip(*scores, strict=True)
    return combine(values, errors)


def _mean(value: Value) -> float:
    return value.mean if isinstance(value, Estimate) else 0.0


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
