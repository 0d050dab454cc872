"""Choose a scale model's learning rates and merge weights on the validation split, alike for every method.

    python -m benchmarks.choose_recipe      # about 15 minutes on 2 cores; writes benchmarks/choose_recipe.json
    python -m benchmarks.choose_recipe --base wide --processes 8    # of a scale model of another size; writes it there

Every method gets the same number of candidates, and one learning rate (or one weight for a merge method) for all
domains: the one with the best mean over domains. The test split is not read. `lori/recipes/scale_numbers.py` holds the
choice for the shipped model, and reads that for another one.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one thread a process

from lori.adapters.attach import apply_adapter, attach, save_adapter, sparsify
from lori.adapters.masks import extract_masks
from lori.adapters.merging import merge
from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS, base_model, split_base
from lori.choices.domains import DOMAINS
from lori.choices.methods import METHODS
from lori.choices.profiles import DENSITY, PROFILES
from lori.config import MergeConfig
from lori.datasets.rows import make_rows
from lori.datasets.tokenise import tokenise
from lori.evaluation.answers import evaluate
from lori.recipes.configs import data_config, eval_config, mask_config, train_config
from lori.recipes.scale_numbers import CHOICE_FILE
from lori.training.trainer import train

SCALE = BASE_MODELS["scale"]

SEED = 1000  # none of the seeds that a profile reports
NUM_MERGE_ROWS = 100
LEARNING_RATES = {
    "full": (1.25e-4, 2.5e-4, 5e-4, 1e-3),
    "lora": (1e-3, 2e-3, 4e-3, 8e-3),
    "dora": (1e-3, 2e-3, 4e-3, 8e-3),
    "lori-d": (2.5e-3, 5e-3, 1e-2, 2e-2),
    "lori-s": (1e-2, 2e-2, 4e-2, 8e-2),
}
WEIGHTS = (0.125, 0.25, 0.5, 1.0, 2.0)
PROFILE = PROFILES["scale"]  # unchecked: a new method has no weights yet
DEVICE = "auto"


def validation_score(base: str, domain: str, model_dir: Path, num_rows: int = PROFILE.num_validation) -> float:
    """The headline in percent; for safety the mean of refusing what is harmful and helping with what is not."""
    tokenizer = load_tokenizer(base_model(base))
    model = apply_adapter(load_base(base_model(base), DEVICE), model_dir)
    examples = make_rows(data_config(PROFILE, domain, "validation"))[:num_rows]
    metrics, _ = evaluate(model, tokenizer, examples, replace(eval_config(PROFILE, domain), seed=SEED))
    if domain == "safety":
        return (metrics["safety/refusal_rate"] + 100 - metrics["safety/over_refusal_rate"]) / 2
    return metrics[DOMAINS[domain].headline]


def adapter_dir(root: Path, method: str, domain: str, rate: float) -> Path:
    return root / f"{method}-{domain}-{rate:g}"


def try_rate(base: str, root: Path, method: str, domain: str, rate: float, dense_rate: float | None) -> float:
    """Train one adapter and score it; LoRI-S takes its mask from the LoRI-D adapter at `dense_rate`."""
    config = replace(
        train_config(PROFILE, method, domain, SEED), base_model=base_model(base).identity, learning_rate=rate
    )
    tokenizer = load_tokenizer(base_model(base))
    model = attach(load_base(base_model(base), DEVICE), config)
    if dense_rate is not None:
        mask = mask_config(PROFILE, "lori-d", domain)
        sparsify(model, extract_masks(adapter_dir(root, "lori-d", domain, dense_rate), mask))
    examples = make_rows(data_config(PROFILE, domain, "train"))
    rows = tokenise([example.pair for example in examples], tokenizer, config)
    train(model, rows, config, tokenizer=tokenizer)
    out = adapter_dir(root, method, domain, rate)
    save_adapter(model, out, config)
    return validation_score(base, domain, out)


def try_weight(base: str, root: Path, method: str, merge_method: str, weight: float, rate: float) -> dict[str, float]:
    """Merge all domains' adapters of one method and score the merge on each."""
    weights = (weight,) * len(PROFILE.domains)
    config = MergeConfig(base_model(base).identity, merge_method, weights, DENSITY, SEED, match_norms=False)
    out = root / f"{method}-{merge_method}-{weight:g}"
    adapters = [adapter_dir(root, method, domain, rate) for domain in PROFILE.domains]
    merge(adapters, config, out, models_dir=split_base(base)[1])
    return {domain: validation_score(base, domain, out, NUM_MERGE_ROWS) for domain in PROFILE.domains}


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def choose_rates(
    pool: ProcessPoolExecutor, base: str, root: Path, methods: list[str], chosen: dict[str, float]
) -> Iterator[dict]:
    """One record a candidate; `chosen` gets the best rate of each of `methods`."""
    jobs = {}
    for method in methods:
        source = METHODS[method].mask_from
        for rate in candidates(method, base):
            for domain in PROFILE.domains:
                jobs[method, rate, domain] = pool.submit(
                    try_rate, base, root, method, domain, rate, chosen[source] if source else None
                )
    for method in methods:
        records = []
        for rate in candidates(method, base):
            scores = {domain: jobs[method, rate, domain].result() for domain in PROFILE.domains}
            records.append({"method": method, "learning_rate": rate, "scores": scores, "mean": mean(scores)})
        chosen[method] = max(records, key=lambda record: record["mean"])["learning_rate"]
        yield from records


