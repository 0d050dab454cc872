"""The numbers: hyper-parameters of every cell, and which cells a profile has. Nothing else decides a result.

A base model's suite says whose recipe it is: the scale model's, here, or the paper's (`paper/recipes.py`). The scale
model follows the paper where size does not forbid it: AdamW at a constant rate, α = 2 r, its epochs, its clipping and
loss, sparsity 0.9 over the whole model. Rank, batch, lengths, rates and merge weights are its own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from lori.base_files import fingerprint
from lori.config import CompareConfig, DataConfig, EvalConfig, MaskConfig, MergeConfig, RandomMaskConfig, TrainConfig
from lori.domains import DOMAINS, domain
from lori.merge_methods import check_merge_config
from lori.methods import METHODS, method, recipe_of
from lori.models import BASE_MODELS, BaseModel, base_model, identity
from lori.paper.prompts import check_prompt_style
from lori.paper.recipes import ALPHA_PER_RANK, RANK_FACTORS, Recipe, merge_weight, recipe
from lori.paper.rows import with_digest
from lori.profiles import DENSITY, PROFILES, Profile
from lori.scopes import check_mask_config

# The scale model's: chosen on the validation split, from as many candidates for every method (choose_recipe.py)
LEARNING_RATES = {"base": 0.0, "full": 0.00025, "lora": 0.002, "dora": 0.002, "lori-d": 0.01, "lori-s": 0.04}
# Not searched: by analogy to these, and to each method's own rate beside LoRA's
GUESSED_RATES = {"rslora": 0.001, "pissa": 0.0005, "lora-fa": 0.01, "shira": 0.002, "ia3": 0.02, "vera": 0.02}
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

PAPERS_SPARSITY, PAPERS_SCOPE = 0.9, "model"
NUM_RESAMPLES = 2000  # of a bootstrap: a 95 % interval's ends are then within some 3 % of its width


# In the folder of a scale model of another size: the rates and weights that `benchmarks/choose_recipe.py` chose for it
CHOICE_FILE = "choose_recipe.json"


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens: a row as it trains, its prompt where the row is longer, and what is generated at most."""

    max_length: int
    max_prompt_length: int
    max_new_tokens: int


_PAPER = Limits(512, 256, 512)
# By suite and domain
LIMITS = {
    "miniature": {
        "nlu": Limits(160, 112, 16),
        "math": Limits(160, 112, 48),
        "code": Limits(160, 112, 40),
        "safety": Limits(160, 112, 32),
    },
    "paper": dict.fromkeys(DOMAINS, _PAPER),
}


def profile(name: str, **overrides: Any) -> Profile:
    """The profile of that name with the fields that `overrides` gives; those that are None stay as they are.

    Raises:
        ValueError: for an unknown profile, base model, domain, method, merge method or scope, with the known ones.
    """
    if name not in PROFILES:
        raise ValueError(f"Unknown profile {name!r}. Known: {', '.join(PROFILES)} (lori/profiles.py).")
    given = {key: _frozen(value) for key, value in overrides.items() if value is not None}
    changed = replace(PROFILES[name], **given)
    if "domains" in given or "methods" in given:
        changed = _narrowed(changed)
    return _checked(changed, base_of(changed))


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return tuple(value) if isinstance(value, list) else value


def base_of(profile: Profile) -> BaseModel:
    """The row of its base model."""
    return base_model(profile.base_model, profile.models_dir)


def _narrowed(changed: Profile) -> Profile:
    """Without the merges and continual cells of methods that are not asked for, nor of a domain that is missing."""
    return replace(
        changed,
        merged=tuple(m for m in changed.merged if m in changed.methods) if len(changed.domains) > 1 else (),
        continual_methods=tuple(m for m in changed.continual_methods if m in changed.methods)
        if changed.continual_first in changed.domains
        else (),
    )


def _checked(changed: Profile, base: BaseModel) -> Profile:
    for name in ("domains", "methods", "seeds"):
        values = getattr(changed, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} is {list(values)}: name at least one, each once, or leave it out.")
    for name in changed.domains:
        domain(name)
    for name in (*changed.methods, *changed.merged, *changed.continual_methods):
        method(name)
    untrained = [name for name in (*changed.merged, *changed.continual_methods) if METHODS[name].kind == "none"]
    if untrained:
        raise ValueError(
            f"{untrained[0]} trains nothing that could be merged, or go on to another domain: leave it out."
        )
    check_mask_config(MaskConfig(changed.sparsity, changed.scope))
    _check_training(changed)
    _check_merges(changed, base)
    if base.suite == "miniature" and changed.num_steps is None:
        raise ValueError(f"{changed.base_model} has no real rows to train on: use the profile scale, or another base.")
    check_prompt_style(changed.prompt_style)
    return changed


