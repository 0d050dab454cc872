"""Plan before spending: what the cells of a study will take on a chosen base and GPU, and which of them cannot fit.

A plan is computed from configs, a base's configuration and the token counts of datasets; no weights are read.
Parameters, tokens to train on and adapter files are exact; memory and operations follow `costs.py`; time is the
operations at an assumed utilisation. What is generated is a bound: completions end early.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from lori.base_models.loading import config_of, load_tokenizer
from lori.choices.hardware import GPUS, Hardware
from lori.choices.methods import method
from lori.choices.profiles import Profile
from lori.config import DataConfig, EvalConfig, TrainConfig
from lori.datasets.rows import make_rows
from lori.plan.cell import Cell
from lori.plan.cell_costs import PlanRow, Study, counts_of, gpu_of, row_of
from lori.plan.costs import USABLE_SHARE
from lori.plan.sizes import sizes_of
from lori.plan.token_counts import TokenCounts, count_tokens

MORE_GPUS = (2, 4, 8)  # of one machine


@dataclass(frozen=True)
class Refusal:
    """A cell that does not fit into the bytes that a GPU leaves, and what would make it fit."""

    cell: Cell
    peak: int
    usable: int
    remedy: str


@dataclass(frozen=True)
class Plan:
    """What all cells of a study take, and the problems: those that do not fit."""

    base: str
    num_parameters: int
    is_like_llama: bool
    hardware: Hardware
    rows: tuple[PlanRow, ...]
    problems: tuple[Refusal, ...]


def make_plan(
    cells: Iterable[Cell], base: PreTrainedConfig, counts: Mapping[DataConfig, TokenCounts], hardware: Hardware
) -> Plan:
    """What `cells` take on `base`; `counts` has the datasets that they train or are scored on.

    Raises:
        ValueError: for a dataset without counts, or a cell that can't be carried out anywhere.
    """
    usable = _usable(hardware)
    study = Study(sizes_of(base), counts)
    rows = tuple(row_of(cell, study, hardware) for cell in cells)
    problems = tuple(
        Refusal(row.cell, row.memory.peak, usable, _remedy(row.cell, study, hardware))
        for row in rows
        if row.memory.peak > usable
    )
    sizes = study.sizes
    name = base.name_or_path or base.model_type
    return Plan(name, sizes.num_parameters, sizes.is_like_llama, hardware, rows, problems)


def check(plan: Plan) -> None:
    """Nothing, if every cell fits.

    Raises:
        ValueError: for those that do not, each with what would make it fit.
    """
    if plan.problems:
        listed = [
            f"- {problem.cell.step} {problem.cell.name} needs {problem.peak / 1e9:.1f} GB. {problem.remedy}"
            for problem in plan.problems
        ]
        raise ValueError(
            f"{len(plan.problems)} of {len(plan.rows)} cells do not fit into the"
            f" {plan.problems[0].usable / 1e9:.1f} GB that a GPU {plan.hardware.gpu or 'cpu'} leaves:\n"
            + "\n".join(listed)
        )


def _usable(hardware: Hardware) -> int:
    return int(USABLE_SHARE * gpu_of(hardware).memory)


def _remedy(cell: Cell, study: Study, hardware: Hardware) -> str:
    """The first change with which the same formulas say that the cell fits."""
    peaks = []
    for words, changed, elsewhere in _changes(cell, study, hardware):
        peaks.append(row_of(changed, study, elsewhere).memory.peak)
        if peaks[-1] <= _usable(elsewhere):
            return f"It fits with {words}."
    is_full = isinstance(cell.config, TrainConfig) and method(cell.config.method).kind == "full"
    why = " (a base that trains itself can't be sharded)" if is_full else ""
    return f"It takes {min(peaks) / 1e9:.0f} GB of a GPU at least, which none leaves{why}: choose a smaller base."


def _changes(cell: Cell, study: Study, hardware: Hardware) -> Iterator[tuple[str, Cell, Hardware]]:
    """What to try in turn: words, cell and hardware. Last come larger GPUs, also with what takes the least memory."""
    changes = (_evaluation_changes if isinstance(cell.config, EvalConfig) else _training_changes)(
        cell, study, hardware
    )
    smallest = "", cell, hardware
    for change in changes:
        yield change
        if change[2].num_gpus == hardware.num_gpus:
            smallest = change
    words, changed, elsewhere = smallest
    for gpu in sorted(GPUS, key=lambda name: GPUS[name].memory):
        if GPUS[gpu].memory > gpu_of(hardware).memory:
            yield f"gpu={gpu}", cell, replace(hardware, gpu=gpu)
            yield ", ".join(filter(None, (f"gpu={gpu}", words))), changed, replace(elsewhere, gpu=gpu)


def _evaluation_changes(
    cell: Cell,
    study: Study,  # noqa: ARG001 - as `_training_changes`
    hardware: Hardware,
) -> Iterator[tuple[str, Cell, Hardware]]:
    """Fewer sequences at once, down to the samples of one prompt."""
    size = cell.config.batch_size
    while size > cell.config.num_samples:
        size //= 2
        changed = replace(cell, config=replace(cell.config, batch_size=size))
        yield f"eval_batch_size={size} (other results: it moves their last bits)", changed, hardware


def _training_changes(cell: Cell, study: Study, hardware: Hardware) -> Iterator[tuple[str, Cell, Hardware]]:
    """Smaller micro-batches, down to a row each; checkpointing; then more GPUs, if they can share the base."""
    counts = counts_of(cell, study)
    longest = max(prompt + labels for prompt, labels in zip(counts.prompts, counts.labels, strict=True))
    sizes = [hardware.micro_batch_tokens]
    while sizes[-1] > longest:
        sizes.append(sizes[-1] // 2)
    more = () if method(cell.config.method).kind == "full" else MORE_GPUS
    numbers = [hardware.num_gpus, *(number for number in more if number > hardware.num_gpus)]
    for num_gpus, checkpointing, size in product(numbers, sorted({hardware.gradient_checkpointing, True}), sizes):
        changed = replace(hardware, num_gpus=num_gpus, micro_batch_tokens=size, gradient_checkpointing=checkpointing)
        words = [
            f"num_gpus={num_gpus} (torchrun: a flow run trains on one)" if num_gpus != hardware.num_gpus else "",
            "gradient_checkpointing" if checkpointing != hardware.gradient_checkpointing else "",
            f"micro_batch_tokens={size}" if size != sizes[0] else "",
        ]
        yield ", ".join(filter(None, words)), cell, changed


def plan_study(profile: Profile, hardware: Hardware, cells: Sequence[Cell]) -> Plan:
    """What `cells` take on `hardware`. Their rows are read and their tokens counted; no weights are."""
    base = config_of(profile.base)
    return make_plan(cells, base, _counts(profile, cells), hardware)


def _counts(profile: Profile, cells: Sequence[Cell]) -> dict[Any, TokenCounts]:
    """Tokens of each dataset as the cells read it: all trainings of a domain tokenise alike, and so do its tests."""
    tokenizer, counts = load_tokenizer(profile.base), {}
    data_dir = Path(profile.data_dir) if profile.data_dir else None
    for cell in cells:
        if isinstance(cell.config, TrainConfig | EvalConfig):
            dataset = next(given for given in cell.sources if given.step == "dataset")
            if dataset.config not in counts:
                rows = make_rows(dataset.config, data_dir)
                counts[dataset.config] = count_tokens(rows, tokenizer, cell.config)
    return counts