def choose_weights(pool: ProcessPoolExecutor, base: str, root: Path, rates: dict[str, float]) -> Iterator[dict]:
    jobs = {
        (method, merge_method, weight): pool.submit(
            try_weight, base, root, method, merge_method, weight, rates[method]
        )
        for method in PROFILE.merged
        for merge_method in PROFILE.merge_methods
        for weight in WEIGHTS
    }
    for (method, merge_method, weight), job in jobs.items():
        scores = job.result()
        yield {"method": method, "merge": merge_method, "weight": weight, "scores": scores, "mean": mean(scores)}


def show(record: dict) -> dict:
    what = " ".join(str(value) for key, value in record.items() if key not in ("scores", "mean"))
    scores = "  ".join(f"{domain} {score:5.1f}" for domain, score in record["scores"].items())
    print(f"{what:<28} {scores}  mean {record['mean']:5.1f}", flush=True)
    return record


def candidates(method: str, base: str) -> tuple[float, ...]:
    """Learning rates; for another model than the one that they were found for a lower one as well."""
    rates = LEARNING_RATES[method]
    return rates if base_model(base) == SCALE else (min(rates) / 2, *rates)


def edges(candidates: tuple[float, ...]) -> tuple[float, float]:
    """Where the best may lie outside of what was tried."""
    return min(candidates), max(candidates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base", default=PROFILE.base_model, help="a folder with a scale model (default: the shipped)"
    )
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    row, started, rates = base_model(asked.base), time.monotonic(), {}
    if row.suite != "miniature":
        parser.error(f"{asked.base} is no scale model: the paper's datasets have no validation rows.")
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(asked.processes, mp_context=context) as pool:
        root = Path(scratch)
        dense = [method for method in LEARNING_RATES if METHODS[method].mask_from is None]
        tried = [show(record) for record in choose_rates(pool, asked.base, root, dense, rates)]
        tried += [show(record) for record in choose_rates(pool, asked.base, root, ["lori-s"], rates)]
        merged = [show(record) for record in choose_weights(pool, asked.base, root, rates)]
    weights = {}
    for record in sorted(merged, key=lambda record: record["mean"]):
        weights[f"{record['method']} {record['merge']}"] = record["weight"]
    result = {
        "base_model": base_model(asked.base).identity,
        "seed": SEED,
        "learning_rates": rates,
        "merge_weights": dict(sorted(weights.items())),
        "rates_at_an_edge": [name for name, rate in rates.items() if rate in edges(candidates(name, asked.base))],
        "weights_at_an_edge": [name for name, weight in sorted(weights.items()) if weight in edges(WEIGHTS)],
        "tried_rates": tried,
        "tried_weights": merged,
        "wall_seconds": round(time.monotonic() - started),
    }
    is_shipped = row == SCALE
    path = Path(__file__).with_suffix(".json") if is_shipped else Path(row.source, CHOICE_FILE)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Wrote {path}: {result['learning_rates']} {result['merge_weights']}")


if __name__ == "__main__":
    main()
