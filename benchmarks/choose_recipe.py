"""Choose a scale model's learning rates and merge weights on the validation split, alike for every method.

    python -m benchmarks.choose_recipe      # about 15 minutes on 2 cores; writes benchmarks/choose_recipe.json
    python -m benchmarks.choose_recipe --base wide --processes 14   # of a folder with a scale model of another size

Every method gets the same number of candidates, and one learning rate (or one weight for a merge method) for all
domains: the one with the best mean over domains. The test split is not read. `lori/recipes.py` holds the choice for
the shipped model, and reads that for another one in its folder.
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

from lori.adaptation import apply_adapter, attach, save_adapter, sparsify
from lori.config import MergeConfig
from lori.data import make_rows, tokenise
from lori.domains import DOMAINS
from lori.evaluation import evaluate
from lori.loading import load_base, load_tokenizer
from lori.masks import extract_masks
from lori.merging import merge
from lori.methods import METHODS
from lori.models import identity, split_base
from lori.profiles import DENSITY, PROFILES, Profile
from lori.recipes import CHOICE_FILE, data_config, eval_config, mask_config, train_config
from lori.training import train

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
SCALE = PROFILES["scale"]  # unchecked: a new method has no weights yet
DEVICE = "auto"


def validation_score(profile: Profile, domain: str, model_dir: Path, num_rows: int | None = None) -> float:
    """The headline in percent; for safety the mean of refusing what is harmful and helping with what is not."""
    tokenizer = load_tokenizer(profile.base_model, profile.models_dir)
    model = apply_adapter(load_base(profile.base_model, DEVICE, models_dir=profile.models_dir), model_dir)
    examples = make_rows(data_config(profile, domain, "validation"))[:num_rows]
    metrics, _ = evaluate(model, tokenizer, examples, replace(eval_config(profile, domain), seed=SEED))
    if domain == "safety":
        return (metrics["safety/refusal_rate"] + 100 - metrics["safety/over_refusal_rate"]) / 2
    return metrics[DOMAINS[domain].headline]


def adapter_dir(root: Path, method: str, domain: str, rate: float) -> Path:
    return root / f"{method}-{domain}-{rate:g}"


def try_rate(profile: Profile, root: Path, method: str, domain: str, rate: float, dense_rate: float | None) -> float:
    """Train one adapter and score it; LoRI-S takes its mask from the LoRI-D adapter at `dense_rate`."""
    config = replace(train_config(profile, method, domain, SEED), learning_rate=rate)
    tokenizer = load_tokenizer(profile.base_model, profile.models_dir)
    model = attach(load_base(profile.base_model, DEVICE, models_dir=profile.models_dir), config)
    if dense_rate is not None:
        mask = mask_config(profile, "lori-d", domain)
        sparsify(model, extract_masks(adapter_dir(root, "lori-d", domain, dense_rate), mask))
    examples = make_rows(data_config(profile, domain, "train"))
    rows = tokenise([example.pair for example in examples], tokenizer, config)
    train(model, rows, config, tokenizer=tokenizer)
    out = adapter_dir(root, method, domain, rate)
    save_adapter(model, out, config)
    return validation_score(profile, domain, out)


def try_weight(
    profile: Profile, root: Path, method: str, merge_method: str, weight: float, rate: float
) -> dict[str, float]:
    """Merge all domains' adapters of one method and score the merge on each."""
    base, weights = identity(profile.base_model, profile.models_dir), (weight,) * len(profile.domains)
    config = MergeConfig(base, merge_method, weights, DENSITY, SEED, match_norms=False)
    out = root / f"{method}-{merge_method}-{weight:g}"
    merge([adapter_dir(root, method, domain, rate) for domain in profile.domains], config, out)
    return {domain: validation_score(profile, domain, out, NUM_MERGE_ROWS) for domain in profile.domains}


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def choose_rates(
    pool: ProcessPoolExecutor,
    profile: Profile,
    root: Path,
    tried: dict[str, tuple[float, ...]],
    chosen: dict[str, float],
) -> Iterator[dict]:
    """One record a candidate; `chosen` gets the best of the rates `tried` of each method."""
    jobs = {}
    for method, rates in tried.items():
        source = METHODS[method].mask_from
        for rate in rates:
            for domain in profile.domains:
                jobs[method, rate, domain] = pool.submit(
                    try_rate, profile, root, method, domain, rate, chosen[source] if source else None
                )
    for method, rates in tried.items():
        records = []
        for rate in rates:
            scores = {domain: jobs[method, rate, domain].result() for domain in profile.domains}
            records.append({"method": method, "learning_rate": rate, "scores": scores, "mean": mean(scores)})
        chosen[method] = max(records, key=lambda record: record["mean"])["learning_rate"]
        yield from records


def choose_weights(pool: ProcessPoolExecutor, profile: Profile, root: Path, rates: dict[str, float]) -> Iterator[dict]:
    jobs = {
        (method, merge_method, weight): pool.submit(
            try_weight, profile, root, method, merge_method, weight, rates[method]
        )
        for method in rates
        for merge_method in profile.merge_methods
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


def edges(candidates: tuple[float, ...]) -> tuple[float, float]:
    """Where the best may lie outside of what was tried."""
    return min(candidates), max(candidates)


def candidates(methods: list[str], *, is_shipped: bool) -> dict[str, tuple[float, ...]]:
    """Rates by method; of another model one that is lower still, as these were found on the shipped one."""
    return {
        method: rates if is_shipped else (min(rates) / 2, *rates)
        for method, rates in LEARNING_RATES.items()
        if method in methods
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=SCALE.base_model, help="a folder with a scale model (default: the shipped)")
    parser.add_argument("--methods", nargs="+", choices=list(LEARNING_RATES), default=list(LEARNING_RATES))
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    started, rates = time.monotonic(), {}
    name, models_dir = split_base(asked.base)
    profile = replace(SCALE, base_model=name, models_dir=models_dir)
    tried = candidates(asked.methods, is_shipped=models_dir is None)
    dense = {method: some for method, some in tried.items() if METHODS[method].mask_from is None}
    masked = {method: some for method, some in tried.items() if method not in dense}
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(asked.processes, mp_context=context) as pool:
        root = Path(scratch)
        records = [show(record) for record in choose_rates(pool, profile, root, dense, rates)]
        records += [show(record) for record in choose_rates(pool, profile, root, masked, rates)]
        merged = [show(record) for record in choose_weights(pool, profile, root, rates)]
    weights = {}
    for record in sorted(merged, key=lambda record: record["mean"]):
        weights[f"{record['method']} {record['merge']}"] = record["weight"]
    result = {
        "base_model": identity(name, models_dir),
        "seed": SEED,
        "learning_rates": rates,
        "merge_weights": dict(sorted(weights.items())),
        "rates_at_an_edge": [name for name, rate in rates.items() if rate in edges(tried[name])],
        "weights_at_an_edge": [name for name, weight in sorted(weights.items()) if weight in edges(WEIGHTS)],
        "tried_rates": records,
        "tried_weights": merged,
        "wall_seconds": round(time.monotonic() - started),
    }
    path = Path(models_dir, name, CHOICE_FILE) if models_dir else Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Wrote {path}: {result['learning_rates']} {result['merge_weights']}")


if __name__ == "__main__":
    main()
