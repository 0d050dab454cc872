"""How often a "95 %" interval of evaluation/resampling.py holds the truth, for few seeds that differ little or much.

    python -m benchmarks.coverage      # a quarter of a minute; writes benchmarks/coverage.json

Scores are drawn with a known mean of 0: normal between seeds, and normal between items within each seed.
"""

import numpy as np

from benchmarks.measure import report
from lori.evaluation.resampling import LEVEL, Outcomes, Stratum, interval

NUM_TRIALS, NUM_ITEMS, NUM_RESAMPLES = 400, 100, 1000
# Seeds, and the standard deviations between seeds and between items
CASES = ((5, 10.0, 20.0), (2, 10.0, 20.0), (5, 5.0, 40.0), (2, 5.0, 40.0), (1, 0.0, 40.0))


def holds(trial: int, num_seeds: int, between_seeds: float, between_items: float) -> bool:
    """Whether one simulated study's interval has 0 in it."""
    generator = np.random.default_rng(trial)
    scores = generator.normal(0, between_seeds, (num_seeds, 1))
    scores = scores + generator.normal(0, between_items, (num_seeds, NUM_ITEMS))
    study = Outcomes(tuple(range(num_seeds)), (Stratum(1.0, scores, np.ones(NUM_ITEMS)),))
    found = interval(study, num_resamples=NUM_RESAMPLES)
    return found.low <= 0 <= found.high


def row(num_seeds: int, between_seeds: float, between_items: float) -> dict[str, float | int]:
    """A case as a line of the table; the error is that of a share of so many trials."""
    share = np.mean([holds(trial, num_seeds, between_seeds, between_items) for trial in range(NUM_TRIALS)])
    return {
        "seeds": num_seeds,
        "sd between seeds": between_seeds,
        "sd between items": between_items,
        "asked for, %": 100 * LEVEL,
        "covered, %": 100 * float(share),
        "± se": 100 * float(np.sqrt(share * (1 - share) / NUM_TRIALS)),
    }


if __name__ == "__main__":
    report("coverage", [row(*case) for case in CASES], trials=NUM_TRIALS, items=NUM_ITEMS)
