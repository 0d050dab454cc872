"""Before a study starts: whether its base, rows and sandbox can be used, and what all its cells would take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lori.bubblewrap import check_bubblewrap
from lori.config import EvalConfig, Hardware, TrainConfig, TrainRuntime
from lori.data import make_rows
from lori.models import check_base, check_device, config_of, context_of, load_tokenizer
from lori.paper.sources import check_sources
from lori.plan.costs import GPUS
from lori.plan.make import Place, Plan, PlannedCell, TokenCounts, count_tokens, make_plan
from lori.profiles import Profile
from lori.recipes import base_of, eval_config
from tasks.cells import Future


def check_usable(profile: Profile, *, plan_only: bool) -> None:
    """Whether the base model, the real rows and, where programs are run, the sandbox can be used.

    Raises:
        ValueError, RuntimeError: for the first that can't, with what to do.
    """
    if base_of(profile).suite == "miniature":
        return
    check_base(profile.base_model, profile.models_dir)
    _check_context(profile)
    check_sources(profile.domains, _data_dir(profile))
    if "code" in profile.domains and not plan_only:
        check_bubblewrap()


def _check_context(profile: Profile) -> None:
    """Whether the longest row that may be and all that may follow it fit into the base model's context."""
    context = context_of(config_of(profile.base_model, profile.models_dir))
    for domain in profile.domains:
        config = eval_config(profile, domain)
        if context is not None and config.max_length + config.max_new_tokens > context:
            raise ValueError(
                f"{profile.base_model} has a context of {context} tokens; {domain} needs {config.max_length} for a row"
                f" and {config.max_new_tokens} to generate: take a base model with a longer one."
            )


def check_hardware(hardware: Hardware, device: str, *, plan_only: bool) -> None:
    """Whether the hardware makes sense, and is there unless it is only planned for.

    Raises:
        ValueError: if not, with what to do.
    """
    if min(hardware.num_gpus, hardware.micro_batch_tokens) < 1:
        raise ValueError(f"num_gpus and micro_batch_tokens are 1 or more, not {hardware}.")
    if hardware.gpu is None and plan_only:
        raise ValueError(f"Name the GPU to plan for, as in hardware={{'gpu': 'h100'}}. Known: {', '.join(GPUS)}.")
    if plan_only:
        return
    if hardware.num_gpus > 1:
        raise ValueError("A flow run trains on one GPU: num_gpus is for plans, or train with torchrun (README).")
    check_device(device, hardware.gpu)


def note_cell(*, step: str, name: str, config: Any, inputs: dict[str, Any], place: object) -> Future:  # noqa: ARG001
    """A cell that is planned and not computed, in the place of its future."""
    given = [cell for value in inputs.values() for cell in (value if isinstance(value, list) else [value])]
    return cast(Future, PlannedCell(step, name, config, tuple(given)))


def plan(profile: Profile, hardware: Hardware, cells: Sequence[PlannedCell]) -> Plan:
    """What `cells` take on `hardware`. Their rows are read and their tokens counted; no weights are."""
    runtime = TrainRuntime(
        micro_batch_tokens=hardware.micro_batch_tokens, gradient_checkpointing=hardware.gradient_checkpointing
    )
    place = Place(hardware.gpu or "cpu", hardware.num_gpus, runtime)
    base = config_of(profile.base_model, profile.models_dir)
    return make_plan(cells, base, _counts(profile, cells), place)


def _counts(profile: Profile, cells: Sequence[PlannedCell]) -> dict[Any, TokenCounts]:
    """Tokens of each dataset as the cells read it: all trainings of a domain tokenise alike, and so do its tests."""
    tokenizer, counts = load_tokenizer(profile.base_model, profile.models_dir), {}
    for cell in cells:
        if isinstance(cell.config, TrainConfig | EvalConfig):
            dataset = next(given for given in cell.inputs if given.step == "dataset")
            if dataset.config not in counts:
                rows = make_rows(dataset.config, _data_dir(profile))
                counts[dataset.config] = count_tokens(rows, tokenizer, cell.config)
    return counts


def _data_dir(profile: Profile) -> Path | None:
    return Path(profile.data_dir) if profile.data_dir else None
