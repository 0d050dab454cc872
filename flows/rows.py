"""A row of a table of the paper, and which rows are compared with which: seed by seed and question by question."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lori.intervals import MINUS
from lori.methods import METHODS
from lori.recipes import compare_config
from tasks.cells import Cells, Future, compare_rows
from tasks.paper_tables import BEFORE, KEPT, LEARNED, REFERENCE, ablation_name


@dataclass(frozen=True)
class Row:
    """A row before its numbers are there: an adapter and its scores.

    `table` is single, merging, continual, ablations or sweep; `usual` is the value of an ablation's setting that the
    others are compared with.
    """

    table: str
    labels: Mapping[str, Any]
    adapter: Future
    scores: list[Future]
    usual: str = ""


def comparison(cells: Cells, rows: Sequence[Row]) -> Future | None:
    """Intervals of the rows' scores over seeds and questions, and of what a comparison is of; None if nothing is.

    A row is `lori-s`, `lori-s concat`, `lori-s sparsity 0.5`, or, averaged over new domains, `lori-s before`, `lori-s
    kept` (of the first domain) and `lori-s learned` (of the new one), which are there for each new domain as well:
    `lori-s kept nlu`. Each is compared with the same of LoRA; a merge also with the method's own adapters, an ablation
    with the usual value, what is kept with what was there before, and a control with what it controls.
    """
    places = list(dict.fromkeys(place for row in rows for place in _places(row)))
    domain_of = {future: asked[1].domain for asked, future in cells.futures.items() if asked[0] == "evaluate"}
    measured: dict[str, dict[str, set[int]]] = {}  # by row and domain the seeds
    for name, seed, score in places:
        measured.setdefault(name, {}).setdefault(domain_of[score], set()).add(seed)
    asked = dict.fromkeys([*_pairs([*measured]), *_unusual(rows)])
    pairs = [f"{one}{MINUS}{other}" for one, other in asked if _are_comparable(measured[one], measured.get(other, {}))]
    if not pairs:
        return None
    tests = {
        asked[1].domain: future
        for asked, future in cells.futures.items()
        if asked[0] == "dataset" and asked[1].split == "test"
    }
    domains = [domain_of[score] for *_, score in places]
    config = compare_config(
        rows=[name for name, *_ in places], domains=domains, seeds=[seed for _, seed, _ in places], pairs=pairs
    )
    datasets = [tests[domain] for domain in dict.fromkeys(domains)]
    return compare_rows(cells, config, scores=[score for *_, score in places], datasets=datasets)


def _are_comparable(one: Mapping[str, set[int]], other: Mapping[str, set[int]]) -> bool:
    """Whether both are of the same domains, all of which share the same seeds."""
    shared = {frozenset(one[domain] & other[domain]) for domain in one if domain in other}
    return one.keys() == other.keys() and len(shared) == 1 and bool(*shared)


def _places(row: Row) -> Iterator[tuple[str, int, Future]]:
    """Name, seed and score of what the row measured on test rows."""
    if row.table == "sweep":
        return
    method, seed = row.labels["method"], row.labels["seed"]
    names = {
        "single": [method],
        "merging": [f"{method} {row.labels.get('merge')}"] * len(row.scores),
        "continual": [f"{method} {measured}" for measured in (BEFORE, KEPT, LEARNED)],
        "ablations": [ablation_name(row.labels)] * len(row.scores) if row.table == "ablations" else [],
    }
    for name, score in zip(names[row.table], row.scores, strict=True):
        yield name, seed, score
        if row.table == "continual":
            yield f"{name} {row.labels['new_domain']}", seed, score


def _unusual(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if row.usual and row.labels["value"] != row.usual:
            yield ablation_name(row.labels), ablation_name({**row.labels, "value": row.usual})


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        method, _, measured = name.partition(" ")
        if measured.startswith(BEFORE):  # what continual learning starts from is compared in the first table
            continue
        if method != REFERENCE:
            yield name, f"{REFERENCE} {measured}".strip()
        control_of = METHODS[method].control_of if method in METHODS else None
        if control_of:
            yield name, f"{control_of} {measured}".strip()
        if measured == KEPT:
            yield name, f"{method} {BEFORE}"
        elif measured not in ("", LEARNED):
            yield name, method
