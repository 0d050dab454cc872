"""A row of a table of the paper, and which rows are compared with which: seed by seed and question by question."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lori.choices.methods import METHODS
from lori.evaluation.claims import CLAIMS
from lori.evaluation.row_names import BEFORE, KEPT, LEARNED, OVER_REFUSAL, REFERENCE, RowName, domain_of
from lori.plan.cell import Cell
from lori.recipes.configs import compare_config

if TYPE_CHECKING:
    from tasks.engine.cells import Cells  # with Prefect and MLflow


@dataclass(frozen=True)
class Row:
    """A row before its numbers are there: an adapter and its scores.

    `table` is single, merging, continual, ablations or sweep; `usual` is the value of an ablation's setting that the
    others are compared with.
    """

    table: str
    labels: Mapping[str, Any]
    adapter: Cell
    scores: list[Cell]
    usual: str = ""


def comparison(cells: "Cells", rows: Sequence[Row], asked: Sequence[Row] | None = None) -> Cell | None:
    """Intervals of the rows' scores over seeds and questions, and of what a comparison is of; None if nothing is.

    A row is `lori-s`, `lori-s concat`, `lori-s sparsity 0.5`, or, averaged over new domains, `lori-s before`, `lori-s
    kept` (of the first domain) and `lori-s learned` (of the new one), which are there for each new domain as well:
    `lori-s kept nlu`. Each is compared with the same of LoRA; a merge also with the method's own adapters, an ablation
    with the usual value, what is kept with what was there before, and a control with what it controls; then what the
    claims name. Where safety is scored, `<row> over-refusal` is a row of its own.

    Of `asked`, `rows` are those that did not fail: of a row the seeds count that have all that was asked of them, so
    that no mean is over fewer domains than another.
    """
    places = _all_places(rows)
    wanted = Counter((name, seed) for name, _, seed, _ in _all_places(rows if asked is None else asked))
    there = Counter((name, seed) for name, _, seed, _ in places)
    places = [place for place in places if there[place[0], place[2]] == wanted[place[0], place[2]]]
    measured: dict[RowName, dict[str, set[int]]] = {}  # by row and measure the seeds
    for name, measure, seed, _ in places:
        measured.setdefault(name, {}).setdefault(measure, set()).add(seed)
    pairs = []
    for pair in dict.fromkeys([*_pairs([*measured]), *_unusual(rows), *_claimed()]):
        one, other = (measured.get(side, {}) for side in pair.sides)
        if shared := _shared_seeds(one, other):
            pairs.append(pair)
            measured[pair] = dict.fromkeys(one, shared)
    if not pairs:
        return None
    tests = {cell.config.domain: cell for cell in cells.of("dataset") if cell.config.split == "test"}
    names, measures, seeds, scores = zip(*places, strict=True)
    config = compare_config(rows=[*map(str, names)], domains=measures, seeds=seeds, pairs=[*map(str, pairs)])
    datasets = [tests[domain] for domain in dict.fromkeys(map(domain_of, measures))]
    return cells.request("compare", config, scores=[*scores], datasets=datasets)


def _shared_seeds(one: Mapping[str, set[int]], other: Mapping[str, set[int]]) -> set[int]:
    """Those that both have of all their domains; none if these are not the same."""
    if not one or one.keys() != other.keys():
        return set()
    return set.intersection(*one.values(), *other.values())


def _all_places(rows: Sequence[Row]) -> list[tuple[RowName, str, int, Cell]]:
    return list(dict.fromkeys(place for row in rows for place in _places(row)))


def _places(row: Row) -> Iterator[tuple[RowName, str, int, Cell]]:
    """Name, measure, seed and score of what the row measured on test rows."""
    if row.table == "sweep":
        return
    method, seed = row.labels["method"], row.labels["seed"]
    names = [[RowName.of(row.labels)]] * len(row.scores)
    if row.table == "continual":
        averaged = [RowName(method, measured=measured) for measured in (BEFORE, KEPT, LEARNED)]
        names = [[name, replace(name, new_domain=row.labels["new_domain"])] for name in averaged]
    for of_score, score in zip(names, row.scores, strict=True):
        for name in of_score:
            yield name, score.config.domain, seed, score
            if score.config.domain == domain_of(OVER_REFUSAL):
                yield replace(name, is_over_refusal=True), OVER_REFUSAL, seed, score


def _unusual(rows: Sequence[Row]) -> Iterator[RowName]:
    for row in rows:
        if row.usual and row.labels["value"] != row.usual:
            name = RowName.of(row.labels)
            yield replace(name, minus=replace(name, value=row.usual))


def _claimed() -> list[RowName]:
    """What the claims name, a difference of differences after these."""
    return [each for claim in CLAIMS for pair in claim.pairs for each in (*(pair.sides if pair.less else ()), pair)]


def _pairs(names: Sequence[RowName]) -> Iterator[RowName]:
    for name in names:
        if name.measured == BEFORE:  # what continual learning starts from is compared in the first table
            continue
        method = RowName(name.method)
        if name.method != REFERENCE:
            yield replace(name, minus=replace(name, method=REFERENCE))
        control_of = METHODS[name.method].control_of if name.method in METHODS else None
        if control_of:
            yield replace(name, minus=replace(name, method=control_of))
        if name == replace(method, measured=KEPT):
            yield replace(name, minus=replace(method, measured=BEFORE))
        elif name not in (method, replace(method, measured=LEARNED)):
            yield replace(name, minus=method)
