"""Merging (paper, section 3.2): the adapters of all domains become one, which is scored on every domain."""

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings

from itertools import product

from prefect import flow
from prefect.client.schemas.objects import State

from flows.adapt import adapter, mask, scores
from flows.study.comparison import Row
from flows.study.run import THREADS, Study, begin, carry_out, run_name
from lori.choices.methods import METHODS
from lori.config import Hardware, InterferenceConfig
from lori.recipes.configs import merge_config
from tasks.engine.cells import Future, measure_interference, merge_adapters


def merged(study: Study, method: str, merge_method: str, seed: int) -> Future:
    """One method's adapters of all domains as one."""
    config = merge_config(study.profile, method, merge_method, seed)
    adapters = [adapter(study, method, domain, seed) for domain in study.profile.domains]
    return merge_adapters(study.cells, config, method=method, adapters=adapters)


def merging(study: Study) -> list[Row]:
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
            measure_interference(
                study.cells,
                InterferenceConfig(method, profile.domains, seed),
                adapters=[adapter(study, method, domain, seed) for domain in profile.domains],
                masks=[found for found in masks if found] or None,
            )
    return rows


@flow(name="merge", flow_run_name=run_name, task_runner=THREADS)
def merge(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: str = "scale",
    base_model: str | None = None,
    domains: list[str] | None = None,
    methods: list[str] | None = None,
    merge_methods: list[str] | None = None,
    weights: list[float] | None = None,
    density: float | None = None,
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
    """Merge the adapters of all domains and score each merge on all of them. What is left out is the profile's.

    Args:
        profile: Sizes and defaults, a row of PROFILES (lori/choices/profiles.py).
        base_model: A row of BASE_MODELS (lori/base_models/resolve.py), a hub id, or a folder.
        domains: Rows of DOMAINS (lori/choices/domains.py).
        methods: Rows of METHODS (lori/choices/methods.py) whose adapters are merged.
        merge_methods: Rows of MERGE_METHODS (lori/choices/merge_methods.py).
        weights: One per domain, in their order.
        density: Share of entries that magnitude, ties and dare keep.
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
    overrides = {"base_model": base_model, "domains": domains, "merged": methods, "merge_methods": merge_methods}
    overrides |= {"weights": weights and [float(weight) for weight in weights], "density": density}
    overrides |= {"learning_rates": learning_rates}
    overrides |= {"prompt_style": prompt_style, "data_dir": data_dir, "eval_batch_size": eval_batch_size}
    place = {"hardware": hardware, "refresh": refresh, "plan_only": plan_only, "push_to": push_to}
    study = begin(profile, **place, **overrides, rank=rank, sparsity=sparsity, scope=scope, seeds=seeds)
    return carry_out(study, merging)


if __name__ == "__main__":
    from flows.servers.local import main

    main(merge)