def _check_training(changed: Profile) -> None:
    if changed.rank < 1:
        raise ValueError(f"rank is at least 1, not {changed.rank}.")
    if changed.calibration_rows is not None and changed.calibration_rows < changed.batch_size:
        raise ValueError(f"calibration_rows is at least a batch of {changed.batch_size}, or left out.")
    for name, rate in changed.learning_rates:
        method(name)
        if not rate > 0:
            raise ValueError(f"The learning rate of {name} is a positive number, not {rate}.")


def _check_merges(changed: Profile, base: BaseModel) -> None:
    weights = (1.0,) * len(changed.domains) if changed.weights is None else changed.weights
    for merge_method in changed.merge_methods:
        config = MergeConfig("", merge_method, weights, changed.density, 0, changed.match_norms)
        check_merge_config(config, num_adapters=len(changed.domains))
    if base.suite != "miniature":
        return
    missing = sorted(set(product(map(recipe_of, changed.merged), changed.merge_methods)) - set(_choice(base)[1]))
    if missing and changed.weights is None:
        raise ValueError(f"No merge weight for {missing[0]}: see MERGE_WEIGHTS (lori/recipes.py).")


def data_config(profile: Profile, domain_name: str, split: str, num_rows: int | None = None) -> DataConfig:
    """To train, rows for `num_steps` steps over the paper's number of epochs; else the rows that are scored.

    Of either the first `num_rows` alone, where that is given.

    Real rows are read, for their digest; it raises what `paper.rows.paper_rows` does.
    """
    suite = base_of(profile).suite
    if num_rows is None:
        num_rows = _num_rows(profile, suite, domain_name, split)
    config = DataConfig(suite, domain_name, split, num_rows, profile.prompt_style)
    if suite == "miniature":
        return config
    return with_digest(config, Path(profile.data_dir) if profile.data_dir else None)


def _num_rows(profile: Profile, suite: str, domain_name: str, split: str) -> int | None:
    if split == "train":
        return profile.num_steps and profile.num_steps * profile.batch_size // DOMAINS[domain_name].num_epochs
    if split == "validation":
        return profile.num_validation
    factor = TEST_FACTOR[domain_name] if suite == "miniature" else 1
    return profile.num_test and profile.num_test * factor


def train_config(
    profile: Profile,
    method_name: str,
    domain_name: str,
    seed: int,
    num_rows: int | None = None,
    *,
    first: str | None = None,
) -> TrainConfig:
    """The training of one adapter, in continual learning after that on the domain `first`. `num_rows` as there."""
    base, row = base_of(profile), METHODS[method_name]
    limits, chosen = LIMITS[base.suite][domain_name], _recipe(profile, base, domain_name, method_name)
    return TrainConfig(
        base_model=identity(profile.base_model, profile.models_dir),
        projections=base.projections,
        method=method_name,
        domain=domain_name,
        rank=profile.rank * RANK_FACTORS.get(method_name, 1),
        alpha=chosen.alpha,
        learning_rate=_given_rate(profile, method_name) or chosen.learning_rate,
        num_epochs=DOMAINS[domain_name].num_epochs,
        batch_size=profile.batch_size,
        max_length=limits.max_length,
        max_prompt_length=limits.max_prompt_length,
        seed=seed,
        add_bos=profile.prompt_style != "authors",
        dtype=profile.dtype or base.dtype,
        shared_a=row.shared_a,
        fresh_a=row.fresh_a,
        variant=_named(
            *_departures(profile, method_name, (first, domain_name) if first else (domain_name,)),
            f"{num_rows} rows" if num_rows else "",
        ),
    )


def _departures(profile: Profile, method_name: str, domains: Sequence[str]) -> list[str]:
    """How training departs from what is usual, for the names of what comes of it: steps, prompts, masks and rates."""
    usual_steps = PROFILES["scale"].num_steps if base_of(profile).suite == "miniature" else None
    row = METHODS[method_name]
    steps = [f"{profile.num_steps} steps"] if row.kind != "none" and profile.num_steps != usual_steps else []
    prompts = [f"prompts {profile.prompt_style}"] if profile.prompt_style != PROFILES["paper"].prompt_style else []
    masks = _mask_departures(profile) if row.mask_from else []
    return [*steps, *prompts, *masks, *_rate_departures(profile, method_name, domains)]


def _mask_departures(profile: Profile) -> list[str]:
    departures = {
        f"sparsity {profile.sparsity:g}": profile.sparsity != PAPERS_SPARSITY,
        f"scope {profile.scope}": profile.scope != PAPERS_SCOPE,
        f"calibration {profile.calibration_rows}": profile.calibration_rows is not None,
    }
    return [name for name, is_one in departures.items() if is_one]


def _rate_departures(profile: Profile, method_name: str, domains: Sequence[str]) -> list[str]:
    """Learning rates that are not the recipe's: its own, and those of the methods that its mask and its A are of."""
    base, departures = base_of(profile), []
    for name in (method_name, *_sources(method_name)):
        rate = _given_rate(profile, name)
        if rate and any(rate != _recipe(profile, base, domain, name).learning_rate for domain in domains):
            departures.append(f"rate {rate:g}" if name == method_name else f"{name} rate {rate:g}")
    return departures


