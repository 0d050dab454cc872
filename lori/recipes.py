"""The numbers: hyper-parameters of every cell, and which cells a profile has. Nothing else decides a result.

The scale model follows the paper where size does not forbid it: AdamW at a constant rate, α = 2 r, its epochs, its
clipping and loss, sparsity 0.9 over the whole model. Rank, batch, lengths, rates and merge weights are its own.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lori.config import DataConfig, EvalConfig, MaskConfig, MergeConfig, TrainConfig
from lori.domains import DOMAINS, domain
from lori.masks import check_mask_config
from lori.merging import check_merge_config
from lori.methods import method
from lori.models import LLAMA_PROJECTIONS, base_model, identity

ALPHA_PER_RANK = 2  # paper, appendix: α = 64 at r = 32, 128 at r = 64
DENSITY = 0.7  # of magnitude, ties and dare
# The scale model's: chosen on the validation split, from as many candidates for every method (choose_recipe.py)
LEARNING_RATES = {"base": 0.0, "full": 0.00025, "lora": 0.002, "dora": 0.002, "lori-d": 0.01, "lori-s": 0.04}
# The paper's, at rank 32 (appendix). Of its baselines none was released; LoRA's is a public replication's
PAPER_LEARNING_RATES = {"lora": 5e-5, "lori-d": 5e-5, "lori-s": 5e-4}
# Likewise, for each method and merge method one weight for all adapters
MERGE_WEIGHTS = {
    ("full", "concat"): 1.0,
    ("full", "linear"): 1.0,
    ("full", "magnitude"): 1.0,
    ("full", "ties"): 1.0,
    ("full", "dare"): 1.0,
    ("lora", "concat"): 1.0,
    ("lora", "linear"): 0.5,
    ("lora", "magnitude"): 0.5,
    ("lora", "ties"): 2.0,
    ("lora", "dare"): 0.5,
    ("dora", "concat"): 1.0,
    ("dora", "linear"): 1.0,
    ("dora", "magnitude"): 1.0,
    ("dora", "ties"): 1.0,
    ("dora", "dare"): 1.0,
    ("lori-d", "concat"): 0.5,
    ("lori-d", "linear"): 0.25,
    ("lori-d", "magnitude"): 0.25,
    ("lori-d", "ties"): 0.5,
    ("lori-d", "dare"): 0.25,
    ("lori-s", "concat"): 0.5,
    ("lori-s", "linear"): 0.25,
    ("lori-s", "magnitude"): 0.25,
    ("lori-s", "ties"): 0.25,
    ("lori-s", "dare"): 0.125,
}
# Safety's requests cluster by substance, and a third of them are harmless: more are needed for the same error
TEST_FACTOR = {"nlu": 1, "math": 1, "code": 1, "safety": 3}
MAX_NEW_TOKENS = {"nlu": 16, "math": 48, "code": 40, "safety": 32}


@dataclass(frozen=True)
class Profile:
    """The cells of one run of the whole paper. Sizes are rows of a domain; tests have `TEST_FACTOR` times as many."""

    name: str
    base_model: str
    domains: tuple[str, ...]
    methods: tuple[str, ...]
    merged: tuple[str, ...]
    merge_methods: tuple[str, ...]
    weights: tuple[float, ...] | None
    density: float
    continual_methods: tuple[str, ...]
    continual_first: str
    seeds: tuple[int, ...]
    rank: int
    sparsity: float
    scope: str
    batch_size: int
    eval_batch_size: int
    num_steps: int
    num_validation: int
    num_test: int


SCALE = Profile(
    name="scale",
    base_model="scale",
    domains=("nlu", "math", "code", "safety"),
    methods=("base", "full", "lora", "dora", "lori-d", "lori-s"),
    merged=("full", "lora", "dora", "lori-d", "lori-s"),
    merge_methods=("concat", "linear", "magnitude", "ties", "dare"),
    weights=None,
    density=DENSITY,
    continual_methods=("lora", "lori-d", "lori-s"),
    continual_first="safety",
    seeds=(0,),
    rank=6,
    sparsity=0.9,
    scope="model",
    batch_size=16,
    eval_batch_size=300,
    num_steps=100,
    num_validation=150,
    num_test=300,
)
PROFILES = {
    "scale": SCALE,
    # Every kind of stage and every method once, with too few steps to mean anything
    "smoke": replace(
        SCALE,
        name="smoke",
        domains=("nlu", "safety"),
        merged=("lora", "dora", "lori-s"),
        merge_methods=("concat", "ties"),
        continual_methods=("lori-s",),
        num_steps=4,
        num_validation=8,
        num_test=12,
    ),
}


def profile(name: str, **overrides: Any) -> Profile:
    """The profile of that name with the fields that `overrides` gives; those that are None stay as they are.

    Raises:
        ValueError: for an unknown profile, base model, domain, method, merge method or scope, with the known ones.
    """
    if name not in PROFILES:
        raise ValueError(f"Unknown profile {name!r}. Known: {', '.join(PROFILES)} (lori/recipes.py).")
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in overrides.items() if v is not None}
    changed = replace(PROFILES[name], **given)
    if "domains" in given or "methods" in given:
        changed = _narrowed(changed)
    return _checked(changed)


def _narrowed(changed: Profile) -> Profile:
    """Without the merges and continual cells of methods that are not asked for, nor of a domain that is missing."""
    return replace(
        changed,
        merged=tuple(m for m in changed.merged if m in changed.methods) if len(changed.domains) > 1 else (),
        continual_methods=tuple(m for m in changed.continual_methods if m in changed.methods)
        if changed.continual_first in changed.domains
        else (),
    )


def _checked(changed: Profile) -> Profile:
    base_model(changed.base_model)
    for name in ("domains", "methods", "seeds"):
        values = getattr(changed, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} is {list(values)}: name at least one, each once, or leave it out.")
    for name in changed.domains:
        domain(name)
    for name in (*changed.methods, *changed.merged, *changed.continual_methods):
        method(name)
    check_mask_config(mask_config(changed))
    weights = (1.0,) * len(changed.domains) if changed.weights is None else changed.weights
    for merge_method in changed.merge_methods:
        config = MergeConfig("", merge_method, weights, changed.density, 0, match_norms=False)
        check_merge_config(config, num_adapters=len(changed.domains))
    missing = sorted(set(product(changed.merged, changed.merge_methods)) - set(MERGE_WEIGHTS))
    if missing and changed.weights is None:
        raise ValueError(f"No merge weight for {missing[0]}: see MERGE_WEIGHTS (lori/recipes.py).")
    if changed.rank < 1:
        raise ValueError(f"rank is at least 1, not {changed.rank}.")
    return changed


def data_config(profile: Profile, domain_name: str, split: str) -> DataConfig:
    """To train, rows for `num_steps` steps over the paper's number of epochs; else the rows that are scored."""
    sizes = {
        "train": profile.num_steps * profile.batch_size // DOMAINS[domain_name].num_epochs,
        "validation": profile.num_validation,
        "test": profile.num_test * TEST_FACTOR[domain_name],
    }
    return DataConfig(base_model(profile.base_model).suite, domain_name, split, sizes[split])


