"""What the report opens with: the paper's claims, each judged by its rule, and every difference with its interval."""

import json

from lori.claims import CLAIMS, MIN_SEEDS, Finding, judge
from lori.config import Handle, Runtime
from lori.domains import DOMAINS
from lori.intervals import MEAN, MINUS, Intervals, from_metrics
from tasks import tracking
from tasks.tables import Table, Value

VERDICT = f"""\
A claim is judged by rules that were fixed before the run (`lori/claims.py`): a difference of means over domains and
its 95 % interval over seeds and test questions, paired by both. With fewer than {MIN_SEEDS} seeds nothing is
decided."""


INTERVALS = "intervals.json"


def read_intervals(handle: Handle, runtime: Runtime) -> Intervals:
    """What the step `compare` found."""
    return from_metrics(json.loads((tracking.fetch(runtime, handle) / INTERVALS).read_text()))


def verdict_table(intervals: Intervals) -> Table:
    """A row for every rule of every claim whose rows were computed."""
    rows: list[dict[str, Value]] = []
    for claim in CLAIMS:
        verdict, findings = judge(claim, intervals)
        rows += [_row(claim.text, verdict, finding) for finding in findings if finding.interval]
    columns = {
        "claim": "Claim",
        "verdict": "Verdict",
        "pair": "Compared",
        "difference": "Difference, points",
        "needed": "Needed",
        "seeds": "Seeds",
    }
    return Table("The paper's claims", columns, rows)


def _row(text: str, verdict: str, finding: Finding) -> dict[str, Value]:
    return {
        "claim": text,
        "verdict": verdict,
        "pair": finding.rule.pair,
        "difference": finding.interval,
        "needed": f"> {finding.rule.threshold:g}",
        "seeds": finding.interval.num_seeds if finding.interval else None,
    }


def differences_table(intervals: Intervals) -> Table:
    """Every difference between rows: by domain, and the mean over domains."""
    pairs = {name: found for name, found in intervals.items() if MINUS in name}
    measured = {domain for found in pairs.values() for domain in found}
    columns = {name: row.title for name, row in DOMAINS.items() if name in measured} | {MEAN: "Mean"}
    rows: list[dict[str, Value]] = [{"pair": name, **found} for name, found in pairs.items()]
    return Table("Differences, with 95 % intervals", {"pair": "Compared", **columns}, rows)


def scores_table(intervals: Intervals) -> Table:
    """Every row's score with its interval; for programs, as `intervals.csv`."""
    rows: list[dict[str, Value]] = [
        {"row": name, "domain": domain, "score": interval, "seeds": interval.num_seeds}
        for name, found in intervals.items()
        if MINUS not in name
        for domain, interval in found.items()
    ]
    names = ("row", "domain", "score", "seeds")
    return Table("Scores with 95 % intervals", {name: name for name in names}, rows)
