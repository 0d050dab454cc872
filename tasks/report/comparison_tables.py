"""A base model beside others: the means of its report, and those that earlier reports logged."""

from collections.abc import Iterator, Mapping, Sequence

from lori.evaluation.row_names import REFERENCE
from lori.recipes.paper_results import PUBLISHED_FIGURES
from tasks.report.scores import NO_MERGE, UNMERGED
from tasks.report.table import Estimate, Table, Value
from tasks.tracking.reports import Report

SAME = "the same"
LORI = ("lori-d", "lori-s")
REFUSAL, PASS = "safety/refusal_rate", "code/pass_at_1"


def to_metrics(tables: Mapping[str, Table]) -> dict[str, float]:
    """Means over domains for MLflow: `mean/lori-s/concat`, its error, and the number of its seeds."""
    merged = [row for row in tables["merging"].rows if row["merge"] != NO_MERGE]
    metrics: dict[str, float] = {}
    for row in (*tables["single"].rows, *merged):
        name = f"mean/{row['method']}/{row.get('merge', UNMERGED)}"
        if isinstance(mean := row["mean"], Estimate):
            metrics |= {name: mean.mean, f"{name}_se": mean.error, f"{name}_seeds": mean.num_seeds}
    return metrics


def comparison_table(own: Report, earlier: Sequence[Report]) -> Table:
    """The base of `own` beside those of `earlier` reports: a row a merge and base, a column a method.

    Of each other base it is the newest of the reports with most tables, and with the same settings if there is one;
    else the row says what is different. Without another base there is no row.
    """
    others = [_chosen(own, earlier, base) for base in sorted({report.base_model for report in earlier})]
    others = [report for report in others if report.base_model != own.base_model]
    names = [name.split("/") for name in own.means if not name.endswith(("_se", "_seeds"))]
    methods, merges = ([*dict.fromkeys(labels)] for labels in list(zip(*names, strict=True))[1:] or ((), ()))
    rows: list[dict[str, Value]] = [
        {
            "merge": NO_MERGE if merge == UNMERGED else merge,
            "base_model": report.base_model,
            **{method: _estimate(report, f"mean/{method}/{merge}") for method in methods},
            "settings": "this report" if report is own else _differences(own, report),
            "run": report.run_id or None,
        }
        for merge in merges
        for report in (own, *others)
        if others
    ]
    columns = {"merge": "Merge", "base_model": "Base model", **{method: method for method in methods}}
    return Table("Compared with other base models", {**columns, "settings": "Settings", "run": "MLflow run"}, rows)


def _chosen(own: Report, reports: Sequence[Report], base: str) -> Report:
    of_base = [report for report in reports if report.base_model == base]
    return max(of_base, key=lambda report: (_differences(own, report) == SAME, len(report.tables), report.ended_ms))


def _differences(own: Report, other: Report) -> str:
    """In what the studies of two bases are different beyond the bases."""
    names = sorted((own.settings.keys() | other.settings.keys()) - {"base_model"})
    found = [
        f"{name} {other.settings.get(name, 'unset')}"
        for name in names
        if other.settings.get(name) != own.settings.get(name)
    ]
    found += sorted(other.versions - own.versions)
    return ", ".join(found) or SAME


def _estimate(report: Report, name: str) -> Estimate | None:
    means = report.means
    if name not in means:
        return None
    return Estimate(means[name], means[f"{name}_se"], int(means[f"{name}_seeds"]))


def paper_table(tables: Mapping[str, Table]) -> Table:
    """A row a quantity that both have: the paper's, ours, and the difference in percentage points."""
    ours = dict(_ours(tables))
    rows: list[dict[str, Value]] = [
        {
            "quantity": figure.quantity,
            "setting": figure.setting,
            "paper": f"{figure.percent:g}",
            "here": f"{ours[name]:.2f}",
            "difference": f"{ours[name] - figure.percent:+.2f}",
        }
        for name, figure in PUBLISHED_FIGURES.items()
        if name in ours
    ]
    titles = {"quantity": "Percent", "setting": "The paper's setting", "paper": "Paper", "here": "Here"}
    return Table("Compared with the paper's own figures", {**titles, "difference": "Difference"}, rows)


def _ours(tables: Mapping[str, Table]) -> Iterator[tuple[str, float]]:
    single = {str(row["method"]): row for row in tables["single"].rows}
    sizes = {method: row["num_trainable"] for method, row in single.items()}
    if isinstance(lora := sizes.get(REFERENCE), int):
        for method in LORI:
            if isinstance(size := sizes.get(method), int):
                yield method, 100 * size / lora
    passed = {method: value.mean for method, row in single.items() if isinstance(value := row.get(PASS), Estimate)}
    better = [passed[method] for method in LORI if method in passed]
    if better and passed.get(REFERENCE):
        yield "code", 100 * (max(better) / passed[REFERENCE] - 1)
    merged = [
        value.mean
        for row in tables["merging"].rows
        if row["method"] in LORI and row["merge"] != NO_MERGE
        if isinstance(value := row.get(REFUSAL), Estimate)
    ]
    if merged:
        yield "merged_safety", max(merged)
