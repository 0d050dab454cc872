"""What the report's figures show, from its tables; charts_png.py draws them as pictures, charts_html.py on a page."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lori.choices.domains import DOMAINS
from lori.evaluation.row_names import THEN, WEIGHT
from tasks.report.analysis_tables import by_setting
from tasks.report.scores import NO_MERGE, UNMERGED
from tasks.report.table import Estimate, Table, Value, group_by
from tasks.result_files import Pairs

PERCENT, MEAN = "percent", "mean over domains, percent"
KEPT = "first domain after the second, percent"


@dataclass(frozen=True)
class Series:
    """One method's numbers, with their 95 % intervals, by place: a number, or the name of a group."""

    name: str
    points: Sequence[tuple[Any, Estimate]]


@dataclass(frozen=True)
class Chart:
    """Dots with intervals. `kind` is groups (places are names, in their order) or lines; `log` is of the x axis."""

    title: str
    x_label: str
    y_label: str
    kind: str
    series: Sequence[Series]
    log: bool = False

    @property
    def places(self) -> list[Any]:
        """Of all series, in the order in which they name them."""
        return list(dict.fromkeys(place for each in self.series for place, _ in each.points))

    @property
    def ends(self) -> tuple[float, float]:
        """Of the y axis, in percent: all that the intervals reach, and no more, so that differences can be seen."""
        reached = [end for each in self.series for _, value in each.points for end in value.interval] or [0.0, 100.0]
        room = max(1.0, (max(reached) - min(reached)) / 20)
        return max(-room, min(reached) - room), min(100.0 + room, max(reached) + room)


@dataclass(frozen=True)
class Heat:
    """`values` by layer and projection; `label` says what and in which unit, `ends` are those of the colours."""

    title: str
    label: str
    values: np.ndarray
    layers: Sequence[str]
    projections: Sequence[str]
    ends: tuple[float, float]


def charts_of(tables: Mapping[str, Table]) -> dict[str, list[Chart]]:
    """By table the charts under its heading; none where it has no rows."""
    found = {name: list(make(tables)) for name, make in CHARTS.items() if tables[name].rows}
    return {name: charts for name, charts in found.items() if charts}


def _series(points: Iterable[tuple[str, Any, Value]]) -> list[Series]:
    """(name, place, value) grouped by name; what was not computed leaves a gap."""
    groups = group_by(points, lambda point: point[0])
    return [
        Series(name, [(place, value) for _, place, value in group if isinstance(value, Estimate)])
        for name, group in groups.items()
    ]


def _single(tables: Mapping[str, Table]) -> Iterator[Chart]:
    """Groups are metrics."""
    table = tables["single"]
    metrics = {name: title for name, title in table.columns.items() if "/" in name}
    points = [(str(row["method"]), title, row.get(name)) for row in table.rows for name, title in metrics.items()]
    yield Chart(table.title, "", PERCENT, "groups", _series(points))


def _merging(tables: Mapping[str, Table]) -> Iterator[Chart]:
    """Groups are merges."""
    table = tables["merging"]
    yield Chart(table.title, "", MEAN, "groups", _merges(table.rows))


def _merges(rows: Iterable[Mapping[str, Value]]) -> list[Series]:
    return _series(
        (str(row["method"]), UNMERGED if row["merge"] == NO_MERGE else str(row["merge"]), row["mean"]) for row in rows
    )


def _continual(tables: Mapping[str, Table]) -> Iterator[Chart]:
    """Groups are pairs of domains; shown is what is left of the first one."""
    table = tables["continual"]
    points = [(str(row["method"]), str(row["domains"]), row["first_after"]) for row in table.rows]
    yield Chart(table.title, "", KEPT, "groups", _series(points))


def _claims(tables: Mapping[str, Table]) -> Iterator[Chart]:
    """The paper's figure 1: (a) scores beside what trains, (b) merges by concat, (c) what is kept of safety."""
    trained = [row for row in tables["single"].rows if row["num_trainable"]]  # the base has nothing that trains
    sizes = [(str(row["method"]), row["num_trainable"], row["mean"]) for row in trained]
    if sizes:
        yield Chart("(a) An adapter per domain", "trainable entries", MEAN, "lines", _series(sizes), log=True)
    merges = [row for row in tables["merging"].rows if row["merge"] in (NO_MERGE, "concat")]
    if merges:
        yield Chart("(b) Merged by concat", "", MEAN, "groups", _merges(merges))
    if tables["continual"].rows:
        yield from (replace(chart, title="(c) Continual learning") for chart in _continual(tables))


