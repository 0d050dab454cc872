"""The tables of the paper: which cells make a row, and which of their metrics its columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lori.config import Handle
from lori.domains import DOMAINS
from tasks.tables import Estimate, Table, Value, combine, mean_of

OVER_REFUSAL_RATE = "safety/over_refusal_rate"
REFERENCE = "lora"  # the method whose number of trainable entries is 100 %
UNMERGED = "none"
# What continual learning measures: the first domain before and after the new one, and the new one
BEFORE, KEPT, LEARNED = "before", "kept", "learned"
NO_MERGE = f"{UNMERGED} (an adapter each)"


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


def _group(cells: Sequence[Cell], *labels: str) -> dict[tuple[Any, ...], list[Cell]]:
    """Cells by the values of `labels`, in the order in which those come first."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.row[label] for label in labels), []).append(cell)
    return groups


def _by_seed(cells: Sequence[Cell], *, of_adapter: bool = True) -> Seeds:
    """The metrics of a row; without `of_adapter`, of what its adapters started from."""
    seeds: Seeds = {}
    for cell in cells:
        for scores in cell.scores:
            if (scores.run_id == cell.adapter.run_id) == of_adapter:
                seeds.setdefault(cell.row["seed"], {}).update(scores.metrics)
    return seeds


def _estimate(seeds: Seeds, metric: str) -> Estimate | None:
    measured = [metrics for metrics in seeds.values() if metric in metrics]
    if not measured:
        return None
    return combine([m[metric] for m in measured], [m[f"{metric}_se"] for m in measured])


def _mean_estimate(seeds: Seeds, metrics: Sequence[str]) -> Estimate | None:
    """The mean over `metrics`, of the seeds that have them all: means over different domains do not compare."""
    complete = [found for found in seeds.values() if all(metric in found for metric in metrics)]
    if not complete:
        return None
    means = [mean_of([(found[metric], found[f"{metric}_se"]) for metric in metrics]) for found in complete]
    return combine([mean for mean, _ in means], [error for _, error in means])


def headline_means(cells: Sequence[Cell]) -> dict[tuple[str, str], Estimate]:
    """By method and merge, `UNMERGED` for an adapter each: the mean over domains of their headline metrics."""
    means: dict[tuple[str, str], Estimate] = {}
    for table in ("single", "merging"):
        chosen = of_table(cells, table)
        headlines = _headlines(_metric_columns(chosen))
        labels = ("method", "merge") if table == "merging" else ("method",)
        for group_labels, group in _group(chosen, *labels).items():
            if estimate := _mean_estimate(_by_seed(group), headlines):
                method, merge = (*group_labels, UNMERGED)[:2]
                means[method, merge] = estimate
    return means


def _metric_columns(cells: Sequence[Cell]) -> dict[str, str]:
    """The headline metric of each domain that was scored, and over-refusal beside safety, with their titles."""
    found = {name for cell in cells for scores in cell.scores for name in scores.metrics}
    columns = {domain.headline: f"{domain.title} ↑" for domain in DOMAINS.values() if domain.headline in found}
    return columns | ({OVER_REFUSAL_RATE: "Over-refusal ↓"} if OVER_REFUSAL_RATE in found else {})


def _headlines(metrics: Iterable[str]) -> list[str]:
    """Those of them that a mean over domains is of."""
    return [metric for metric in metrics if metric != OVER_REFUSAL_RATE]


def _num_trainable(cells: Sequence[Cell]) -> int:
    """Of one adapter, on average: masks of different domains may keep a few entries more on a tie."""
    return round(sum(cell.adapter.metrics["num_trainable"] for cell in cells) / len(cells))


def _models(cells: Sequence[Cell]) -> list[str]:
    """The adapters of a row, each once."""
    return list(dict.fromkeys(cell.adapter.uri for cell in cells))


def single_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """One adapter per domain: a row a method."""
    metrics, groups = _metric_columns(cells), _group(cells, "method")
    headlines = _headlines(metrics)
    reference = _num_trainable(groups[REFERENCE,]) if (REFERENCE,) in groups else None
    rows: list[dict[str, Value]] = []
    for (method,), group in groups.items():
        num_trainable, seeds = _num_trainable(group), _by_seed(group)
        share = f"{num_trainable / reference:.2%}" if reference else None
        row: dict[str, Value] = {"method": method, "num_trainable": num_trainable, "share": share}
        row |= {metric: _estimate(seeds, metric) for metric in metrics}
        rows.append({**row, "mean": _mean_estimate(seeds, headlines)})  # for MLflow alone
    columns = {"method": "Method", "num_trainable": "Trainable", "share": f"of {REFERENCE}'s"}
    return Table("One adapter per domain", columns | metrics, rows, [*map(_models, groups.values())])


def merging_table(cells: Sequence[Cell], all_cells: Sequence[Cell]) -> Table:
    """One adapter for all domains: a row a method and merge, under the method's unmerged adapters where known."""
    metrics = _metric_columns(cells)
    headlines = _headlines(metrics)
    single = _group(of_table(all_cells, "single"), "method")
    rows: list[dict[str, Value]] = []
    models = []
    for (method,), of_method in _group(cells, "method").items():
        merges = {(NO_MERGE, ""): single[method,]} if (method,) in single else {}
        for (merge, weights), group in {**merges, **_group(of_method, "merge", "weights")}.items():
            seeds = _by_seed(group)
            row: dict[str, Value] = {"method": method, "merge": merge, "weights": _weights(weights)}
            row |= {metric: _estimate(seeds, metric) for metric in metrics}
            rows.append({**row, "mean": _mean_estimate(seeds, headlines)})
            models.append(_models(group))
    columns = {"method": "Method", "merge": "Merge", "weights": "Weights"}
    return Table("Adapters of all domains merged into one", {**columns, **metrics, "mean": "Mean ↑"}, rows, models)


