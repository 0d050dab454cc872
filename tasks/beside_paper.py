"""Our numbers beside those that the paper gives for the same quantity."""

from collections.abc import Iterator, Mapping

from lori.paper.published_figures import PUBLISHED_FIGURES
from tasks.tables import Estimate, Table, Value

LORI = ("lori-d", "lori-s")
REFUSAL, PASS = "safety/refusal_rate", "code/pass_at_1"
UNMERGED = "none"


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
    return Table("Beside the paper's own figures", {**titles, "difference": "Difference"}, rows)


def _ours(tables: Mapping[str, Table]) -> Iterator[tuple[str, float]]:
    single = {str(row["method"]): row for row in tables["single"].rows}
    sizes = {method: row["num_trainable"] for method, row in single.items()}
    if isinstance(lora := sizes.get("lora"), int):
        for method in LORI:
            if isinstance(size := sizes.get(method), int):
                yield method, 100 * size / lora
    passed = {method: value.mean for method, row in single.items() if isinstance(value := row.get(PASS), Estimate)}
    better = [passed[method] for method in LORI if method in passed]
    if better and passed.get("lora"):
        yield "code", 100 * (max(better) / passed["lora"] - 1)
    merged = [
        value.mean
        for row in tables["merging"].rows
        if row["method"] in LORI and not str(row["merge"]).startswith(UNMERGED)
        if isinstance(value := row.get(REFUSAL), Estimate)
    ]
    if merged:
        yield "merged_safety", max(merged)
