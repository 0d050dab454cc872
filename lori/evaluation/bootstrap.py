"""How sure a score is: bootstrap intervals over seeds and test items, of one method or of a paired difference.

A score is a mean over seeds and items. Both are samples: other seeds draw other A's and another order of the rows, and
the test rows are some of all that could be asked. `scipy.stats.bootstrap` draws seeds and items anew, independently of
each other, and what the two move the score by is added (as in Owen 2007, "The pigeonhole bootstrap", but that chance
within a seed counts twice there three times). Methods that answer the same items with the same seeds are compared item
by item, so that what is hard for both cancels.

A few seeds drawn anew spread less than seeds do: what lies between them is widened to what Student's t asks for (of
two seeds, which have only three resamples, it stays a quarter below). Where
seeds differ by no more than chance, intervals are too wide rather than too narrow: see `benchmarks/coverage.py`.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap, norm, t

from lori.choices.domains import Example
from lori.config import CompareConfig
from lori.evaluation.intervals import Interval
from lori.evaluation.row_names import MEAN, RowName, domain_of
from lori.evaluation.scoring import SCORERS, cluster_of

LEVEL = 0.95
BATCH = 200  # resamples in memory at once


@dataclass(frozen=True)
class Stratum:
    """Items of one kind: of each cluster the sum of its items' scores by seed, (seeds, clusters), and its size.

    `weight` is the share of the kind's mean in the whole score.
    """

    weight: float
    sums: Float[np.ndarray, "seeds clusters"]
    sizes: Float[np.ndarray, " clusters"]


@dataclass(frozen=True)
class Outcomes:
    """A score taken apart: the same strata for every seed, in the order of `seeds`."""

    seeds: tuple[int, ...]
    strata: tuple[Stratum, ...]


def outcomes_of(
    measure: str, examples: Sequence[Example], records: Mapping[int, Sequence[Mapping[str, Any]]]
) -> Outcomes:
    """The headline score of a domain, or over-refusal, taken apart: what each seed's `records` (evaluation) scored.

    `Scorer` says which items count for a measure, and what each is worth.

    Raises:
        ValueError: if the records are of other rows than `examples`.
    """
    for seed, of_seed in records.items():
        if [example.id for example in examples] != [record["id"] for record in of_seed]:
            raise ValueError(f"The records of seed {seed} are of other rows: give the rows that they were made from.")
    scorer = SCORERS[domain_of(measure)]
    parts: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        counts_for, part = scorer.part_of(example)
        if counts_for == measure:
            parts.setdefault(part, []).append(place)
    scores = np.array([[scorer.percent(record) for record in of_seed] for of_seed in records.values()])
    strata = [
        _stratum([examples[place] for place in part], scores[:, part], 1 / len(parts)) for part in parts.values()
    ]
    return Outcomes(tuple(records), tuple(strata))


def _stratum(examples: Sequence[Example], scores: NDArray[np.float64], weight: float) -> Stratum:
    _, places = np.unique([cluster_of(example) for example in examples], return_inverse=True)
    sizes = np.bincount(places).astype(float)
    return Stratum(weight, np.stack([np.bincount(places, of_seed) for of_seed in scores]), sizes)


def mean_over(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Their unweighted mean, as of several domains: a seed is the same one in all of them.

    Raises:
        ValueError: if their seeds differ.
    """
    if len({each.seeds for each in outcomes}) != 1:
        raise ValueError(f"A mean over different seeds: {', '.join(str(each.seeds) for each in outcomes)}.")
    strata = [replace(s, weight=s.weight / len(outcomes)) for each in outcomes for s in each.strata]
    return Outcomes(outcomes[0].seeds, tuple(strata))


def average(outcomes: Sequence[Outcomes]) -> Outcomes:
    """The mean of scores on the same items, such as of one domain after each of several others.

    Raises:
        ValueError: if they are not of the same items and seeds.
    """
    total = outcomes[0]
    for each in outcomes[1:]:
        total = _combined(total, each, lambda one, other: one + other)
    return replace(total, strata=tuple(replace(s, sums=s.sums / len(outcomes)) for s in total.strata))


def difference(one: Outcomes, other: Outcomes) -> Outcomes:
    """`one` − `other`, item by item and seed by seed.

    Raises:
        ValueError: if they are not of the same items and seeds.
    """
    return _combined(one, other, lambda one, other: one - other)


