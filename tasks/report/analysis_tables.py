"""Comparisons at one value of what differs between methods beside the methods.

Continual learning at one accuracy on the new domain: a method that learns less of it has less reason to forget. Merges
at one norm of the update: a larger one moves the base further, whoever made it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from lori.choices.domains import DOMAINS
from lori.evaluation.row_names import REFERENCE, THEN, WEIGHT, RowName
from tasks.report.table import Estimate, Table, Value
from tasks.result_files import Pairs

MATCHED = """\
Each method trained on the second domain for fewer and for all rows (above). Between these points lines are drawn, and
read where every method's new domain stands at the best score that all of them reach; no interval is given for what is
read off lines. – is a method whose first point is beyond it already."""
NORMS = """\
The merges with other weights (above): each method's mean over domains, read off the line between its own points where
its update has the Frobenius norm of LoRA's. No interval is given for what is read off lines; – is a norm that none of
a method's weights reach."""
Rows = Sequence[Mapping[str, Value]]
INTERFERENCE = """\
Means over seeds. The cosine is of two domains' whole updates ΔW as vectors; 0 is no interference to first order. A's
alignment is the mean squared cosine of the principal angles between their row spaces, and by chance rank / width.
Masks overlap by the entries that both keep, as a multiple of what chance alone would leave to both."""


def by_setting(ablations: Table) -> dict[RowName, list[Mapping[str, Value]]]:
    """The rows of each setting, named without method and value."""
    groups: dict[RowName, list[Mapping[str, Value]]] = {}
    for row in ablations.rows:
        groups.setdefault(replace(RowName.of(row), method="", value=""), []).append(row)
    return groups


def matched_table(ablations: Table) -> Table:
    """A row a pair of domains: the score of the new one that all reach, and what each method then keeps of the first.

    `ablations` has the rows of continual learning on fewer rows.
    """
    rows: list[dict[str, Value]] = []
    methods: dict[str, str] = {}
    for name, of_setting in by_setting(ablations).items():
        if not name.first_domain:
            continue
        points = _points(name.first_domain, name.new_domain, of_setting)
        reached = min(max(learned) for learned, _ in points.values())
        row: dict[str, Value] = {"domains": f"{name.first_domain}{THEN}{name.new_domain}", "reached": f"{reached:.1f}"}
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
    return {method: _sorted_columns(found) for method, found in points.items()}


def norms_table(ablations: Table) -> Table:
    """A row for each merge and weight of LoRA's: the norm of its update, and what each method scores at that norm.

    `ablations` has the rows of merges with other weights. A merge's score is no function of its
    norm where weights differ between adapters: these are the same for all.
    """
    rows: list[dict[str, Value]] = []
    methods: dict[str, str] = {}
    for name, of_setting in by_setting(ablations).items():
        if name.setting != WEIGHT:
            continue
        points = _norm_points(of_setting)
        for norm in points.get(REFERENCE, ([], []))[0]:
            row: dict[str, Value] = {"merge": name.merge, "norm": norm}
            for method, (norms, scores) in points.items():
                methods[method] = method
                is_within = norms[0] <= norm <= norms[-1]
                row[method] = f"{np.interp(norm, norms, scores):.1f}" if is_within else None
            rows.append(row)
    columns = {"merge": "Merge", "norm": f"‖ΔW‖ of {REFERENCE}", **methods}
    return Table("Merges at one norm", columns, rows)


def _norm_points(rows: Rows) -> dict[str, tuple[list[float], list[float]]]:
    """By method the norms of its merges, rising, and the mean score at each."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        norm, mean = row.get("update_norm"), row["mean"]
        if isinstance(norm, float) and isinstance(mean, Estimate):
            points.setdefault(str(row["method"]), []).append((norm, mean.mean))
    return {method: _sorted_columns(found) for method, found in points.items()}


def _sorted_columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in sorted(points)], [y for _, y in sorted(points)]


def interference_table(pairs: Pairs) -> Table:
    """A row a method and pair of domains."""
    rows: list[dict[str, Value]] = []
    for method, found in pairs.items():
        for domains in dict.fromkeys(" × ".join(pair["domains"]) for pair in found):
            of_domains = [pair for pair in found if " × ".join(pair["domains"]) == domains]
            row: dict[str, Value] = {"method": method, "domains": domains}
            for name, form in (("cosine", "+.4f"), ("alignment", ".4f"), ("chance", ".4f"), ("overlap", ".2f")):
                values = [pair[name] for pair in of_domains if pair[name] is not None]
                row[name] = format(fmean(values), form) if values else None
            rows.append(row)
    columns = {
        "method": "Method",
        "domains": "Domains",
        "cosine": "Cosine of ΔW",
        "alignment": "Alignment of A",
        "chance": "by chance",
        "overlap": "Overlap of masks ÷ chance",
    }
    return Table("Interference between domains", columns, rows)
