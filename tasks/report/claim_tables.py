"""What the report opens with: the paper's claims, each judged by its rule, and every difference with its interval."""

import math
from collections.abc import Mapping
from dataclasses import replace

from lori.choices.domains import DOMAINS
from lori.evaluation.claims import CLAIMS, MIN_SEEDS, OPEN, Finding, judge
from lori.evaluation.intervals import Interval, Intervals
from lori.evaluation.row_names import BEFORE, KEPT, LABELS, LEARNED, MEAN, OVER_REFUSAL, THEN, RowName
from lori.evaluation.scoring import OVER_REFUSAL_RATE
from tasks.report.scores import NO_MERGE
from tasks.report.table import Estimate, Table, Value

VERDICT = f"""\
A claim is judged by rules that were fixed before the run (`lori/evaluation/claims.py`): a difference of means over
domains and its 95 % interval over seeds and test questions, paired by both. With fewer than {MIN_SEEDS} seeds
nothing is decided. Under a claim, with no rule, is what tells why: a control less what it controls, which differs
from it in one thing; and what else is to be known of it (of over-refusal, less is better)."""


def verdict_table(intervals: Intervals) -> Table:
    """A row for every rule of every claim, and what else of it was computed; none where no rule's rows were."""
    rows: list[dict[str, Value]] = []
    is_judged = any(rule.pair in intervals for claim in CLAIMS for rule in claim.rules)
    for claim in CLAIMS if is_judged else ():
        verdict, findings = judge(claim, intervals)
        rows += [_row(claim.text, verdict, finding) for finding in findings]
        for told, pairs in (("– why", claim.controls), ("– beside", claim.beside)):
            rows += [_unjudged(told, pair, intervals[pair][MEAN]) for pair in pairs if pair in intervals]
    columns = {
        "claim": "Claim",
        "verdict": "Verdict",
        "pair": "Compared",
        "difference": "Difference, points",
        "needed": "Needed",
        "rule": "So it",
        "seeds": "Seeds",
    }
    return Table("The paper's claims", columns, rows)


def _row(text: str, verdict: str, finding: Finding) -> dict[str, Value]:
    return {
        "claim": text,
        "verdict": verdict,
        "pair": str(finding.rule.pair),
        "difference": finding.interval,
        "needed": f"> {finding.rule.threshold:g}",
        "rule": finding.verdict,
        "seeds": finding.interval.num_seeds if finding.interval else None,
    }


def _unjudged(told: str, pair: RowName, interval: Interval) -> dict[str, Value]:
    """With no rule: whether 0 lies within its interval is what it says."""
    differs = "differs" if interval.low > 0 or interval.high < 0 else "no difference seen"
    is_known = interval.num_seeds >= MIN_SEEDS and math.isfinite(interval.low)
    rule = differs if is_known else OPEN
    return {
        "claim": told,
        "verdict": "",
        "pair": str(pair),
        "difference": interval,
        "needed": "",
        "rule": rule,
        "seeds": interval.num_seeds,
    }


def with_intervals(name: str, table: Table, intervals: Intervals) -> Table:
    """The table `name` with the bootstrap's intervals in place of the normal distribution's, where there are any."""
    rows = [
        {column: _with_ends(value, _place(name, row, column), intervals) for column, value in row.items()}
        for row in table.rows
    ]
    return replace(table, rows=rows)


def _place(table: str, row: Mapping[str, Value], column: str) -> tuple[RowName, str] | None:
    """Name and measure of a cell in comparisons; None if it is in none."""
    if table == "continual":
        return _continual_place(str(row["method"]), str(row["domains"]), column)
    name = RowName.of({label: row[label] for label in LABELS if row.get(label, NO_MERGE) != NO_MERGE})
    if column == OVER_REFUSAL_RATE:
        return replace(name, is_over_refusal=True), OVER_REFUSAL
    measure = {**{domain.headline: name for name, domain in DOMAINS.items()}, MEAN: MEAN}.get(column)
    return (name, measure) if measure else None


def _continual_place(method: str, domains: str, column: str) -> tuple[RowName, str] | None:
    first, new = domains.split(THEN)
    before = RowName(method, measured=BEFORE)
    kept, learned = (RowName(method, measured=measured, new_domain=new) for measured in (KEPT, LEARNED))
    return {
        "first_before": (before, first),
        "first_after": (kept, first),
        "over_refusal_before": (replace(before, is_over_refusal=True), OVER_REFUSAL),
        "over_refusal_after": (replace(kept, is_over_refusal=True), OVER_REFUSAL),
        "new_after": (learned, new),
    }.get(column)


def _with_ends(value: Value, place: tuple[RowName, str] | None, intervals: Intervals) -> Value:
    found = intervals.get(place[0], {}).get(place[1]) if place else None
    if not isinstance(value, Estimate) or found is None or not math.isfinite(found.low):
        return value
    return replace(value, ends=(found.low, found.high))


def differences_table(intervals: Intervals) -> Table:
    """Every difference between rows: by domain, and the mean over domains."""
    pairs = {name: found for name, found in intervals.items() if name.minus}
    measured = {domain for found in pairs.values() for domain in found}
    titles = {**{name: row.title for name, row in DOMAINS.items()}, OVER_REFUSAL: "Over-refusal ↓"}
    columns = {name: title for name, title in titles.items() if name in measured} | {MEAN: "Mean"}
    rows: list[dict[str, Value]] = [{"pair": str(name), **found} for name, found in pairs.items()]
    return Table("Differences, with 95 % intervals", {"pair": "Compared", **columns}, rows)


def scores_table(intervals: Intervals) -> Table:
    """Every row's score with its interval; for programs, as `intervals.csv`."""
    rows: list[dict[str, Value]] = [
        {"row": str(name), "domain": domain, "score": interval, "seeds": interval.num_seeds}
        for name, found in intervals.items()
        if not name.minus
        for domain, interval in found.items()
    ]
    names = ("row", "domain", "score", "seeds")
    return Table("Scores with 95 % intervals", {name: name for name in names}, rows)