def at_shared_seeds(one: Outcomes, other: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Both, of the seeds that both have.

    Raises:
        ValueError: if there are none.
    """
    seeds = tuple(seed for seed in one.seeds if seed in other.seeds)
    if not seeds:
        raise ValueError(f"No pairs: seeds {one.seeds} and {other.seeds} have none in common.")

    return _of_seeds(one, seeds), _of_seeds(other, seeds)


def _of_seeds(outcomes: Outcomes, seeds: tuple[int, ...]) -> Outcomes:
    places = [outcomes.seeds.index(seed) for seed in seeds]
    return Outcomes(seeds, tuple(replace(s, sums=s.sums[places]) for s in outcomes.strata))


def _combined(one: Outcomes, other: Outcomes, operation: Callable[[Any, Any], Any]) -> Outcomes:
    pairs = list(zip(one.strata, other.strata, strict=False))
    same = len(one.strata) == len(other.strata) and all(np.array_equal(s.sizes, t.sizes) for s, t in pairs)
    if one.seeds != other.seeds or not same:
        raise ValueError(f"No pairs: seeds {one.seeds} and {other.seeds} on the same items are needed.")
    return Outcomes(one.seeds, tuple(replace(s, sums=operation(s.sums, t.sums)) for s, t in pairs))


def score_of(outcomes: Outcomes) -> float:
    """The mean over seeds."""
    return float(sum(s.weight * s.sums.mean(axis=0).sum() / s.sizes.sum() for s in outcomes.strata))


def interval(outcomes: Outcomes, *, num_resamples: int) -> Interval:
    """The score's 95 % percentile interval. The same on every machine: the bootstrap's draws are seeded.

    With one seed it says nothing of other seeds. Where a stratum has one item its spread can't be measured, and the
    interval has no ends.
    """
    if any(len(stratum.sizes) == 1 for stratum in outcomes.strata):
        return Interval(score_of(outcomes), -math.inf, math.inf, len(outcomes.seeds))
    seeds = [np.arange(len(outcomes.seeds))] if len(outcomes.seeds) > 1 else []  # one can't be drawn anew
    samples = [*seeds, *(np.arange(len(stratum.sizes)) for stratum in outcomes.strata)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # all resamples alike: the interval is that point
        found = bootstrap(
            samples,
            lambda *drawn, axis: _resampled(outcomes, drawn),  # noqa: ARG005 scipy names the axis, always the last
            vectorized=True,
            method="percentile",
            n_resamples=num_resamples,
            batch=BATCH,
            confidence_level=LEVEL,
            rng=np.random.default_rng(0),
        )
    low, high = found.confidence_interval
    return Interval(score_of(outcomes), float(low), float(high), len(outcomes.seeds))


def _resampled(outcomes: Outcomes, drawn: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """The score of each resample: `drawn` are places of seeds and of each stratum's clusters, (resamples, …)."""
    clusters = drawn[-len(outcomes.strata) :]
    total = np.zeros(clusters[0].shape[:-1])
    for stratum, places in zip(outcomes.strata, clusters, strict=True):
        of_items = stratum.sums.mean(axis=0)[places].sum(axis=-1)
        total += stratum.weight * of_items / stratum.sizes[places].sum(axis=-1)
    num_seeds = len(outcomes.seeds)
    if num_seeds == 1:
        return total
    by_seed = np.sum([s.weight * s.sums.sum(axis=1) / s.sizes.sum() for s in outcomes.strata], axis=0)
    return total + _widening(num_seeds) * (by_seed[drawn[0]].mean(axis=-1) - by_seed.mean())


def _widening(num_seeds: int) -> float:
    """By what the spread of a mean of `num_seeds` values drawn anew falls short of the t interval's."""
    tail = (1 + LEVEL) / 2
    return float(math.sqrt(num_seeds / (num_seeds - 1)) * t.ppf(tail, num_seeds - 1) / norm.ppf(tail))


def compare(config: CompareConfig, outcomes: Sequence[Outcomes]) -> dict[RowName, dict[str, Interval]]:
    """By row and pair of `config`: the interval of each domain, and of their `MEAN`.

    `outcomes` are of one seed each, in the order of `config.rows`. A row is of the seeds that all its domains have, a
    pair of those that both its rows have.

    Raises:
        ValueError: if two rows of a pair have no seed in common.
    """
    rows: dict[RowName, dict[str, Outcomes]] = {}
    for row in dict.fromkeys(config.rows):
        places = [place for place, name in enumerate(config.rows) if name == row]
        by_domain: dict[str, dict[int, list[Outcomes]]] = {}
        for place in places:
            of_domain = by_domain.setdefault(config.domains[place], {})
            of_domain.setdefault(config.seeds[place], []).append(outcomes[place])
        shared = sorted(set.intersection(*map(set, by_domain.values())))
        rows[RowName.parse(row)] = {
            domain: _of_all_seeds({seed: average(of_domain[seed]) for seed in shared})
            for domain, of_domain in by_domain.items()
        }
    for pair in map(RowName.parse, config.pairs):
        one, other = (rows[side] for side in pair.sides)
        rows[pair] = {domain: difference(*at_shared_seeds(one[domain], other[domain])) for domain in one}
    return {
        name: {
            domain: interval(each, num_resamples=config.num_resamples)
            for domain, each in {**found, MEAN: mean_over([*found.values()])}.items()
        }
        for name, found in rows.items()
    }


def _of_all_seeds(seeds: Mapping[int, Outcomes]) -> Outcomes:
    """One score of several seeds, each of which has the same items."""
    first, *_ = found = [*seeds.values()]
    strata = [
        replace(stratum, sums=np.concatenate([each.strata[place].sums for each in found]))
        for place, stratum in enumerate(first.strata)
    ]
    return Outcomes(tuple(seeds), tuple(strata))
