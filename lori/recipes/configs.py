"""The numbers: hyper-parameters of every cell, and which cells a profile has. Nothing else decides a result.

A base model's suite says whose recipe it is: the scale model's, here, or the paper's (`paper/recipes.py`). The scale
model follows the paper where size does not forbid it: AdamW at a constant rate, α = 2 r, its epochs, its clipping and
loss, sparsity 0.9 over the whole model. Rank, batch, lengths, rates and merge weights are its own.
"""

from collections.abc import Sequence
from pathlib import Path

from lori.choices.domains import DOMAINS
from lori.choices.methods import METHODS, recipe_of
from lori.choices.profiles import DENSITY, Profile
from lori.config import CompareConfig, DataConfig, EvalConfig, MaskConfig, MergeConfig, RandomMaskConfig, TrainConfig
from lori.datasets.paper_examples import with_digest
from lori.recipes.paper_numbers import RANK_FACTORS, merge_weight
from lori.recipes.scale_numbers import LIMITS, TEST_FACTOR, chosen_numbers
from lori.recipes.variants import departures, given_rate, joined, mask_departures, recipe_for

NUM_RESAMPLES = 2000  # of a bootstrap: a 95 % interval's ends are then within some 3 % of its width


def data_config(profile: Profile, domain_name: str, split: str, num_rows: int | None = None) -> DataConfig:
    """To train, rows for `num_steps` steps over the paper's number of epochs; else the rows that are scored.

    Of either the first `num_rows` alone, where that is given.

    Real rows are read, for their digest; it raises what `paper.rows.paper_rows` does.
    """
    suite = profile.base.suite
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
    base, row = profile.base, METHODS[method_name]
    limits, chosen = LIMITS[base.suite][domain_name], recipe_for(profile, domain_name, method_name)
    return TrainConfig(
        base_model=base.identity,
        projections=base.projections,
        method=method_name,
        domain=domain_name,
        rank=profile.rank * RANK_FACTORS.get(method_name, 1),
        alpha=chosen.alpha,
        learning_rate=given_rate(profile, method_name) or chosen.learning_rate,
        num_epochs=DOMAINS[domain_name].num_epochs,
        batch_size=profile.batch_size,
        max_length=limits.max_length,
        max_prompt_length=limits.max_prompt_length,
        seed=seed,
        add_bos=profile.prompt_style != "authors",
        dtype=profile.dtype or base.dtype,
        shared_a=row.shared_a,
        fresh_a=row.fresh_a,
        variant=joined(
            *departures(profile, method_name, (first, domain_name) if first else (domain_name,)),
            f"{num_rows} rows" if num_rows else "",
        ),
    )


def mask_config(profile: Profile, source: str, domain_name: str) -> MaskConfig:
    """The paper's mask, unless the profile says otherwise, read off what the method `source` trained on a domain."""
    variant = joined(*mask_departures(profile), *departures(profile, source, (domain_name,)))
    return MaskConfig(profile.sparsity, profile.scope, variant=variant)


def random_mask_config(profile: Profile, source: str, domain_name: str, seed: int) -> RandomMaskConfig:
    """A mask of the same size at random places: others for each domain and seed, as magnitude masks are."""
    variant = mask_config(profile, source, domain_name).variant
    return RandomMaskConfig(profile.sparsity, profile.scope, f"{seed}/{domain_name}", variant=variant)


def merge_config(profile: Profile, method_name: str, merge_method: str, seed: int) -> MergeConfig:
    """All domains' adapters of one method: with the profile's weights, a domain each, or equally weighted."""
    num_adapters = len(profile.domains)
    if profile.base.suite == "miniature":
        weight = chosen_numbers(profile.base)[1].get((recipe_of(method_name), merge_method), 0.0)
    else:
        weight = merge_weight(method_name, num_adapters)
    usual = (weight,) * num_adapters
    weights = usual if profile.weights in (None, usual) else profile.weights  # the same numbers, also as integers
    told = weights[:1] if len(set(weights)) == 1 else weights
    variant = joined(
        *departures(profile, method_name, profile.domains),
        f"weights {','.join(f'{each:g}' for each in told)}" if weights != usual else "",
        f"density {profile.density:g}" if profile.density != DENSITY else "",
        "norms matched" if profile.match_norms else "",
    )
    base = profile.base.identity
    return MergeConfig(base, merge_method, weights, profile.density, seed, profile.match_norms, variant)


def compare_config(
    *, rows: Sequence[str], domains: Sequence[str], seeds: Sequence[int], pairs: Sequence[str]
) -> CompareConfig:
    """How rows of the tables are compared: see `CompareConfig` for what is given."""
    return CompareConfig(tuple(rows), tuple(domains), tuple(seeds), tuple(pairs), NUM_RESAMPLES)


def eval_config(profile: Profile, domain_name: str) -> EvalConfig:
    """How a domain is scored. The authors put a begin token before HumanEval's prompts and before no others."""
    row, base = DOMAINS[domain_name], profile.base
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
