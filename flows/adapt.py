"""Adaptation (paper, section 3): LoRI-D, its mask, LoRI-S, and the baselines, each on one domain."""

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings

from dataclasses import replace
from itertools import product

from prefect import flow
from prefect.client.schemas.objects import State

from flows.study.comparison import Row
from flows.study.run import THREADS, Study, begin, carry_out, run_name
from lori.choices.methods import METHODS
from lori.config import Hardware
from lori.recipes.configs import data_config, eval_config, mask_config, random_mask_config, train_config
from tasks.engine.cells import Future, draw_mask, evaluate, extract_mask, prepare_dataset, train_adapter


def dataset(study: Study, domain: str, split: str, num_rows: int | None = None) -> Future:
    """The rows of a domain to train or to test on, or the first `num_rows` of them."""
    return prepare_dataset(study.cells, data_config(study.profile, domain, split, num_rows), is_part=bool(num_rows))


def adapter(study: Study, method: str, domain: str, seed: int, num_rows: int | None = None) -> Future:
    """One method on one domain, on all of its rows or on `num_rows`, with the mask and the A that it calls for.

    A trained A has seen all rows: on fewer it is B that learns.
    """
    a_from = METHODS[method].a_from
    return train_adapter(
        study.cells,
        train_config(study.profile, method, domain, seed, num_rows),
        dataset=dataset(study, domain, "train", num_rows),
        mask=mask(study, method, domain, seed),
        a_from=adapter(study, a_from, domain, seed) if a_from else None,
    )


def mask(study: Study, method: str, domain: str, seed: int, num_rows: int | None = None) -> Future | None:
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
        return draw_mask(study.cells, random_mask_config(profile, row.mask_from, domain, seed), adapter=source)
    is_second = row.disjoint and domain != profile.continual_first
    excluded = mask(study, method, profile.continual_first, seed) if is_second else None
    return extract_mask(study.cells, mask_config(profile, row.mask_from, domain), adapter=source, excluded=excluded)


def scores(study: Study, adapter: Future, domain: str, split: str = "test") -> Future:
    """An adapter on a domain's test set, or on its validation set."""
    config, rows = eval_config(study.profile, domain), dataset(study, domain, split)
    return evaluate(study.cells, config, adapter=adapter, dataset=rows)


def single_domain(study: Study) -> list[Row]:
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


@flow(name="adapt", flow_run_name=run_name, task_runner=THREADS)
def adapt(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: str = "scale",
    base_model: str | None = None,
    domains: list[str] | None = None,
    methods: list[str] | None = None,
    rank: int | None = None,
    sparsity: float | None = None,
    scope: str | None = None,
    seeds: list[int] | None = None,
    learning_rates: dict[str, float] | None = None,
    prompt_style: str | None = None,
    data_dir: str | None = None,
    eval_batch_size: int | None = None,
    hardware: Hardware | None = None,
    refresh: list[str] | None = None,
    plan_only: bool = False,
    push_to: str | None = None,
) -> State:
    """Train every method on every domain and score it there. What is left out is the profile's.

    Args:
        profile: Sizes and defaults, a row of PROFILES (lori/choices/profiles.py).
        base_model: A row of BASE_MODELS (lori/base_models/resolve.py), a hub id, or a folder.
        domains: Rows of DOMAINS (lori/choices/domains.py).
        methods: Rows of METHODS (lori/choices/methods.py).
        rank: Rank r of the adapters; α stays 2 r.
        sparsity: Share of B's entries that a mask leaves at zero, 0.9 in the paper.
        scope: Which entries compete for the mask (lori/choices/scopes.py).
        seeds: One table row is the mean over these.
        learning_rates: In place of the recipe's, by method, such as those that `sweep` chose.
        prompt_style: How real rows are written, `plain` or `authors` (lori/datasets/prompts.py).
        data_dir: Folder of the real datasets; `LORI_DATA`, or the hub, where left out.
        eval_batch_size: Sequences that are generated at once.
        hardware: GPU, memory and how training is to fit it (lori/config.py).
        refresh: Cells to compute again: `all`, steps, or first words of titles such as `train lora math`.
        plan_only: Say what it would take and compute nothing.
        push_to: User or organisation of the hub that gets the adapters of the tables, each in a private repository.
    """
    overrides = {"base_model": base_model, "domains": domains, "methods": methods, "seeds": seeds}
    overrides |= {"prompt_style": prompt_style, "data_dir": data_dir, "eval_batch_size": eval_batch_size}
    overrides |= {"learning_rates": learning_rates}
    place = {"hardware": hardware, "refresh": refresh, "plan_only": plan_only, "push_to": push_to}
    study = begin(profile, **place, **overrides, rank=rank, sparsity=sparsity, scope=scope)
    return carry_out(study, single_domain)


if __name__ == "__main__":
    from flows.servers.local import main

    main(adapt)
