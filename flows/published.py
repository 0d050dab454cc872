"""Score adapters that were published, such as the authors' `tomg-group-umd/LoRI-*`, on the paper's benchmarks."""

from typing import TYPE_CHECKING

from flows import parameters as p
from flows.study.comparison import Row
from flows.tables import scores
from lori.adapters.find_published import find_published, method_and_domain
from lori.choices.domains import DOMAINS

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.study.run import Study


def published(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    adapters: p.Adapters,
    profile: p.ProfileName = "paper",
    base_model: p.Base = None,
    domains: p.Domains = None,
    adapters_dir: p.AdaptersDir = None,
    prompt_style: p.PromptStyle = "authors",
    data_dir: p.DataDir = None,
    eval_batch_size: p.BatchSize = None,
    hardware: p.Machine = None,
    refresh: p.Refresh = None,
    plan_only: p.PlanOnly = False,
) -> "State":
    """Score published LoRA adapters of one base model on `domains`; left out, each on the one in its name, or on all.

    `prompt_style` is `authors` where left out: as the authors' adapters were trained.
    """
    from flows.study.run import prepare_study, run_study  # Prefect and MLflow: a wrong parameter waits for neither

    own = {name: method_and_domain(name)[1] for name in adapters}
    wanted = {name: domains or ([own[name]] if own[name] in DOMAINS else [*DOMAINS]) for name in adapters}
    study = prepare_study(
        profile,
        hardware=hardware,
        refresh=refresh,
        plan_only=plan_only,
        adapters_dir=adapters_dir,
        base_model=base_model,
        domains=list(dict.fromkeys(domain for each in wanted.values() for domain in each)),
        prompt_style=prompt_style,
        data_dir=data_dir,
        eval_batch_size=eval_batch_size,
    )
    found = [find_published(name, adapters_dir, study.profile.base.identity) for name in adapters]

    def scored(study: "Study") -> list[Row]:
        rows = []
        for config in found:
            adapter = study.cells.request("import", config)
            method, _ = method_and_domain(config.name)
            for domain in wanted[config.name]:
                labels = {"method": method, "domain": domain, "seed": 0}
                rows.append(Row("single", labels, adapter, [scores(study, adapter, domain)]))
        return rows

    return run_study(study, scored)
