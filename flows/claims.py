"""The paper's claims put to the test: all of its tables over several seeds, with controls beside them."""

if __name__ == "__main__":
    from flows.servers.local import use_local_stores

    use_local_stores()  # before Prefect is imported and reads its settings

from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.adapt import single_domain
from flows.continual import continual_learning
from flows.merge import merging
from flows.study.comparison import Row
from flows.study.run import THREADS, Study, begin, carry_out, run_name
from lori.choices.profiles import CONTROLS
from lori.config import Hardware
from lori.evaluation.claims import MIN_SEEDS

Positive = Annotated[int, Field(ge=1)]


def claimed(study: Study) -> Study:
    """Merges of the methods alone that the claims are about, those that learn continually."""
    return study.varied(merged=study.profile.continual_methods)


def controls(study: Study, num_seeds: int | None) -> list[Row]:
    """Methods that differ in one thing from the paper's: alone, merged by concat, or in continual learning."""
    seeds = study.profile.seeds[:num_seeds]
    # No validation: it chooses what the registry calls the best, which is none of these
    varied = study.varied(**CONTROLS, merge_methods=("concat",), num_validation=None, seeds=seeds)
    return [*single_domain(varied), *merging(varied), *continual_learning(varied)]


@flow(name="claims", flow_run_name=run_name, task_runner=THREADS)
def claims(  # noqa: PLR0913 a flow's parameters are its form in Prefect
    profile: str = "scale",
    base_model: str | None = None,
    seeds: list[int] | None = None,
    learning_rates: dict[str, float] | None = None,
    num_control_seeds: Positive | None = None,
    prompt_style: str | None = None,
    data_dir: str | None = None,
    eval_batch_size: int | None = None,
    hardware: Hardware | None = None,
    refresh: list[str] | None = None,
    plan_only: bool = False,
) -> State:
    """Every table of the paper over several seeds, with controls: the report says which claim holds, and why.

    Args:
        profile: Sizes and defaults, a row of PROFILES (lori/choices/profiles.py).
        base_model: A row of BASE_MODELS (lori/base_models/resolve.py), a hub id, or a folder.
        seeds: One table row is the mean over these; 0 to 4 where left out, as fewer decide no claim.
        learning_rates: In place of the recipe's, by method, such as those that `sweep` chose.
        num_control_seeds: Of how many of these seeds the controls are; all where left out.
        prompt_style: How real rows are written, `plain` or `authors` (lori/datasets/prompts.py).
        data_dir: Folder of the real datasets; `LORI_DATA`, or the hub, where left out.
        eval_batch_size: Sequences that are generated at once.
        hardware: GPU, memory and how training is to fit it (lori/config.py).
        refresh: Cells to compute again: `all`, steps, or first words of titles such as `train lora math`.
        plan_only: Say what it would take and compute nothing.
    """
    overrides = {"base_model": base_model, "seeds": [*range(MIN_SEEDS)] if seeds is None else seeds}
    overrides |= {"prompt_style": prompt_style, "data_dir": data_dir, "eval_batch_size": eval_batch_size}
    place = {"hardware": hardware, "refresh": refresh, "plan_only": plan_only}
    study = claimed(begin(profile, **place, **overrides, learning_rates=learning_rates))
    return carry_out(
        study,
        single_domain,
        merging,
        continual_learning,
        lambda study: controls(study, num_control_seeds),
        asked={"num_control_seeds": num_control_seeds},
    )


if __name__ == "__main__":
    from flows.servers.local import main

    main(claims)
