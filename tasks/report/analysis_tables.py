"""Comparisons at one value of what differs between methods beside the methods.

Continual learning at one accuracy on the new domain: a method that learns less of it has less reason to forget. Merges
at one norm of the update: a larger one moves the base further, whoever made it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from lori.choices.domains import DOMAINS
from lori.evaluation.row_names import REFERENCE, THEN, TITLES, WEIGHT, RowName
from tasks.report.table import Estimate, Table, Value, group_by
from tasks.result_files import Pairs

MATCHED = """\
Each method is trained on the second domain for fewer and for all rows (the table above). Lines between these points
are read at the best score on the new domain that all methods reach. What is read off a line has no interval; – is a
method that learns more than that from the fewest rows."""
NORMS = """\
Merges with other weights (the table above). Each method's mean over domains is read off the line between its own
points, at the Frobenius norm of LoRA's update. What is read off a line has no interval; – is a norm that no weight of
the method reaches."""
Rows = Sequence[Mapping[str, Value]]
INTERFERENCE = """\
Means over seeds. The cosine is that of two domains' whole updates ΔW, taken as vectors; 0 is no interference to first
order. The alignment of A is the mean squared cosine of the principal angles between two row spaces; by chance it is
rank / width. The overlap of masks counts the entries that both keep, as a multiple of what chance alone would give."""


def by_setting(ablations: Table) -> dict[RowName, list[Mapping[str, Value]]]:
    """The rows of each setting, named without method and value."""
    return group_by(ablations.rows, lambda row: replace(RowName.of(row), method="", value=""))


def matched_table(ablations: Table) -> Table:
    """A row a pair of domains: the score of the new one that all reach, and what each method then keeps of the first.

    `ablations` has the rows of continual learning on fewer rows.
    """
    rows: list[dict[str, Value]] = []
    for name, of_setting in by_setting(ablations).items():
        if name.first_domain:
            lines = _lines(of_setting, DOMAINS[name.new_domain].headline, DOMAINS[name.first_domain].headline)
            reached = min(max(learned) for learned, _ in lines.values())
            row: dict[str, Value] = {"domains": f"{name.first_domain}{THEN}{name.new_domain}"}
            row |= {"reached": f"{reached:.1f}", **{method: _read(line, reached) for method, line in lines.items()}}
            rows.append(row)
    columns = _with_methods({"domains": "Domains", "reached": "New domain, percent"}, rows)
    return Table("What is kept of the first domain at equal accuracy on the new one", columns, rows)


def norms_table(ablations: Table) -> Table:
    """A row for each merge and weight of LoRA's: the norm of its update, and what each method scores at that norm.

    `ablations` has the rows of merges with other weights. A merge's score is no function of its
    norm where weights differ between adapters: these are the same for all.
    """
    rows: list[dict[str, Value]] = []
    for name, of_setting in by_setting(ablations).items():
        if name.setting == WEIGHT:
            lines = _lines(of_setting, "update_norm", "mean")
            for norm in lines.get(REFERENCE, ([], []))[0]:
                at_norm = {method: _read(line, norm) for method, line in lines.items()}
                rows.append({"merge": name.merge, "norm": norm, **at_norm})
    columns = _with_methods({"merge": "Merge", "norm": f"‖ΔW‖ of {TITLES[REFERENCE]}"}, rows)
    return Table("Merges at equal norms of the update", columns, rows)


Line = tuple[Sequence[float], Sequence[float]]  # x, rising, and y


def _lines(rows: Rows, x: str, y: str) -> dict[str, Line]:
    """A line a method through its rows: their values of column `y` by those of `x`, where they have both."""
    lines: dict[str, Line] = {}
    for method, of_method in group_by(rows, lambda row: str(row["method"])).items():
        points = [(_number(row.get(x)), _number(row.get(y))) for row in of_method]
        if known := sorted((at, value) for at, value in points if at is not None and value is not None):
            lines[method] = ([at for at, _ in known], [value for _, value in known])
    return lines


def _number(value: Value) -> float | None:
    return value.mean if isinstance(value, Estimate) else value if isinstance(value, float) else None


def _read(line: Line, x: float) -> str | None:
    """The line's y at `x`; None beyond its ends."""
    return f"{np.interp(x, *line):.1f}" if line[0][0] <= x <= line[0][-1] else None


def _with_methods(columns: Mapping[str, str], rows: Rows) -> dict[str, str]:
    """`columns`, and one for each method that the rows have beside them."""
    return dict(columns) | {name: name for row in rows for name in row if name not in columns}


def interference_table(pairs: Pairs) -> Table:
    """A row a method and pair of domains."""
    rows: list[dict[str, Value]] = []
    for method, found in pairs.items():
        for domains, of_domains in group_by(found, lambda pair: " × ".join(pair["domains"])).items():
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
        "chance": "By chance",
        "overlap": "Overlap of masks ÷ chance",
    }
    return Table("Interference between domains", columns, rows)
