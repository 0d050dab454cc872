"""The whole paper in one flow: adaptation, merging and continual learning share every cell that they can."""

from typing import TYPE_CHECKING

from flows import parameters as p
from flows.tables import STAGES, control_rows

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

METHODS_OF = {
    "single": "methods",
    "merging": "merged",
    "continual": "continual_methods",
}  # by table, a profile's field


def paper(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: p.ProfileName = "scale",
    base_model: p.Base = None,
    domains: p.Domains = None,
    methods: p.Methods = None,
    tables: p.Tables = None,
    merge_methods: p.MergeMethods = None,
    weights: p.Weights = None,
    density: p.Density = None,
    rank: p.Rank = None,
    sparsity: p.Sparsity = None,
    scope: p.Scope = None,
    seeds: p.Seeds = None,
    learning_rates: p.LearningRates = None,
    controls: p.Controls = False,
    num_control_seeds: p.NumControlSeeds = None,
    prompt_style: p.PromptStyle = None,
    data_dir: p.DataDir = None,
    eval_batch_size: p.BatchSize = None,
    hardware: p.Machine = None,
    refresh: p.Refresh = None,
    plan_only: p.PlanOnly = False,
    push_to: p.PushTo = None,
) -> "State":
    """Compute the tables of the paper. What is left out is the profile's."""
    from flows.study.run import prepare_study, run_study  # Prefect and MLflow: a wrong parameter waits for neither

    asked = tables or [*STAGES]
    study = prepare_study(
        profile,
        hardware=hardware,
        refresh=refresh,
        plan_only=plan_only,
        push_to=push_to,
        base_model=base_model,
        domains=domains,
        merge_methods=merge_methods,
        weights=weights,
        density=density,
        rank=rank,
        sparsity=sparsity,
        scope=scope,
        seeds=seeds,
        learning_rates=learning_rates,
        prompt_style=prompt_style,
        data_dir=data_dir,
        eval_batch_size=eval_batch_size,
        adapters_dir=None,
        **{METHODS_OF[asked[0]]: methods},
    )
    stages = [STAGES[table] for table in asked]
    if not controls:
        return run_study(study, *stages)
    return run_study(
        study.varied(merged=study.profile.continual_methods),  # the claims are about merges of these alone
        *stages,
        lambda study: control_rows(study, num_control_seeds),
        asked={"num_control_seeds": num_control_seeds},
    )
