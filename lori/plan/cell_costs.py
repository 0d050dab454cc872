"""What one cell of a study takes: a row of a plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lori.choices.hardware import GPUS, Gpu, Hardware
from lori.choices.methods import method
from lori.config import DataConfig, EvalConfig, MaskConfig, MergeConfig, RandomMaskConfig, TrainConfig
from lori.plan.activations import FP32
from lori.plan.cell import Cell
from lori.plan.costs import (
    Memory,
    forward_flops,
    generation_memory,
    generation_seconds,
    generation_work,
    seconds_of,
    train_flops,
    train_memory,
)
from lori.plan.sizes import Adapter, Sizes, adapter_of, mask_bytes, num_kept
from lori.plan.token_counts import TokenCounts, prompt_parts, training_parts

BYTES_PER_TOKEN = 4  # of text, an assumption: for the sizes of datasets and of kept completions alone


@dataclass(frozen=True)
class Study:
    """What all cells share: the base, and the token counts of the datasets."""

    sizes: Sizes
    counts: Mapping[DataConfig, TokenCounts]


@dataclass(frozen=True)
class PlanRow:
    """What a cell takes.

    `num_trainable` are entries, of a mask those that it keeps; `memory` is of the fullest GPU; `tokens` are without
    padding; `gpu_seconds` are summed over the GPUs; `host_bytes` are memory of the machine.
    """

    cell: Cell
    num_trainable: int = 0
    memory: Memory = field(default_factory=Memory)
    tokens: int = 0
    flops: int = 0
    gpu_seconds: float = 0.0
    disk_bytes: int = 0
    host_bytes: int = 0


def row_of(cell: Cell, study: Study, hardware: Hardware) -> PlanRow:
    """What `cell` takes on `hardware`; nothing where its config is none of a kind in `ROWS`.

    Raises:
        ValueError: for a dataset without counts, or a config that can't be carried out.
    """
    make = ROWS.get(type(cell.config))
    return make(cell, study, hardware) if make else PlanRow(cell)


def gpu_of(hardware: Hardware) -> Gpu:
    """Its row of `GPUS`, `cpu` where it names none."""
    return GPUS[hardware.gpu or "cpu"]


def counts_of(cell: Cell, study: Study) -> TokenCounts:
    """The token counts of the dataset that it reads.

    Raises:
        ValueError: if there are none.
    """
    for given in cell.sources:
        if given.config in study.counts:
            return study.counts[given.config]
    raise ValueError(f"{cell.step} {cell.name} reads no dataset with token counts: count them first (count_tokens).")


def _inputs(cell: Cell, kind: type) -> list[Cell]:
    return [given for given in cell.sources if isinstance(given.config, kind)]


def _adapter(cell: Cell, study: Study) -> Adapter:
    mask = next((given.config for given in _inputs(cell, MaskConfig)), None)
    own = any(given.config.method == cell.config.method for given in _inputs(cell, TrainConfig))  # else it gives its A
    return adapter_of(cell.config, study.sizes, mask, continues=own)


def _dataset(cell: Cell, study: Study, hardware: Hardware) -> PlanRow:  # noqa: ARG001
    counts = study.counts.get(cell.config, TokenCounts((), ()))
    return PlanRow(cell, disk_bytes=BYTES_PER_TOKEN * (sum(counts.prompts) + sum(counts.labels)))


def _train(cell: Cell, study: Study, hardware: Hardware) -> PlanRow:
    config, sizes = cell.config, study.sizes
    kind, checkpointing = method(config.method).kind, hardware.gradient_checkpointing
    if kind == "none":
        return PlanRow(cell)
    adapter = _adapter(cell, study)
    work, parts = training_parts(
        counts_of(cell, study), config, max_tokens=hardware.micro_batch_tokens, num_processes=hardware.num_gpus
    )
    memories = [
        train_memory(sizes, config, adapter, part, checkpointing=checkpointing, num_gpus=hardware.num_gpus)
        for part in parts
    ]
    flops = train_flops(sizes, config, adapter, work, checkpointing=checkpointing)
    return PlanRow(
        cell,
        num_trainable=adapter.num_trainable,
        memory=max(memories, key=lambda memory: memory.peak),
        tokens=work.num_tokens,
        flops=flops,
        gpu_seconds=seconds_of(flops, config.dtype, gpu_of(hardware)),
        disk_bytes=FP32 * (sizes.num_parameters if kind == "full" else adapter.num_saved) + adapter.mask_bytes,
    )


def _evaluate(cell: Cell, study: Study, hardware: Hardware) -> PlanRow:
    """On one GPU: nothing shards a base to generate."""
    config, counts = cell.config, counts_of(cell, study)
    parts = prompt_parts(counts, config)
    memories = [generation_memory(study.sizes, config, part) for part in parts]
    if _is_whole_model(cell):
        memories.append(Memory(weights=2 * memories[0].weights))  # while it takes its base's place
    works = [work for part in parts for work in generation_work(config, part)]
    tokens = sum(counts.prompts) + len(counts.prompts) * config.num_samples * config.max_new_tokens
    return PlanRow(
        cell,
        memory=max(memories, key=lambda memory: memory.peak),
        tokens=tokens,
        flops=sum(forward_flops(study.sizes, work) for work in works),
        gpu_seconds=sum(generation_seconds(study.sizes, config, part, gpu_of(hardware)) for part in parts),
        disk_bytes=BYTES_PER_TOKEN * tokens,
    )


def _is_whole_model(cell: Cell) -> bool:
    """Whether the adapter that is scored is a model: full fine-tuning's, or a merge of dense updates."""
    trained = [method(given.config.method).kind for given in _inputs(cell, TrainConfig)]
    return "full" in trained or any(not _has_factors(given) for given in _inputs(cell, MergeConfig))


def _has_factors(merge: Cell) -> bool:
    """Whether all adapters of a merge are A and B and nothing else."""
    rows = [method(given.config.method) for given in _inputs(merge, TrainConfig)]
    return all(row.kind == "lora" and not row.use_dora for row in rows)


def _mask(cell: Cell, study: Study, hardware: Hardware) -> PlanRow:  # noqa: ARG001
    """On the CPU. Of an adapter from elsewhere only its files say the rank."""
    for trained in _inputs(cell, TrainConfig):
        shapes, rank = study.sizes.adapted(trained.config.projections), trained.config.rank
        return PlanRow(cell, num_kept(shapes, rank, cell.config), disk_bytes=mask_bytes(shapes, rank))
    return PlanRow(cell)


def _merge(cell: Cell, study: Study, hardware: Hardware) -> PlanRow:  # noqa: ARG001
    """On the CPU. A merge of dense updates holds the base twice, every update, and the result or one more model."""
    trained = _inputs(cell, TrainConfig)
    if not _has_factors(cell):
        model = FP32 * study.sizes.num_parameters
        return PlanRow(cell, disk_bytes=model, host_bytes=model * (len(trained) + 3))
    saved = [_adapter(given, study).num_saved for given in trained]
    return PlanRow(cell, disk_bytes=FP32 * (sum(saved) if cell.config.method == "concat" else max(saved, default=0)))


ROWS: dict[type, Callable[[Cell, Study, Hardware], PlanRow]] = {
    DataConfig: _dataset,
    TrainConfig: _train,
    MaskConfig: _mask,
    RandomMaskConfig: _mask,
    MergeConfig: _merge,
    EvalConfig: _evaluate,
}