def paper_config(method_name: str, domain_name: str, base: str, **changes: Any) -> TrainConfig:
    """The paper's recipe for bases of 7 and 8 billion parameters (appendix), with the fields that `changes` gives.

    `base` is what the adapter's files will call the base model; `domain_name` may be a researcher's own: it draws A.

    Raises:
        ValueError: for an unknown method, or one whose learning rate the paper does not give and `changes` neither.
    """
    method(method_name)
    if method_name not in PAPER_LEARNING_RATES and "learning_rate" not in changes:
        raise ValueError(f"The paper gives no learning rate for {method_name!r}: pass learning_rate=…")
    recipe = TrainConfig(
        base_model=base,
        projections=LLAMA_PROJECTIONS,
        method=method_name,
        domain=domain_name,
        rank=32,
        alpha=64,
        learning_rate=PAPER_LEARNING_RATES.get(method_name, 0.0),
        num_epochs=DOMAINS[domain_name].num_epochs if domain_name in DOMAINS else 1,
        batch_size=32,
        max_length=512,
        max_prompt_length=256,
        seed=0,
    )
    return replace(recipe, **changes)


def train_config(profile: Profile, method_name: str, domain_name: str, seed: int) -> TrainConfig:
    """The training of one adapter; in continual learning of the second domain as well."""
    return TrainConfig(
        base_model=identity(profile.base_model),
        projections=base_model(profile.base_model).projections,
        method=method_name,
        domain=domain_name,
        rank=profile.rank,
        alpha=ALPHA_PER_RANK * profile.rank,
        learning_rate=LEARNING_RATES[method_name],
        num_epochs=DOMAINS[domain_name].num_epochs,
        batch_size=profile.batch_size,
        max_length=160,
        max_prompt_length=112,
        seed=seed,
    )


def mask_config(profile: Profile) -> MaskConfig:
    """The paper's mask, unless the profile says otherwise."""
    return MaskConfig(sparsity=profile.sparsity, scope=profile.scope)


def merge_config(profile: Profile, method_name: str, merge_method: str, seed: int) -> MergeConfig:
    """All domains' adapters of one method: with the profile's weights, a domain each, or equally weighted."""
    weights = profile.weights or (MERGE_WEIGHTS[method_name, merge_method],) * len(profile.domains)
    base = identity(profile.base_model)
    return MergeConfig(base, merge_method, weights, profile.density, seed, match_norms=False)


def eval_config(profile: Profile, domain_name: str) -> EvalConfig:
    """How a domain is scored."""
    row = DOMAINS[domain_name]
    return EvalConfig(
        domain=domain_name,
        num_samples=row.num_samples,
        temperature=row.temperature,
        top_p=row.top_p,
        max_new_tokens=MAX_NEW_TOKENS[domain_name],
        batch_size=profile.eval_batch_size,
        seed=0,
    )