def _ablations(tables: Mapping[str, Table]) -> Iterator[Chart]:
    """A panel a setting, with lines where numbers have room between; continual: what is kept by what is learned."""
    for name, rows in by_setting(tables["ablations"]).items():
        if name.first_domain:
            yield _trade(name.first_domain, name.new_domain, rows)
        elif len(rows) > len({row["method"] for row in rows}):  # else one value alone, which the table shows
            numbers = {str(row["value"]): _number(str(row["value"])) for row in rows}
            log, is_line = name.setting == WEIGHT, None not in numbers.values()
            if is_line:
                rows.sort(key=lambda row: numbers[str(row["value"])] or 0.0)
                is_line = log or not _are_crowded([number for number in numbers.values() if number is not None])
            places = numbers if is_line else {text: text for text in numbers}
            points = [(str(row["method"]), places[str(row["value"])], row["mean"]) for row in rows]
            kind = "lines" if is_line else "groups"
            yield Chart(name.changed, name.changed, MEAN, kind, _series(points), log and is_line)


def _trade(first: str, new: str, rows: Sequence[Mapping[str, Value]]) -> Chart:
    """The first domain's score over the new one's, a point for each number of rows that it trained on."""
    points = [
        (str(row["method"]), learned.mean, row.get(DOMAINS[first].headline))
        for row in rows
        if isinstance(learned := row.get(DOMAINS[new].headline), Estimate)
    ]
    return Chart(f"{first}{THEN}{new}", f"{new}, percent", KEPT, "lines", _series(points))


def _are_crowded(numbers: Sequence[float]) -> bool:
    """Whether two would share their place on an axis, as sparsities near 1 do."""
    return float(np.diff(np.sort(numbers)).min(initial=np.inf)) < np.ptp(numbers) / 12


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


CHARTS: dict[str, Callable[[Mapping[str, Table]], Iterator[Chart]]] = {
    "claims": _claims,
    "single": _single,
    "merging": _merging,
    "continual": _continual,
    "ablations": _ablations,
}


def interference_heats(pairs: Pairs) -> list[Heat]:
    """|cosine| by layer and projection, a panel a method, means over pairs of domains and seeds."""
    maps = {method: [_values(pair, lambda m: abs(m["cosine"])) for pair in found] for method, found in pairs.items()}
    return _heats(maps, "|cosine of ΔW|, mean over pairs of domains")


def overlap_heats(pairs: Pairs) -> list[Heat]:
    """How far two domains' masks overlap beyond chance, a panel a method that has masks."""
    masked = {method: found for method, found in pairs.items() if found[0]["overlap"] is not None}
    maps = {method: [_values(pair, lambda m: m["z"]) for pair in found] for method, found in masked.items()}
    return _heats(maps, "overlap of masks, standard deviations above chance", is_signed=True)


def sparsity_heats(pairs: Pairs, method: str) -> list[Heat]:
    """The paper's figure 3: the share of B's entries that a domain's mask leaves at zero, a panel a domain."""
    sides = [
        (domain, _values(pair, lambda m, side=side: 100 * (1 - m["kept"][side])))
        for pair in pairs.get(method, ())
        if pair["overlap"] is not None
        for side, domain in enumerate(pair["domains"])
    ]
    maps = {domain: [values for _, values in group] for domain, group in group_by(sides, lambda s: s[0]).items()}
    return _heats(maps, f"zeros in {method}'s masks, percent", top=100.0)


def _values(pair: Mapping[str, Any], value_of: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
    return {name: value_of(module) for name, module in pair["modules"].items()}


def _heats(
    maps: Mapping[str, Sequence[Mapping[str, float]]], label: str, *, top: float | None = None, is_signed: bool = False
) -> list[Heat]:
    """A panel for each of `maps`, all on one scale: from 0, or if `is_signed` -`top`, to `top`, or what they reach."""
    found = {title: by_module(values) for title, values in maps.items()}
    top = top or max((float(np.nanmax(np.abs(values))) for values, *_ in found.values()), default=1.0) or 1.0
    return [Heat(title, label, *panel, ends=(-top if is_signed else 0.0, top)) for title, panel in found.items()]


def by_module(maps: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, list[str], list[str]]:
    """The mean over `maps`, each of values by module, as (layers, projections), with their names."""
    places = {module: (_layer(module), module.rpartition(".")[2]) for module in maps[0]}
    layers = list(dict.fromkeys(layer for layer, _ in sorted(places.values(), key=lambda place: int(place[0]))))
    projections = list(dict.fromkeys(projection for _, projection in places.values()))
    values = np.full((len(layers), len(projections)), np.nan)
    for module, (layer, projection) in places.items():
        values[layers.index(layer), projections.index(projection)] = np.mean([each[module] for each in maps])
    return values, layers, projections


def _layer(module: str) -> str:
    return next((part for part in module.split(".") if part.isdigit()), "0")
