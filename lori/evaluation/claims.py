"""The paper's claims as rules, fixed before anything is computed, so that no threshold can be fitted to a result.

Each rule is about the difference of two rows, the mean over domains, with its 95 % interval over seeds and test items
(`lori/evaluation/bootstrap.py`). `RowName` says what the names of rows mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lori.evaluation.intervals import Interval, Intervals
from lori.evaluation.row_names import MEAN, RowName

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot tell"
MIN_SEEDS = 5  # with fewer the spread between seeds is hardly known


@dataclass(frozen=True)
class Rule:
    """The difference `pair` is more than `threshold` percentage points."""

    pair: RowName
    threshold: float


@dataclass(frozen=True)
class Claim:
    """What the paper says, and the rules that must all hold for it to hold.

    `controls` are differences that tell why: one that is not 0 says that what the control changes matters. `beside`
    are those without which a verdict says too little. Some were thought of after a first run of the rules: none of
    either decides.
    """

    text: str
    rules: tuple[Rule, ...]
    controls: tuple[RowName, ...] = ()
    beside: tuple[RowName, ...] = ()

    @property
    def pairs(self) -> tuple[RowName, ...]:
        """All that it names."""
        return (*(rule.pair for rule in self.rules), *self.controls, *self.beside)


@dataclass(frozen=True)
class Finding:
    """What the intervals say of one rule. `interval` is None if the rows were not computed."""

    rule: Rule
    interval: Interval | None
    verdict: str


def _more(pair: str, than: float) -> Rule:
    return Rule(RowName.parse(pair), than)


def _pairs(*texts: str) -> tuple[RowName, ...]:
    return tuple(map(RowName.parse, texts))


CLAIMS = (
    Claim(  # "match or beat": not worse by more than a point
        "LoRI-D and LoRI-S match LoRA on single domains, with a half and a twentieth of its trainable entries",
        (_more("lori-d − lora", -1.0), _more("lori-s − lora", -1.0)),
        _pairs(
            "lori-d-trained-a − lori-d",
            "lori-s-trained-a − lori-s",
            "lori-s-random-mask − lori-s",
            "lori-s-fresh-a − lori-s",
        ),
        _pairs("lori-d − dora", "lori-s − dora", "lori-d − full", "lori-s − full"),
    ),
    Claim(
        "Merged by concat, LoRI-D's adapters keep more than LoRA's",
        (_more("lori-d concat − lora concat", 0.0),),
        _pairs(
            "lori-d-trained-a concat − lori-d concat",
            "lori-s-trained-a concat − lori-s concat",
            "lori-d-shared-a concat − lori-d concat",
            "lori-s-shared-a concat − lori-s concat",
        ),
        _pairs("lori-s concat − lora concat", "lori-d concat − lori-d less lora concat − lora"),
    ),
    Claim(
        "After another domain, LoRI-S keeps more of safety than LoRA",
        (_more("lori-s kept − lora kept", 0.0),),
        _pairs(
            "lori-s-random-mask kept − lori-s kept",
            "lori-s-disjoint kept − lori-s kept",
            "lori-s-trained-a kept − lori-s kept",
        ),
        _pairs(
            "lori-s kept − lori-s before less lora kept − lora before",
            "lori-s kept over-refusal − lora kept over-refusal",
            "lori-s learned − lora learned",
        ),
    ),
)


def judge(claim: Claim, intervals: Intervals) -> tuple[str, list[Finding]]:
    """Its verdict, and how each of its rules came out: a claim with one rule that does not hold does not hold."""
    findings = [_finding(rule, intervals) for rule in claim.rules]
    return _all_of([finding.verdict for finding in findings]), findings


def _finding(rule: Rule, intervals: Intervals) -> Finding:
    interval = intervals.get(rule.pair, {}).get(MEAN)
    if interval is None or interval.num_seeds < MIN_SEEDS:
        return Finding(rule, interval, OPEN)
    if interval.low > rule.threshold:
        return Finding(rule, interval, HOLDS)
    return Finding(rule, interval, FAILS if interval.high < rule.threshold else OPEN)


def _all_of(verdicts: Sequence[str]) -> str:
    if FAILS in verdicts:
        return FAILS
    return OPEN if OPEN in verdicts else HOLDS