def _sources(method_name: str) -> list[str]:
    """The methods whose mask or A it takes, and theirs, each once."""
    row = METHODS[method_name]
    direct = [name for name in (row.mask_from, row.a_from) if name]
    return list(dict.fromkeys(source for name in direct for source in (name, *_sources(name))))


def _given_rate(profile: Profile, method_name: str) -> float | None:
    """The learning rate that the profile has for a method: its own or, of a control, that of what it controls."""
    rates = dict(profile.learning_rates)
    return rates.get(method_name, rates.get(recipe_of(method_name)))


def _named(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _recipe(profile: Profile, base: BaseModel, domain_name: str, method_name: str) -> Recipe:
    if base.suite == "miniature":
        rates = {**GUESSED_RATES, **_choice(base)[0]}
        return Recipe(rates[recipe_of(method_name)], ALPHA_PER_RANK * profile.rank)
    return recipe(base.source, profile.rank, domain_name, method_name)


def _choice(base: BaseModel) -> tuple[dict[str, float], dict[tuple[str, ...], float]]:
    """A scale model's learning rates and merge weights: the shipped one's are above, another one's in its folder."""
    if base == BASE_MODELS["scale"]:
        return LEARNING_RATES, MERGE_WEIGHTS
    path = Path(base.source, CHOICE_FILE)
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"base_model": ""}
    if found["base_model"].partition("@")[2] != fingerprint(path.parent):
        raise ValueError(
            f"{path} is missing, or of other weights than those beside it: choose learning rates and merge weights"
            f" with `python -m benchmarks.choose_recipe --base {base.source}`."
        )
    weights = {tuple(names.split()): weight for names, weight in found["merge_weights"].items()}
    return {"base": 0.0, **found["learning_rates"]}, weights


def mask_config(profile: Profile, source: str, domain_name: str) -> MaskConfig:
    """The paper's mask, unless the profile says otherwise, read off what the method `source` trained on a domain."""
    variant = _named(*_mask_departures(profile), *_departures(profile, source, (domain_name,)))
    return MaskConfig(profile.sparsity, profile.scope, variant=variant)


def random_mask_config(profile: Profile, source: str, domain_name: str, seed: int) -> RandomMaskConfig:
    """A mask of the same size at random places: others for each domain and seed, as magnitude masks are."""
    variant = mask_config(profile, source, domain_name).variant
    return RandomMaskConfig(profile.sparsity, profile.scope, f"{seed}/{domain_name}", variant=variant)


def merge_config(profile: Profile, method_name: str, merge_method: str, seed: int) -> MergeConfig:
    """All domains' adapters of one method: with the profile's weights, a domain each, or equally weighted."""
    num_adapters = len(profile.domains)
    if base_of(profile).suite == "miniature":
        weight = _choice(base_of(profile))[1].get((recipe_of(method_name), merge_method), 0.0)
    else:
        weight = merge_weight(method_name, num_adapters)
    usual = (weight,) * num_adapters
    weights = usual if profile.weights in (None, usual) else profile.weights  # the same numbers, also as integers
    base = identity(profile.base_model, profile.models_dir)
    told = weights[:1] if len(set(weights)) == 1 else weights
    variant = _named(
        *_departures(profile, method_name, profile.domains),
        f"weights {','.join(f'{each:g}' for each in told)}" if weights != usual else "",
        f"density {profile.density:g}" if profile.density != DENSITY else "",
        "norms matched" if profile.match_norms else "",
    )
    return MergeConfig(base, merge_method, weights, profile.density, seed, profile.match_norms, variant)


def compare_config(
    *, rows: Sequence[str], domains: Sequence[str], seeds: Sequence[int], pairs: Sequence[str]
) -> CompareConfig:
    """How rows of the tables are compared: see `CompareConfig` for what is given."""
    return CompareConfig(tuple(rows), tuple(domains), tuple(seeds), tuple(pairs), NUM_RESAMPLES)


def eval_config(profile: Profile, domain_name: str) -> EvalConfig:
    """How a domain is scored. The authors put a begin token before HumanEval's prompts and before no others."""
    row, base = DOMAINS[domain_name], base_of(profile)
    limits = LIMITS[base.suite][domain_name]
    return EvalConfig(
        domain=domain_name,
        num_samples=profile.num_samples if row.temperature else 1,
        temperature=row.temperature,
        top_p=row.top_p,
        max_new_tokens=profile.max_new_tokens or limits.max_new_tokens,
        batch_size=profile.eval_batch_size,
        max_length=limits.max_length,
        max_prompt_length=limits.max_prompt_length,
        seed=0,
        add_bos=profile.prompt_style != "authors" or domain_name == "code",
        dtype=profile.dtype or base.dtype,
    )
