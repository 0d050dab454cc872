"""What the report opens with: the paper's claims, each judged by its rule, and every difference with its interval."""

import math
from collections.abc import Mapping
from dataclasses import replace

from lori.choices.domains import DOMAINS
from lori.evaluation.claims import CLAIMS, MIN_SEEDS, OPEN, Claim, Finding, judge
from lori.evaluation.intervals import Interval, Intervals
from lori.evaluation.row_names import BEFORE, KEPT, LABELS, LEARNED, MEAN, OVER_REFUSAL, THEN, RowName
from lori.evaluation.scoring import OVER_REFUSAL_RATE
from tasks.report.scores import NO_MERGE
from tasks.report.table import Estimate, Table, Value, text_of

RULES = f"""\
Claims are judged by rules that were fixed before the run (`lori/evaluation/claims.py`). A claim holds if all its rules
do. A rule is about the difference of two means over domains. The 95 % interval of that difference is over seeds and
test questions, and is paired by both. Fewer than {MIN_SEEDS} seeds decide nothing."""
CAUSES = """\
A control differs in one thing from the method that it is compared with. Where the two differ, that thing matters."""
CONTEXT = """\
These comparisons decide nothing, but without them a verdict says too little. Of over-refusal, less is better."""


def claim_tables(intervals: Intervals) -> dict[str, Table]:
    """The rules of the claims, the controls that tell why, and what else to know: a row a comparison.

    None has a row where no rule's rows were computed.
    """
    rules, causes, context = [], [], []
    for number, (claim, verdict, findings) in judged(intervals).items():
        told = {"number": str(number), "claim": claim.text, "verdict": verdict}
        rules += [
            {
                **told,
                **_compared(finding.rule.pair, finding.interval),
                "needed": f"> {finding.rule.threshold:g}",
                "result": finding.verdict,
            }
            for finding in findings
        ]
        for rows, pairs in ((causes, claim.controls), (context, claim.beside)):
            rows += [told | _unjudged(pair, intervals[pair][MEAN]) for pair in pairs if pair in intervals]
    columns = {"number": "Claim", "claim": "", "verdict": "", "pair": "", "compared": "Compared"}
    columns |= {"difference": "Difference, points", "needed": "Needed", "result": "Result", "seeds": "Seeds"}
    unjudged = {name: title for name, title in columns.items() if name not in ("verdict", "needed")}
    return {
        "claims": Table("The paper's claims", columns, rules),
        "causes": Table("Why: one thing changed at a time", unjudged, causes),
        "context": Table("What else to know about the claims", unjudged, context),
    }


def judged(intervals: Intervals) -> dict[int, tuple[Claim, str, list[Finding]]]:
    """By its number each claim, its verdict and how its rules came out; none where no rule's rows were computed."""
    is_any = any(rule.pair in intervals for claim in CLAIMS for rule in claim.rules)
    return {number: (claim, *judge(claim, intervals)) for number, claim in enumerate(CLAIMS if is_any else (), 1)}


def verdicts(intervals: Intervals) -> str:
    """A sentence a claim, for readers of the paper."""
    sentences = []
    for number, (claim, verdict, findings) in judged(intervals).items():
        found = "; ".join(f"{finding.rule.pair.in_words}: {_points(finding.interval)}" for finding in findings)
        sentences.append(f"{number}. **{verdict.capitalize()}:** {claim.text} ({found}).")
    return "\n".join(sentences)


def _points(interval: Interval | None) -> str:
    return text_of(interval).replace(" ", " points ", 1) if interval else "not computed"


def _compared(pair: RowName, interval: Interval | None) -> dict[str, Value]:
    seeds = interval.num_seeds if interval else None
    return {"pair": str(pair), "compared": pair.in_words, "difference": interval, "seeds": seeds}


def _unjudged(pair: RowName, interval: Interval) -> dict[str, Value]:
    """With no rule: whether 0 lies within its interval is what it says."""
    differs = "differs" if interval.low > 0 or interval.high < 0 else "no difference seen"
    is_known = interval.num_seeds >= MIN_SEEDS and math.isfinite(interval.low)
    return _compared(pair, interval) | {"result": differs if is_known else OPEN}


def with_intervals(name: str, table: Table, intervals: Intervals) -> Table:
    """The table `name` with the bootstrap's intervals in place of the normal distribution's, where there are any."""
    rows = []
    for row in table.rows:
        places = _continual_places(row) if name == "continual" else _places(row)
        found = {column: intervals.get(of, {}).get(measure) for column, (of, measure) in places.items()}
        rows.append({column: _with_ends(value, found.get(column)) for column, value in row.items()})
    return replace(table, rows=rows)


def _places(row: Mapping[str, Value]) -> dict[str, tuple[RowName, str]]:
    """By column the name and measure of its cell in comparisons."""
    name = RowName.of({label: row[label] for label in LABELS if row.get(label, NO_MERGE) != NO_MERGE})
    places = {MEAN: (name, MEAN), OVER_REFUSAL_RATE: (replace(name, is_over_refusal=True), OVER_REFUSAL)}
    return places | {domain.headline: (name, measure) for measure, domain in DOMAINS.items()}


def _continual_places(row: Mapping[str, Value]) -> dict[str, tuple[RowName, str]]:
    method, (first, new) = str(row["method"]), str(row["domains"]).split(THEN)
    before = RowName(method, measured=BEFORE)
    kept, learned = (RowName(method, measured=measured, new_domain=new) for measured in (KEPT, LEARNED))
    return {
        "first_before": (before, first),
        "first_after": (kept, first),
        "over_refusal_before": (replace(before, is_over_refusal=True), OVER_REFUSAL),
        "over_refusal_after": (replace(kept, is_over_refusal=True), OVER_REFUSAL),
        "new_after": (learned, new),
    }


def _with_ends(value: Value, found: Interval | None) -> Value:
    if not isinstance(value, Estimate) or found is None or not math.isfinite(found.low):
        return value
    return replace(value, ends=(found.low, found.high))


def differences_table(intervals: Intervals) -> Table:
    """Every difference between rows: by domain, and the mean over domains."""
    pairs = {name: found for name, found in intervals.items() if name.minus}
    measured = {domain for found in pairs.values() for domain in found}
    titles = {**{name: row.title for name, row in DOMAINS.items()}, OVER_REFUSAL: "Over-refusal ↓"}
    columns = {MEAN: "Mean"} | {name: title for name, title in titles.items() if name in measured}
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
