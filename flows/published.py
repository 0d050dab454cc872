"""Score adapters that were published, such as the authors' `tomg-group-umd/LoRI-*`, on the paper's benchmarks."""

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings

from prefect import flow
from prefect.client.schemas.objects import State

from flows.adapt import scores
from flows.study.comparison import Row
from flows.study.run import THREADS, Study, begin, carry_out, run_name
from lori.adapters.find_published import find_published, method_and_domain
from lori.base_models.resolve import identity
from lori.choices.domains import DOMAINS
from lori.config import Hardware
from tasks.engine.cells import import_adapter


@flow(name="published", flow_run_name=run_name, task_runner=THREADS)
def published(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    adapters: list[str],
    profile: str = "paper",
    base_model: str | None = None,
    domains: list[str] | None = None,
    adapters_dir: str | None = None,
    prompt_style: str = "authors",
    data_dir: str | None = None,
    eval_batch_size: int | None = None,
    hardware: Hardware | None = None,
    refresh: list[str] | None = None,
    plan_only: bool = False,
) -> State:
    """Score published LoRA adapters, each on its own domain if its name says one, else on all.

    Args:
        adapters: Hub ids, or names of folders in `adapters_dir`.
        profile: Sizes and defaults, a row of PROFILES (lori/choices/profiles.py).
        base_model: The base that they were trained on: a row of BASE_MODELS, a hub id, or a folder.
        domains: Rows of DOMAINS to score every adapter on; left out, the one in its name, or all.
        adapters_dir: The folder that holds them; the hub where left out.
        prompt_style: How rows are written; `authors` as the authors' adapters were trained (lori/datasets/prompts.py).
        data_dir: Folder of the real datasets; `LORI_DATA`, or the hub, where left out.
        eval_batch_size: Sequences that are generated at once.
        hardware: GPU and memory (lori/config.py).
        refresh: Cells to compute again: `all`, steps, or first words of titles such as `train lora math`.
        plan_only: Say what it would take and compute nothing.
    """
    own = {name: method_and_domain(name)[1] for name in adapters}
    wanted = {name: domains or ([own[name]] if own[name] in DOMAINS else [*DOMAINS]) for name in adapters}
    needed = list(dict.fromkeys(domain for each in wanted.values() for domain in each))
    overrides = {"base_model": base_model, "domains": needed, "prompt_style": prompt_style}
    overrides |= {"data_dir": data_dir, "eval_batch_size": eval_batch_size}
    place = {"hardware": hardware, "refresh": refresh, "plan_only": plan_only, "adapters_dir": adapters_dir}
    study = begin(profile, **place, **overrides)
    base = identity(study.profile.base_model, study.profile.models_dir)
    found = [find_published(name, adapters_dir, base) for name in adapters]

    def scored(study: Study) -> list[Row]:
        rows = []
        for config in found:
            adapter = import_adapter(study.cells, config)
            method, _ = method_and_domain(config.name)
            for domain in wanted[config.name]:
                labels = {"method": method, "domain": domain, "seed": 0}
                rows.append(Row("single", labels, adapter, [scores(study, adapter, domain)]))
        return rows

    return carry_out(study, scored)


if __name__ == "__main__":
    from flows.servers.local import main

    main(published)
