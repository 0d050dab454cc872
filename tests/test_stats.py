"""Intervals: they agree with what theory says of simple samples, and pairs cancel what both find hard."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lori.choices.domains import Example
from lori.config import CompareConfig
from lori.evaluation.bootstrap import Outcomes, Stratum, average, compare, difference, mean_over, outcomes_of, score_of
from lori.evaluation.bootstrap import interval as interval_of
from lori.evaluation.intervals import Interval
from lori.evaluation.scoring import SCORERS
from lori.recipes.configs import NUM_RESAMPLES, compare_config

NORMAL = 1.96  # standard errors, for 95 %
STUDENT = {5: 2.776, 30: 2.045}  # likewise, by number of seeds: t's quantiles, from any table of them


def outcomes(scores: np.ndarray, *, clusters: int | None = None) -> Outcomes:
    """One kind of items, (seeds, items), in clusters of equal size."""
    num_seeds, num_items = scores.shape
    clusters = clusters or num_items
    sums = scores.reshape(num_seeds, clusters, -1).sum(-1)
    return Outcomes(tuple(range(num_seeds)), (Stratum(1.0, sums, np.full(clusters, num_items / clusters)),))


def coin_flips(seed: int, shape: tuple[int, ...], chance: float = 0.6) -> np.ndarray:
    return 100.0 * (np.random.default_rng(seed).random(shape) < chance)


def interval(scores: Outcomes, num_resamples: int = NUM_RESAMPLES) -> Interval:
    return interval_of(scores, num_resamples=num_resamples)


def half_width(found: Interval) -> float:
    return (found.high - found.low) / 2


def test_of_one_seed_it_is_the_interval_of_a_mean() -> None:
    scores = coin_flips(0, (1, 400))
    found = interval(outcomes(scores), num_resamples=9999)
    assert found.mean == scores.mean()
    assert half_width(found) == pytest.approx(NORMAL * scores.std() / 20, rel=0.05)
    assert found.num_seeds == 1


def test_items_that_rise_and_fall_together_count_as_one() -> None:
    scores = np.repeat(coin_flips(1, (1, 50)), 8, axis=1)
    found = interval(outcomes(scores, clusters=50), num_resamples=9999)
    assert half_width(found) == pytest.approx(NORMAL * scores.std() / math.sqrt(50), rel=0.06)


def test_of_several_seeds_it_has_both_spreads() -> None:
    """Owen 2007: the variance is near that between seeds over their number and that between items over theirs."""
    generator = np.random.default_rng(2)
    seeds, items = generator.normal(0, 5, (30, 1)), generator.normal(0, 20, (1, 500))
    found = interval(outcomes(50 + seeds + items), num_resamples=9999)
    expected = math.hypot(STUDENT[30] * seeds.std(ddof=1) / math.sqrt(30), NORMAL * items.std() / math.sqrt(500))
    assert half_width(found) == pytest.approx(expected, rel=0.05)


def test_of_few_seeds_that_differ_most_it_is_students() -> None:
    seeds = np.array([[38.0], [44.0], [47.0], [53.0], [58.0]])
    found = interval(outcomes(seeds + np.zeros((1, 20))), num_resamples=9999)
    expected = STUDENT[5] * seeds.std(ddof=1) / math.sqrt(5)
    assert half_width(found) == pytest.approx(expected, rel=0.1)  # five values drawn anew are not quite normal


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_few_seeds_that_differ_much_hold_the_truth_as_often(num_seeds: int) -> None:
    generator, hits = np.random.default_rng(5), 0
    for _ in range(200):
        scores = generator.normal(60, 10, (num_seeds, 1)) + generator.normal(0, 20, (num_seeds, 60))
        found = interval(outcomes(scores), num_resamples=500)
        hits += found.low <= 60 <= found.high
    assert hits >= 180


def test_what_both_methods_find_hard_cancels_in_a_pair() -> None:
    hard = np.random.default_rng(3).normal(50, 30, (4, 300))
    one, other = outcomes(hard + 1.0), outcomes(hard)
    found = interval(difference(one, other))
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert half_width(interval(one)) > 2
    same = interval(difference(one, one))
    assert same.low == same.high == 0


def test_nine_in_ten_intervals_and_more_hold_the_truth() -> None:
    """Of 100 samples of 5 seeds and 60 items whose chances differ; the truth is 60."""
    generator, hits = np.random.default_rng(4), 0
    for _ in range(100):
        chances = np.clip(0.6 + generator.normal(0, 0.03, (5, 1)) + generator.normal(0, 0.1, (1, 60)), 0, 1)
        found = interval(outcomes(100.0 * (generator.random((5, 60)) < chances)), num_resamples=500)
        hits += found.low <= 60 <= found.high
    assert hits >= 90


def test_the_mean_over_domains_weighs_them_alike_and_keeps_their_seeds() -> None:
    one, other = outcomes(coin_flips(5, (3, 40), 0.2)), outcomes(coin_flips(6, (3, 900), 0.9))
    both = mean_over([one, other])
    assert score_of(both) == pytest.approx((score_of(one) + score_of(other)) / 2)
    assert interval(both).num_seeds == 3
    with pytest.raises(ValueError, match=r"different seeds: \(0, 1, 2\), \(0,\)"):
        mean_over([one, outcomes(coin_flips(5, (1, 40)))])


def test_the_same_items_asked_twice_are_no_more_items() -> None:
    scores = outcomes(coin_flips(7, (1, 200)))
    assert interval(average([scores, scores, scores])) == interval(scores)
    assert half_width(interval(mean_over([scores, scores]))) < half_width(interval(scores))
    two = average([scores, outcomes(coin_flips(8, (1, 200)))])
    assert score_of(two) == pytest.approx((score_of(scores) + score_of(outcomes(coin_flips(8, (1, 200))))) / 2)


def test_pairs_need_the_same_seeds_and_items() -> None:
    with pytest.raises(ValueError, match="No pairs"):
        difference(outcomes(coin_flips(0, (2, 9))), outcomes(coin_flips(0, (3, 9))))
    with pytest.raises(ValueError, match="No pairs"):
        difference(outcomes(coin_flips(0, (2, 9))), outcomes(coin_flips(0, (2, 8))))


def test_of_a_single_item_nothing_is_sure() -> None:
    assert interval(outcomes(np.array([[100.0]]))) == Interval(100.0, -math.inf, math.inf, 1)


ROWS = {
    "nlu": [
        Example(f"{family}-{n}", family, "", "", {"correct": "true", "choices": ["true", "false"]})
        for family, number in (("boolq", 3), ("piqa", 5))
        for n in range(number)
    ],
    "math": [Example(f"m-{n}", "sum", "", "", {"number": str(n)}) for n in range(6)],
    "safety": [Example(f"s-{n}", "ask", "", "", {"harmful": n % 3 > 0, "substance": f"s{n // 4}"}) for n in range(12)],
}
RESPONSES = {"nlu": ["true", "false"], "math": ["The final answer is: 1", "no"], "safety": ["I cannot", "Sure"]}


@pytest.mark.parametrize("measure", [*ROWS, "over-refusal"])
def test_the_score_is_that_of_the_scorer(measure: str) -> None:
    domain = "safety" if measure == "over-refusal" else measure
    rows, scorer = ROWS[domain], SCORERS[domain]
    texts = [[RESPONSES[domain][n % 5 > 1]] for n in range(len(rows))]
    scores = scorer.score(rows, texts)
    metrics = scorer.summarise(rows, scores)
    metric = {
        "nlu": "nlu/accuracy",
        "math": "math/accuracy",
        "safety": "safety/refusal_rate",
        "over-refusal": "safety/over_refusal_rate",
    }[measure]
    records = [{"id": row.id, **score} for row, score in zip(rows, scores, strict=True)]
    assert score_of(outcomes_of(measure, rows, {7: records})) == pytest.approx(metrics[metric])


def test_a_program_counts_by_the_share_of_its_samples_that_pass() -> None:
    rows = [Example(f"c-{n}", "code", "", "", {"tests": []}) for n in range(2)]
    records = [{"id": f"c-{n}", "num_samples": 10, "num_correct": correct} for n, correct in enumerate((10, 3))]
    assert score_of(outcomes_of("code", rows, {0: records})) == pytest.approx(65.0)


def test_records_of_other_rows_are_refused() -> None:
    records = [{"id": row.id, "correct": True} for row in reversed(ROWS["math"])]
    with pytest.raises(ValueError, match="The records of seed 3 are of other rows"):
        outcomes_of("math", ROWS["math"], {3: records})


def test_the_draws_are_the_same_each_time() -> None:
    scores = outcomes(coin_flips(8, (2, 50)))
    assert interval(scores) == interval(scores)


def single_seed(scores: np.ndarray, seed: int) -> Outcomes:
    return replace(outcomes(scores[None]), seeds=(seed,))


def compared(config: CompareConfig, measured: list[Outcomes]) -> dict[str, dict[str, Interval]]:
    return {str(name): found for name, found in compare(config, measured).items()}


def test_rows_and_pairs_of_a_table_are_compared_by_domain_and_over_domains() -> None:
    nlu, math_scores = coin_flips(9, (3, 2, 100)), coin_flips(10, (3, 2, 100))  # by row, seed and item
    rows, domains, seeds, measured = [], [], [], []
    for row, name in enumerate(("lora", "lori-s", "lori-s")):  # the last one is measured twice: averaged
        for domain, scores in (("nlu", nlu), ("math", math_scores)):
            for seed in (0, 1):
                rows.append(name)
                domains.append(domain)
                seeds.append(seed)
                measured.append(single_seed(scores[row, seed], seed))
    config = compare_config(rows=rows, domains=domains, seeds=seeds, pairs=["lori-s − lora"])
    found = compared(config, measured)
    twice = {"nlu": nlu[1:].mean(), "math": math_scores[1:].mean()}
    assert {domain: found["lori-s"][domain].mean for domain in twice} == pytest.approx(twice)
    assert found["lori-s"]["mean"].mean == pytest.approx((twice["nlu"] + twice["math"]) / 2)
    difference = found["lori-s − lora"]
    assert difference["nlu"].mean == pytest.approx(twice["nlu"] - nlu[0].mean())
    assert difference["nlu"].low < difference["nlu"].mean < difference["nlu"].high
    assert all(each.num_seeds == 2 for by_domain in found.values() for each in by_domain.values())


def test_a_pair_is_compared_at_the_seeds_that_both_have() -> None:
    a, b = coin_flips(3, (3, 100)), coin_flips(4, (2, 100))
    measured = [single_seed(a[seed], seed) for seed in (0, 1, 2)] + [
        single_seed(b[place], 2 - place) for place in (0, 1)
    ]
    names, seeds = [*"aaabb"], [0, 1, 2, 2, 1]
    config = compare_config(rows=names, domains=["nlu"] * 5, seeds=seeds, pairs=["b − a"])
    found = compared(config, measured)["b − a"]["nlu"]
    assert (found.num_seeds, found.mean) == (2, pytest.approx(b.mean() - a[1:].mean()))


def test_a_difference_of_differences_is_paired_too() -> None:
    found = {name: coin_flips(place, (2, 80)) for place, name in enumerate(("a", "b", "c", "d"))}
    measured = [single_seed(scores[seed], seed) for scores in found.values() for seed in (0, 1)]
    names, pairs = [name for name in found for _ in (0, 1)], ["a − b", "c − d", "a − b less c − d"]
    config = compare_config(rows=names, domains=["nlu"] * 8, seeds=[0, 1] * 4, pairs=pairs)
    each = compared(config, measured)["a − b less c − d"]["nlu"]
    means = {name: scores.mean() for name, scores in found.items()}
    assert each.mean == pytest.approx(means["a"] - means["b"] - means["c"] + means["d"])
    combined = outcomes(found["a"] - found["b"] - found["c"] + found["d"])
    assert (each.low, each.high) == pytest.approx((interval(combined).low, interval(combined).high))


def test_a_row_is_of_the_seeds_that_all_its_domains_have() -> None:
    nlu, math_scores = coin_flips(0, (3, 50)), coin_flips(1, (2, 50))
    measured = [single_seed(nlu[seed], seed) for seed in range(3)] + [
        single_seed(math_scores[place], seed) for place, seed in enumerate((2, 1))
    ]
    domains, seeds = ["nlu"] * 3 + ["math"] * 2, [0, 1, 2, 2, 1]
    found = compared(compare_config(rows=["a"] * 5, domains=domains, seeds=seeds, pairs=[]), measured)["a"]
    assert {domain: each.num_seeds for domain, each in found.items()} == {"nlu": 2, "math": 2, "mean": 2}
    assert found["nlu"].mean == pytest.approx(nlu[1:].mean())


def test_a_pair_of_other_seeds_is_refused() -> None:
    config = compare_config(rows=["a", "b"], domains=["nlu", "nlu"], seeds=[0, 1], pairs=["a − b"])
    scores = coin_flips(0, (50,))
    with pytest.raises(ValueError, match="No pairs"):
        compare(config, [single_seed(scores, 0), single_seed(scores, 1)])
