"""Numbers with their error, and the tables of them: for people (Markdown) and for programs (CSV)."""

import csv
import io
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TypeVar

from lori.evaluation.intervals import QUANTILE, Interval

MISSING = "–"
Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Estimate:
    """A percentage and its standard error, from `num_seeds` runs; `ends` of its 95 % interval where they are known."""

    mean: float
    error: float
    num_seeds: int
    ends: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %: the `ends`, or by the normal distribution, within 0 to 100."""
        reach = QUANTILE * self.error
        return self.ends or (max(0.0, self.mean - reach), min(100.0, self.mean + reach))


Value = str | bool | int | float | Estimate | Interval | None

# By kind of value the columns that it has in a CSV, and what is there where it is missing
ENDINGS: dict[type, tuple[str, ...]] = {
    Estimate: ("", "_se", "_low", "_high", "_seeds"),
    Interval: ("", "_low", "_high"),
}
NOTHING: dict[type, Sequence[str | float]] = {Estimate: ("", "", "", "", 0), Interval: ("", "", "")}


@dataclass(frozen=True)
class Table:
    """`columns` maps a column's name (CSV) to its title (Markdown); a row maps names to values.

    A column without a title is for programs alone. `models` are by row the URIs of the adapters that it is the mean
    of, where that is known.
    """

    title: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Value]]
    models: Sequence[Sequence[str]] = ()


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by their key, in the order in which the keys come first."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def combine(values: Sequence[float], errors: Sequence[float]) -> Estimate:
    """The mean over seeds of scores on the same questions.

    error² = s²/n + mean(error_i²), with s the standard deviation between the n seeds. The second part, which questions
    happen to be in the test set, is not divided by n: all seeds answer the same ones. One seed has just its own error.
    """
    between = variance(values) / len(values) if len(values) > 1 else 0.0
    within = fmean(error**2 for error in errors)
    return Estimate(fmean(values), math.sqrt(between + within), len(values))


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown, numbers to the right; an estimate of fewer seeds than others says so."""
    most = max((v.num_seeds for row in table.rows for v in row.values() if isinstance(v, Estimate)), default=1)
    columns = {name: title for name, title in table.columns.items() if title}
    lines = [list(columns.values()), [_rule(table, name) for name in columns]]
    lines += [[text_of(row.get(name), most) for name in columns] for row in table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rule(table: Table, name: str) -> str:
    texts = [value for row in table.rows if isinstance(value := row.get(name), str)]
    return "---:" if all(text[:1].isdigit() for text in texts if text) else ":---"


def text_of(value: Value, most_seeds: int = 1) -> str:
    """A value in a table where others are of `most_seeds`."""
    if isinstance(value, Estimate):
        fewer = f" (n = {value.num_seeds})" if value.num_seeds < most_seeds else ""
        low, high = value.interval
        return f"{value.mean:.1f} [{low:.1f}, {high:.1f}]{fewer}"
    if isinstance(value, Interval):
        ends = f"[{value.low:+.1f}, {value.high:+.1f}]" if math.isfinite(value.low) else "(no interval)"
        return f"{value.mean:+.1f} {ends}"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    return MISSING if value is None else value.replace("|", "\\|")


def to_csv(table: Table) -> str:
    """The table unrounded: an interval is its mean, `<name>_low` and `<name>_high`.

    An estimate has `<name>_se` and `<name>_seeds`, too.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds = {name: type(value) for row in table.rows for name, value in row.items() if type(value) in ENDINGS}
    writer.writerow([f"{name}{end}" for name in table.columns for end in ENDINGS.get(kinds.get(name, str), ("",))])
    for row in table.rows:
        writer.writerow([field for name in table.columns for field in _fields(row.get(name), kinds.get(name, str))])
    return text.getvalue()


def _fields(value: Value, kind: type) -> Sequence[str | float]:
    if isinstance(value, Estimate):
        return [value.mean, value.error, *value.interval, value.num_seeds]
    if isinstance(value, Interval):
        return [value.mean, value.low, value.high]
    return NOTHING.get(kind, ("",)) if value is None else [value]
