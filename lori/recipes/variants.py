"""How a cell departs from the usual recipe of its method, for its name."""

from collections.abc import Sequence

from lori.choices.methods import METHODS, recipe_of
from lori.choices.profiles import PROFILES, Profile
from lori.recipes.paper_numbers import ALPHA_PER_RANK, Recipe, recipe
from lori.recipes.scale_numbers import GUESSED_RATES, chosen_numbers

PAPERS_SPARSITY, PAPERS_SCOPE = 0.9, "model"


def departures(profile: Profile, method_name: str, domains: Sequence[str]) -> list[str]:
    """How training departs from what is usual, for the names of what comes of it: steps, prompts, masks and rates."""
    usual_steps = PROFILES["scale"].num_steps if profile.base.suite == "miniature" else None
    row = METHODS[method_name]
    steps = [f"{profile.num_steps} steps"] if row.kind != "none" and profile.num_steps != usual_steps else []
    prompts = [f"prompts {profile.prompt_style}"] if profile.prompt_style != PROFILES["paper"].prompt_style else []
    masks = mask_departures(profile) if row.mask_from else []
    return [*steps, *prompts, *masks, *_rate_departures(profile, method_name, domains)]


def mask_departures(profile: Profile) -> list[str]:
    """How its masks depart from the paper's, for the names of what comes of them."""
    departures = {
        f"sparsity {profile.sparsity:g}": profile.sparsity != PAPERS_SPARSITY,
        f"scope {profile.scope}": profile.scope != PAPERS_SCOPE,
        f"calibration {profile.calibration_rows}": profile.calibration_rows is not None,
    }
    return [name for name, is_one in departures.items() if is_one]


def _rate_departures(profile: Profile, method_name: str, domains: Sequence[str]) -> list[str]:
    """Learning rates that are not the recipe's: its own, and those of the methods that its mask and its A are of."""
    departures = []
    for name in (method_name, *_sources(method_name)):
        rate = given_rate(profile, name)
        if rate and any(rate != recipe_for(profile, domain, name).learning_rate for domain in domains):
            departures.append(f"rate {rate:g}" if name == method_name else f"{name} rate {rate:g}")
    return departures


def _sources(method_name: str) -> list[str]:
    """The methods whose mask or A it takes, and theirs, each once."""
    row = METHODS[method_name]
    direct = [name for name in (row.mask_from, row.a_from) if name]
    return list(dict.fromkeys(source for name in direct for source in (name, *_sources(name))))


def given_rate(profile: Profile, method_name: str) -> float | None:
    """The learning rate that the profile has for a method: its own or, of a control, that of what it controls."""
    rates = dict(profile.learning_rates)
    return rates.get(method_name, rates.get(recipe_of(method_name)))


def joined(*parts: str) -> str:
    """The parts of a name that are not empty."""
    return " ".join(filter(None, parts))


def recipe_for(profile: Profile, domain_name: str, method_name: str) -> Recipe:
    """The usual rate and alpha of a method on a domain."""
    if profile.base.suite == "miniature":
        rates = {**GUESSED_RATES, **chosen_numbers(profile.base)[0]}
        return Recipe(rates[recipe_of(method_name)], ALPHA_PER_RANK * profile.rank)
    return recipe(profile.base.source, profile.rank, domain_name, method_name)
