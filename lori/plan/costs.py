"""What a machine has, and what training and generation take of it: memory, operations, seconds.

A FLOP is one multiplication or one addition.
"""

from dataclasses import dataclass, fields

from lori.base_models.loading import DTYPES
from lori.choices.hardware import Gpu
from lori.choices.methods import method
from lori.config import EvalConfig, TrainConfig
from lori.plan.activations import FP32, INT64, Part, activation_bytes, working_bytes
from lori.plan.sizes import Adapter, Sizes

INT32 = 4  # bytes of an entry
ADAM_STATES = 2  # in fp32, as what trains and its gradients, over any base
# Three assumptions, none of them measured. What CUDA's context, libraries and a fragmented allocator leave
USABLE_SHARE = 0.94
# Of the peak FLOP/s, while training and while reading prompts
ASSUMED_UTILISATION = 0.4
# Of the bandwidth, while writing tokens: an eager loop waits for the launches of its kernels
ASSUMED_BANDWIDTH_SHARE = 0.2


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU, by what they are, at the time when all of it is there."""

    weights: int = 0
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0
    working: int = 0

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Work:
    """Sums over all parts of a cell: tokens without and with padding, position pairs of attention, logits."""

    num_tokens: int
    num_positions: int
    num_pairs: int
    num_logits: int


def train_memory(
    sizes: Sizes, config: TrainConfig, adapter: Adapter, part: Part, *, checkpointing: bool, num_gpus: int
) -> Memory:
    """Of one training while it computes `part`.

    Several GPUs share an adapter's base (FSDP2), but for two layers and the head, which are whole while in use. A base
    that trains itself is whole on each (DDP), in fp32, and DDP keeps its gradients twice.
    """
    b, is_full = DTYPES[config.dtype].itemsize, method(config.method).kind == "full"
    weights = (FP32 if is_full else b) * sizes.num_parameters
    if num_gpus > 1 and not is_full:
        weights = weights // num_gpus + b * (2 * sizes.num_multiplied // sizes.num_layers + sizes.num_head)
    return Memory(
        weights=weights,
        adapter=_adapter_bytes(config, adapter),
        gradients=FP32 * adapter.num_trainable * (2 if is_full and num_gpus > 1 else 1),
        optimizer=FP32 * ADAM_STATES * adapter.num_trainable,
        activations=activation_bytes(sizes, config, part, checkpointing=checkpointing),
        logits=3 * FP32 * sizes.vocabulary * part.num_labels,  # log-softmax, its gradient, and the logits' own
        working=working_bytes(sizes, config, part),
    )


def _adapter_bytes(config: TrainConfig, adapter: Adapter) -> int:
    """A sparse B is values and places, of a module (int32) and of all (int64), and dense B's to compute with."""
    beside = FP32 * adapter.num_fp32 + INT32 * adapter.num_int32
    if not method(config.method).mask_from:
        return beside + FP32 * adapter.num_b
    sparse = (FP32 + INT32 + INT64) * adapter.num_kept + FP32 * adapter.num_rest
    return beside + sparse + DTYPES[config.dtype].itemsize * adapter.num_b


def forward_flops(sizes: Sizes, work: Work) -> int:
    """Two for each entry of a linear and position; attention's two products with every pair, also the masked ones."""
    attention = 4 * sizes.num_layers * sizes.queries * work.num_pairs
    return 2 * sizes.num_multiplied * work.num_positions + attention + 2 * sizes.num_head * work.num_logits


def train_flops(sizes: Sizes, config: TrainConfig, adapter: Adapter, work: Work, *, checkpointing: bool) -> int:
    """Forward and backward: for a position and entry of the base 4 where it is frozen (no gradient of it), else 6.

    Attention's backward is twice its forward in both. Checkpointing computes the layers' forward again, until
    nothing more is to be kept: in a base that trains itself, up to the last product.
    """
    is_full = method(config.method).kind == "full"
    forward = forward_flops(sizes, work)
    layers = forward - 2 * sizes.num_head * work.num_logits
    attention = layers - 2 * sizes.num_multiplied * work.num_positions
    backward = 2 * forward if is_full else forward + attention
    last = 2 * sizes.num_layers * sizes.hidden * sizes.intermediate * work.num_positions if is_full else 0
    return forward + backward + adapter.flops * work.num_positions + (layers - last if checkpointing else 0)


def generation_memory(sizes: Sizes, config: EvalConfig, part: Part) -> Memory:
    """Of one batch of prompts, each with all its samples apart and as long as they may become."""
    b = DTYPES[config.dtype].itemsize
    rows = part.rows * config.num_samples
    sampling = 9 * FP32 if config.temperature else 0  # probabilities, sorted, with their places, summed up
    return Memory(
        weights=b * sizes.num_parameters,
        logits=rows * sizes.vocabulary * (b + sampling),
        kv_cache=rows * (part.length + config.max_new_tokens) * kv_per_token(sizes, config),
        working=part.num_positions * 3 * (b * sizes.intermediate + FP32 * sizes.hidden),  # one layer over the prompts
    )


def kv_per_token(sizes: Sizes, config: EvalConfig) -> int:
    """Bytes of keys and values of one token in all layers."""
    return 2 * DTYPES[config.dtype].itemsize * sizes.num_layers * sizes.keys


def generation_work(config: EvalConfig, part: Part) -> tuple[Work, Work]:
    """Of a batch of prompts: reading them, and the most that writing can take, as if no sample ended early."""
    steps, rows = config.max_new_tokens, part.rows * config.num_samples
    written = rows * steps
    pairs = rows * (steps * part.length + steps * (steps - 1) // 2)
    return (
        Work(part.num_positions, part.num_positions, part.num_positions * part.length, part.rows),
        Work(written, written, pairs, written),
    )


def generation_seconds(sizes: Sizes, config: EvalConfig, part: Part, gpu: Gpu) -> float:
    """Of a batch of prompts: to write a token, all weights are read once, and the keys and values of all rows."""
    reading, writing = generation_work(config, part)
    weights = DTYPES[config.dtype].itemsize * sizes.num_parameters * config.max_new_tokens
    moved = (weights + writing.num_pairs * kv_per_token(sizes, config)) / (gpu.bandwidth * ASSUMED_BANDWIDTH_SHARE)
    computed = seconds_of(forward_flops(sizes, writing), config.dtype, gpu)
    return seconds_of(forward_flops(sizes, reading), config.dtype, gpu) + max(moved, computed)


def seconds_of(flops: int, dtype: str, gpu: Gpu) -> float:
    """At the assumed utilisation of the peak in `dtype`."""
    return flops / (ASSUMED_UTILISATION * (gpu.fp32_flops if DTYPES[dtype].itemsize == FP32 else gpu.bf16_flops))
