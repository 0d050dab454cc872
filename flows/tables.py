"""The paper's tables as cells: adaptation (section 3.1 and 3.2), merging (3.3), continual learning (3.4), controls."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from flows.study.comparison import Row
from lori.choices.methods import METHODS
from lori.choices.profiles import CONTROLS
from lori.config import InterferenceConfig
from lori.plan.cell import Cell
from lori.recipes.configs import (
    data_config,
    eval_config,
    mask_config,
    merge_config,
    random_mask_config,
    train_config,
)

if TYPE_CHECKING:
    from flows.study.run import Study  # with Prefect, which whoever reads a flow's parameters does without


def dataset(study: "Study", domain: str, split: str, num_rows: int | None = None) -> Cell:
    """The rows of a domain to train or to test on, or the first `num_rows` of them."""
    return study.cells.request("dataset", data_config(study.profile, domain, split, num_rows))


def adapter(study: "Study", method: str, domain: str, seed: int, num_rows: int | None = None) -> Cell:
    """One method on one domain, on all of its rows or on `num_rows`, with the mask and the A that it calls for.

    A trained A has seen all rows: on fewer it is B that learns.
    """
    a_from = METHODS[method].a_from
    return study.cells.request(
        "train",
        train_config(study.profile, method, domain, seed, num_rows),
        dataset=dataset(study, domain, "train", num_rows),
        mask=mask(study, method, domain, seed),
        a_from=adapter(study, a_from, domain, seed) if a_from else None,
    )


def mask(study: "Study", method: str, domain: str, seed: int, num_rows: int | None = None) -> Cell | None:
    """Where `method` may train, read off the B that another method trained on the same domain; None is everywhere.

    That one trained on the profile's calibration rows, or on `num_rows`.
    """
    row, profile = METHODS[method], study.profile
    if row.mask_from is None:
        return None
    if num_rows:
        profile = replace(profile, calibration_rows=num_rows)
    source = adapter(study, row.mask_from, domain, seed, profile.calibration_rows)
    if row.random_mask:
        config = random_mask_config(profile, row.mask_from, domain, seed)
        return study.cells.request("random-mask", config, adapter=source)
    is_second = row.disjoint and domain != profile.continual_first
    excluded = mask(study, method, profile.continual_first, seed) if is_second else None
    config = mask_config(profile, row.mask_from, domain)
    return study.cells.request("mask", config, adapter=source, excluded=excluded)


def scores(study: "Study", adapter: Cell, domain: str, split: str = "test") -> Cell:
    """An adapter on a domain's test set, or on its validation set."""
    rows = dataset(study, domain, split)
    return study.cells.request("evaluate", eval_config(study.profile, domain), adapter=adapter, dataset=rows)


def single_domain(study: "Study") -> list[Row]:
    """The first table: every method on every domain by itself.

    Where there are validation rows, those choose the adapter that the registry calls the best; the table has none.
    """
    profile, rows = study.profile, []
    for method, domain, seed in product(profile.methods, profile.domains, profile.seeds):
        trained = adapter(study, method, domain, seed)
        labels = {"method": method, "domain": domain, "seed": seed}
        rows.append(Row("single", labels, trained, [scores(study, trained, domain)]))
        if profile.num_validation and METHODS[method].kind != "none":
            scores(study, trained, domain, "validation")
    return rows


def merged(study: "Study", method: str, merge_method: str, seed: int) -> Cell:
    """One method's adapters of all domains as one."""
    config = merge_config(study.profile, method, merge_method, seed)
    adapters = [adapter(study, method, domain, seed) for domain in study.profile.domains]
    return study.cells.request("merge", config, adapters=adapters)


def merging(study: "Study") -> list[Row]:
    """The second table: every merge of every method's adapters, on every domain; and how much those interfere."""
    profile, rows = study.profile, []
    for method, merge_method, seed in product(profile.merged, profile.merge_methods, profile.seeds):
        weights = merge_config(profile, method, merge_method, seed).weights
        labels = {"method": method, "merge": merge_method, "weights": weights, "seed": seed}
        done = merged(study, method, merge_method, seed)
        rows.append(Row("merging", labels, done, [scores(study, done, domain) for domain in profile.domains]))
    for method, seed in product(profile.merged, profile.seeds):
        if METHODS[method].has_factors:
            masks = [mask(study, method, domain, seed) for domain in profile.domains]
            study.cells.request(
                "interference",
                InterferenceConfig(method, profile.domains, seed),
                adapters=[adapter(study, method, domain, seed) for domain in profile.domains],
                masks=[found for found in masks if found] or None,
            )
    return rows


def after(study: "Study", method: str, domain: str, seed: int, num_rows: int | None = None) -> Cell:
    """The first domain's adapter once it has trained on another one too, on all of its rows or on `num_rows`.

    The second stage keeps A, goes on from B, and trains within the mask of the *new* domain, read off training on the
    same rows: entries outside it keep what the first stage gave them.
    """
    first = study.profile.continual_first
    return study.cells.request(
        "train",
        train_config(study.profile, method, domain, seed, num_rows, first=first),
        dataset=dataset(study, domain, "train", num_rows),
        mask=mask(study, method, domain, seed, num_rows),
        start_from=adapter(study, method, first, seed),
    )


def continual_learning(study: "Study") -> list[Row]:
    """The third table: the first domain's score before and after, and the new domain's."""
    profile, rows = study.profile, []
    first = profile.continual_first
    new_domains = [domain for domain in profile.domains if domain != first]
    for method, domain, seed in product(profile.continual_methods, new_domains, profile.seeds):
        before, trained = adapter(study, method, first, seed), after(study, method, domain, seed)
        labels = {"method": method, "first_domain": first, "new_domain": domain, "seed": seed}
        measured = [scores(study, before, first), scores(study, trained, first), scores(study, trained, domain)]
        rows.append(Row("continual", labels, trained, measured))
    return rows


def control_rows(study: "Study", num_seeds: int | None = None) -> list[Row]:
    """Methods that differ in one thing from the paper's: alone, merged by concat, or in continual learning."""
    seeds = study.profile.seeds[:num_seeds]
    # No validation: it chooses what the registry calls the best, which is none of these
    varied = study.varied(**CONTROLS, merge_methods=("concat",), num_validation=None, seeds=seeds)
    return [*single_domain(varied), *merging(varied), *continual_learning(varied)]


STAGES: "dict[str, Callable[[Study], list[Row]]]" = {
    "single": single_domain,
    "merging": merging,
    "continual": continual_learning,
}