def _weights(weights: Sequence[float] | str) -> str:
    return ", ".join(f"{weight:g}" for weight in (weights[:1] if len(set(weights)) == 1 else weights))


def continual_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """A first domain, then another: a row a method and pair."""
    rows: list[dict[str, Value]] = []
    groups = _group(cells, "method", "first_domain", "new_domain")
    for (method, first, new), group in groups.items():
        before, after = _by_seed(group, of_adapter=False), _by_seed(group)
        kept, headline = DOMAINS[first].headline, DOMAINS[new].headline
        rows.append(
            {
                "method": method,
                "domains": f"{first} → {new}",
                "first_before": _estimate(before, kept),
                "first_after": _estimate(after, kept),
                "over_refusal_before": _estimate(before, OVER_REFUSAL_RATE),
                "over_refusal_after": _estimate(after, OVER_REFUSAL_RATE),
                "new_after": _estimate(after, headline),
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
    return Table("Continual learning", columns, rows, [*map(_models, groups.values())])


def continual_setting(first: str, new: str) -> str:
    """The setting of an ablation of continual learning: how many rows of `new` were trained on after `first`."""
    return f"{first} → {new}, rows"


def continual_domains(setting: str) -> tuple[str, str] | None:
    """First and new domain of what `continual_setting` named; None for another setting."""
    first, arrow, new = setting.removesuffix(", rows").partition(" → ")
    return (first, new) if arrow else None


def weight_setting(merge_method: str) -> str:
    """The setting of an ablation of merges: which weight all their adapters have."""
    return f"weight of {merge_method}"


def weight_merge(setting: str) -> str | None:
    """The merge of what `weight_setting` named; None for another setting."""
    start = weight_setting("")
    return setting.removeprefix(start) if setting.startswith(start) else None


def ablation_name(labels: Mapping[str, Any]) -> str:
    """Of a row of the ablations in comparisons."""
    return f"{labels['method']} {labels['setting']} {labels['value']}"


def ablations_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """One setting changed at a time: a row a method and value. A merge has no entries that train, but a norm."""
    metrics, groups = _metric_columns(cells), _group(cells, "method", "setting", "value")
    headlines = _headlines(metrics)
    rows: list[dict[str, Value]] = []
    for (method, setting, value), group in groups.items():
        seeds = _by_seed(group)
        row: dict[str, Value] = {"method": method, "setting": setting, "value": value}
        made = group[0].adapter.metrics
        row["num_trainable"] = _num_trainable(group) if "num_trainable" in made else None
        if "update_norm" in made:
            row["update_norm"] = fmean(cell.adapter.metrics["update_norm"] for cell in group)
        found = [metric for metric in headlines if any(metric in metrics for metrics in seeds.values())]
        row |= {metric: _estimate(seeds, metric) for metric in metrics}
        rows.append({**row, "mean": _mean_estimate(seeds, found)})
    columns = {"method": "Method", "setting": "Setting", "value": "Value"}
    columns |= {"num_trainable": "Trainable", "update_norm": "‖ΔW‖"}
    return Table(
        "One setting changed at a time",
        {**columns, **metrics, "mean": "Mean ↑"},
        rows,
        [*map(_models, groups.values())],
    )


def sweep_table(cells: Sequence[Cell], _: Sequence[Cell]) -> Table:
    """Learning rates: a row a method and factor, with its scores on validation rows, and which one is chosen.

    Only rates that were tried on all domains and seeds are to be chosen from. A choice at the edge of what was tried
    may have a better one beyond it.
    """
    groups = _group(cells, "method", "factor")
    everything = {_trial(cell) for cell in cells}
    rows: list[dict[str, Value]] = []
    for (method, factor), group in groups.items():
        by_seed = _group(group, "seed")
        means = [
            mean_of([validation_score(each) for cell in of_seed for each in cell.scores])
            for of_seed in by_seed.values()
        ]
        rates = dict.fromkeys(str(cell.row["rate"]) for cell in group)
        row: dict[str, Value] = {"method": method, "factor": factor, "rate": ", ".join(rates)}
        for (domain,), of_domain in _group(group, "domain").items():
            scored = [validation_score(each) for cell in of_domain for each in cell.scores]
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
    return Table("Learning rates", columns, rows, [*map(_models, groups.values())])


def _trial(cell: Cell) -> tuple[Any, Any]:
    return cell.row["domain"], cell.row["seed"]


def validation_score(scores: Handle) -> tuple[float, float]:
    """What adapters are chosen by, and its standard error: a domain's headline metric on validation rows, in percent.

    Safety's is the mean of refusing what is harmful and helping with what is not: who refuses all is not the best.
    """
    found = {name.removeprefix("validation/"): value for name, value in scores.metrics.items()}
    headline = DOMAINS[scores.config["domain"]].headline
    score, error = found[headline], found[f"{headline}_se"]
    if OVER_REFUSAL_RATE not in found:
        return score, error
    return mean_of([(score, error), (100 - found[OVER_REFUSAL_RATE], found[f"{OVER_REFUSAL_RATE}_se"])])


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
