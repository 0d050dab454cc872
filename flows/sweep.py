"""Learning rates: as many candidates for every method, judged on validation rows alone, and the choice on record."""

from itertools import product
from typing import TYPE_CHECKING

from flows import parameters as p
from flows.study.comparison import Row
from flows.tables import adapter, scores
from lori.choices.profiles import SWEEP_FACTORS
from lori.recipes.configs import train_config

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.study.run import Study


def sweep(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: p.ProfileName = "scale",
    base_model: p.Base = None,
    domains: p.Domains = None,
    methods: p.Methods = None,
    factors: p.Factors = None,
    seeds: p.Seeds = None,
    data_dir: p.DataDir = None,
    eval_batch_size: p.BatchSize = None,
    hardware: p.Machine = None,
    refresh: p.Refresh = None,
    plan_only: p.PlanOnly = False,
) -> "State":
    """Train every method at several learning rates and name the best by validation rows; no test row is read.

    The choice is for the parameter `learning_rates` of the other flows: no recipe changes by itself. Take other seeds
    than those that a report is of.
    """
    from flows.study.run import prepare_study, run_study  # Prefect and MLflow: a wrong parameter waits for neither

    chosen = list(SWEEP_FACTORS) if factors is None else factors
    if not chosen or min(chosen) <= 0:
        raise ValueError(f"factors are positive numbers, not {factors}.")
    study = prepare_study(
        profile,
        hardware=hardware,
        refresh=refresh,
        plan_only=plan_only,
        base_model=base_model,
        domains=domains,
        methods=methods,
        seeds=seeds,
        data_dir=data_dir,
        eval_batch_size=eval_batch_size,
    )
    if study.profile.num_validation is None:
        raise ValueError(f"{profile} has no validation rows: the paper's datasets have no such split.")
    return run_study(study, lambda study: rates(study, chosen), asked={"factors": chosen})


def rates(study: "Study", factors: list[float]) -> list[Row]:
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
