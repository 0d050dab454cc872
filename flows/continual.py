"""Continual learning (paper, section 3.3): what a safety adapter forgets while it trains on another domain."""

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings

from itertools import product

from prefect import flow
from prefect.client.schemas.objects import State

from flows.adapt import adapter, dataset, mask, scores
from flows.study.comparison import Row
from flows.study.run import THREADS, Study, begin, carry_out, run_name
from lori.config import Hardware
from lori.recipes.configs import train_config
from tasks.engine.cells import Future, train_adapter


def after(study: Study, method: str, domain: str, seed: int, num_rows: int | None = None) -> Future:
    """The first domain's adapter once it has trained on another one too, on all of its rows or on `num_rows`.

    The second stage keeps A, goes on from B, and trains within the mask of the *new* domain, read off training on the
    same rows: entries outside it keep what the first stage gave them.
    """
    first = study.profile.continual_first
    return train_adapter(
        study.cells,
        train_config(study.profile, method, domain, seed, num_rows, first=first),
        dataset=dataset(study, domain, "train", num_rows),
        mask=mask(study, method, domain, seed, num_rows),
        start_from=adapter(study, method, first, seed),
    )


def continual_learning(study: Study) -> list[Row]:
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


@flow(name="continual", flow_run_name=run_name, task_runner=THREADS)
def continual(  # noqa: PLR0913 a flow's parameters are its form in Prefect
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
    """Train on safety, then on each other domain, and score both. What is left out is the profile's.

    Args:
        profile: Sizes and defaults, a row of PROFILES (lori/choices/profiles.py).
        base_model: A row of BASE_MODELS (lori/base_models/resolve.py), a hub id, or a folder.
        domains: Rows of DOMAINS (lori/choices/domains.py), safety among them.
        methods: Rows of METHODS (lori/choices/methods.py) that go on training.
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
    overrides = {"base_model": base_model, "domains": domains, "continual_methods": methods, "seeds": seeds}
    overrides |= {"prompt_style": prompt_style, "data_dir": data_dir, "eval_batch_size": eval_batch_size}
    overrides |= {"learning_rates": learning_rates}
    place = {"hardware": hardware, "refresh": refresh, "plan_only": plan_only, "push_to": push_to}
    study = begin(profile, **place, **overrides, rank=rank, sparsity=sparsity, scope=scope)
    return carry_out(study, continual_learning)


if __name__ == "__main__":
    from flows.servers.local import main

    main(continual)
