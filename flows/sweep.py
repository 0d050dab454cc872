"""Learning rates: as many candidates for every method, judged on validation rows alone, and the choice on record."""

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings

from itertools import product

from prefect import flow
from prefect.client.schemas.objects import State

from flows.adapt import adapter, scores
from flows.study.comparison import Row
from flows.study.run import THREADS, Study, begin, carry_out, run_name
from lori.choices.profiles import SWEEP_FACTORS
from lori.config import Hardware
from lori.recipes.configs import train_config


def rates(study: Study, factors: list[float]) -> list[Row]:
    """A row for each method and rate: its recipe's, times each of `factors`, on every domain's validation rows.

    LoRI-S keeps the mask of LoRI-D at its usual rate, whatever rate it trains at.
    """
    rows, profile = [], study.profile
    trained = [method for method in profile.methods if method != "base"]
    for method, factor, domain, seed in product(trained, factors, profile.domains, profile.seeds):
        rate = factor * train_config(profile, method, domain, seed).learning_rate
        varied = study.varied(learning_rates=((method, rate),))
        done = adapter(varied, method, domain, seed)
        labels = {"method": method, "factor": f"{factor:g}", "rate": f"{rate:g}", "domain": domain, "seed": seed}
        rows.append(Row("sweep", labels, done, [scores(study, done, domain, "validation")]))
    return rows


@flow(name="sweep", flow_run_name=run_name, task_runner=THREADS)
def sweep(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: str = "scale",
    base_model: str | None = None,
    domains: list[str] | None = None,
    methods: list[str] | None = None,
    factors: list[float] | None = None,
    seeds: list[int] | None = None,
    data_dir: str | None = None,
    eval_batch_size: int | None = None,
    hardware: Hardware | None = None,
    refresh: list[str] | None = None,
    plan_only: bool = False,
) -> State:
    """Train every method at several learning rates and name the best by validation rows; no test row is read.

    The choice is for the parameter `learning_rates` of the other flows: no recipe changes by itself.

    Args:
        profile: Sizes and defaults, a row of PROFILES (lori/choices/profiles.py) that has validation rows.
        base_model: A row of BASE_MODELS (lori/base_models/resolve.py), a hub id, or a folder.
        domains: Rows of DOMAINS (lori/choices/domains.py).
        methods: Rows of METHODS (lori/choices/methods.py).
        factors: What each method's own rate is multiplied by; SWEEP_FACTORS (lori/choices/profiles.py) where left out.
        seeds: A rate's score is the mean over these; take others than those that a report is of.
        data_dir: Folder of the real datasets; `LORI_DATA`, or the hub, where left out.
        eval_batch_size: Sequences that are generated at once.
        hardware: GPU, memory and how training is to fit it (lori/config.py).
        refresh: Cells to compute again: `all`, steps, or first words of titles such as `train lora math`.
        plan_only: Say what it would take and compute nothing.
    """
    chosen = list(SWEEP_FACTORS) if factors is None else [float(factor) for factor in factors]
    if not chosen or min(chosen) <= 0:
        raise ValueError(f"factors are positive numbers, not {factors}.")
    overrides = {"base_model": base_model, "domains": domains, "methods": methods, "data_dir": data_dir}
    overrides |= {"seeds": seeds, "eval_batch_size": eval_batch_size}
    place = {"hardware": hardware, "refresh": refresh, "plan_only": plan_only}
    study = begin(profile, **place, **overrides)
    if study.profile.num_validation is None:
        raise ValueError(f"{profile} has no validation rows: the paper's datasets have no such split.")
    return carry_out(study, lambda study: rates(study, chosen), asked={"factors": chosen})


if __name__ == "__main__":
    from flows.servers.local import main

    main(sweep)
