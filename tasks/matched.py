"""Continual learning at one accuracy on the new domain: a method that learns less of it has less reason to forget."""

from collections.abc import Mapping, Sequence

import numpy as np

from lori.domains import DOMAINS
from tasks.paper_tables import continual_domains
from tasks.tables import Estimate, Table, Value

MATCHED = """\
Each method trained on the second domain for fewer and for all rows (above). Between these points lines are drawn, and
read where every method's new domain stands at the best score that all of them reach; no interval is given for what is
read off lines. – is a method whose first point is beyond it already."""
Rows = Sequence[Mapping[str, Value]]


def matched_table(ablations: Table) -> Table:
    """A row a pair of domains: the score of the new one that all reach, and what each method then keeps of the first.

    `ablations` has the rows of continual learning on fewer rows, by `continual_setting`.
    """
    rows: list[dict[str, Value]] = []
    methods: dict[str, str] = {}
    for setting in dict.fromkeys(str(row["setting"]) for row in ablations.rows):
        if (domains := continual_domains(setting)) is None:
            continue
        points = _points(*domains, [row for row in ablations.rows if row["setting"] == setting])
        reached = min(max(learned) for learned, _ in points.values())
        row: dict[str, Value] = {"domains": " → ".join(domains), "reached": f"{reached:.1f}"}
        for method, (learned, kept) in points.items():
            methods[method] = method
            row[method] = f"{np.interp(reached, learned, kept):.1f}" if reached >= learned[0] else None
        rows.append(row)
    columns = {"domains": "Domains", "reached": "New domain at, percent", **methods}
    return Table("First domain kept at matched accuracy on the new one", columns, rows)


def _points(first: str, new: str, rows: Rows) -> dict[str, tuple[list[float], list[float]]]:
    """By method the new domain's scores, rising, and the first domain's at each."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        learned, kept = row.get(DOMAINS[new].headline), row.get(DOMAINS[first].headline)
        if isinstance(learned, Estimate) and isinstance(kept, Estimate):
            points.setdefault(str(row["method"]), []).append((learned.mean, kept.mean))
    return {
        method: ([learned for learned, _ in sorted(found)], [kept for _, kept in sorted(found)])
        for method, found in points.items()
    }
