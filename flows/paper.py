"""The whole paper in one flow: adaptation, merging and continual learning share every cell that they can."""

from prefect import flow
from prefect.client.schemas.objects import State

from flows.adapt import single_domain
from flows.continual import continual_learning
from flows.merge import merging
from flows.study.run import THREADS, begin, carry_out, run_name
from lori.config import Hardware

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings


@flow(name="lori", flow_run_name=run_name, task_runner=THREADS)
def full_paper(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: str = "scale",
    base_model: str | None = None,
    domains: list[str] | None = None,
    methods: list[str] | None = None,
    merge_methods: list[str] | None = None,
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
    """Every table of the paper. What is left out is the profile's.

    Args:
        profile: Sizes and defaults, a row of PROFILES (lori/choices/profiles.py).
        base_model: A row of BASE_MODELS (lori/base_models/resolve.py), a hub id, or a folder.
        domains: Rows of DOMAINS (lori/choices/domains.py).
        methods: Rows of METHODS (lori/choices/methods.py).
        merge_methods: Rows of MERGE_METHODS (lori/choices/merge_methods.py).
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
    overrides = {"base_model": base_model, "domains": domains, "methods": methods, "merge_methods": merge_methods}
    overrides |= {"prompt_style": prompt_style, "data_dir": data_dir, "eval_batch_size": eval_batch_size}
    place = {"hardware": hardware, "refresh": refresh, "plan_only": plan_only, "push_to": push_to}
    study = begin(
        profile,
        **place,
        **overrides,
        rank=rank,
        sparsity=sparsity,
        scope=scope,
        seeds=seeds,
        learning_rates=learning_rates,
    )
    return carry_out(study, single_domain, merging, continual_learning)


if __name__ == "__main__":
    from flows.servers.local import main

    main(full_paper)
