"""A profile with what a study changes in it, checked before anything is computed."""

from collections.abc import Collection
from dataclasses import replace
from itertools import product
from typing import Any

from lori.base_models import resolve
from lori.choices.domains import domain
from lori.choices.merge_methods import check_merge_config
from lori.choices.methods import METHODS, method, recipe_of
from lori.choices.profiles import PROFILES, Profile
from lori.choices.scopes import check_mask_config
from lori.config import MaskConfig, MergeConfig
from lori.datasets.prompts import check_prompt_style
from lori.recipes.scale_numbers import chosen_numbers


def profile(name: str, *, base_model: str | None = None, models_dir: str | None = None, **changes: Any) -> Profile:
    """The profile of that name with `changes` of its fields; those that are None stay as they are.

    `base_model`, if any, is what a user calls another base, which may be in a folder in `models_dir`: it is resolved
    here, once.

    Raises:
        ValueError: for an unknown profile, base model, domain, method, merge method or scope, with the known ones.
        BaseUnavailable: as `resolve.base_model`.
    """
    if name not in PROFILES:
        raise ValueError(f"Unknown profile {name!r}. Known: {', '.join(PROFILES)} (lori/choices/profiles.py).")
    given = {field: _frozen(value) for field, value in changes.items() if value is not None}
    if base_model:
        given["base"] = resolve.base_model(base_model, models_dir)
    changed = replace(PROFILES[name], **given)
    if "domains" in given or "methods" in given:
        changed = _narrowed(changed, given)
    return _checked(changed)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return tuple(value) if isinstance(value, list) else value


def _narrowed(changed: Profile, given: Collection[str]) -> Profile:
    """Without the merges and continual cells of methods that are not asked for, nor of a domain that is missing."""

    def of(field: str) -> tuple[str, ...]:
        chosen = getattr(changed, field)
        return chosen if field in given else tuple(method for method in chosen if method in changed.methods)

    return replace(
        changed,
        merged=of("merged") if len(changed.domains) > 1 else (),
        continual_methods=of("continual_methods") if changed.continual_first in changed.domains else (),
    )


def _checked(changed: Profile) -> Profile:
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
    _check_merges(changed)
    if changed.base.suite == "miniature" and changed.num_steps is None:
        raise ValueError(f"{changed.base.name} has no real rows to train on: use the profile scale, or another base.")
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


def _check_merges(changed: Profile) -> None:
    weights = (1.0,) * len(changed.domains) if changed.weights is None else changed.weights
    for merge_method in changed.merge_methods:
        config = MergeConfig("", merge_method, weights, changed.density, 0, changed.match_norms)
        check_merge_config(config, num_adapters=len(changed.domains))
    if changed.base.suite != "miniature":
        return
    missing = sorted(
        set(product(map(recipe_of, changed.merged), changed.merge_methods)) - set(chosen_numbers(changed.base)[1])
    )
    if missing and changed.weights is None:
        raise ValueError(
            f"There is no weight for merging {missing[0][0]} by {missing[0][1]}: give `weights`, one a domain, or add"
            " the weight to MERGE_WEIGHTS (lori/recipes/scale_numbers.py)."
        )
