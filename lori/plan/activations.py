"""What autograd keeps of a training from forward to backward, and what comes and goes meanwhile, in bytes.

Derived from transformers' Llama with sdpa and from PEFT's layers; tests compare it with what torch really keeps (at
most 15 % apart). Of other architectures it is a guess: those tried keep a third (OPT) to 1.5 times as much (Gemma 2,
whose attention is not sdpa).
"""

from collections.abc import Callable
from dataclasses import dataclass

from lori.base_models.loading import DTYPES
from lori.choices.methods import method
from lori.config import TrainConfig
from lori.plan.sizes import Sizes, adapted_by, factor_entries, ia3_widths

FP32, INT64 = 4, 8  # bytes of an entry
# Linears that read one tensor. o_proj's input is attention's output, which attention keeps anyway
SHARED_INPUTS = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "gate_proj": "mlp",
    "up_proj": "mlp",
}
# Tensors of the MLP's inner width that its backward needs: gate, its activation and up; of a composed GELU, up to six
GATED_MLP, OTHER_MLP = 3, 6


@dataclass(frozen=True)
class Part:
    """What is computed at once: `rows` filled up to `length` tokens, with `num_labels` positions that are scored."""

    rows: int
    length: int
    num_labels: int
    is_padded: bool

    @property
    def num_positions(self) -> int:
        """With padding."""
        return self.rows * self.length


def saved_per_position(sizes: Sizes, config: TrainConfig, part: Part) -> int:
    """Bytes that autograd keeps of all layers for one position, without checkpointing.

    With b, the bytes of the compute dtype: the inputs of two norms, in fp32; q, k, v and attention's output (b), its
    log-sum-exp (fp32); the MLP's inner tensors (b). If rows are padded, sdpa gets a mask: keys and values are then
    repeated for every query head, and the mask is kept, too. To these comes what the method's own backward needs.
    """
    b = DTYPES[config.dtype].itemsize
    keys, mask_row = (sizes.queries, part.length) if part.is_padded else (sizes.keys, 0)
    attention = b * (2 * sizes.queries + 2 * keys + mask_row) + FP32 * sizes.num_heads
    mlp = b * sizes.intermediate * (GATED_MLP if sizes.is_like_llama else OTHER_MLP)
    frozen = sizes.num_layers * (2 * FP32 * sizes.hidden + attention + mlp)
    return frozen + SAVED[method(config.method).kind](sizes, config)


def _saved_of_base(sizes: Sizes, config: TrainConfig) -> int:
    """Each norm also keeps what its weight multiplies, in fp32, and each linear its input.

    In fp32, linears share the norm's output. Under autocast each makes a copy of its own, but for o_proj and
    down_proj, whose inputs are in the compute dtype already.
    """
    b = DTYPES[config.dtype].itemsize
    inputs = 2 * FP32 if b == FP32 else 5 * b
    return sizes.num_layers * (2 * FP32 * sizes.hidden + inputs * sizes.hidden + b * sizes.intermediate)


def _saved_of_factors(sizes: Sizes, config: TrainConfig) -> int:
    """LoRI: h, of rank columns, alone. With a trained A also the input of every linear.

    Over a base in fp32 that is the tensor that the linear reads, kept once; else PEFT and autocast copy it for each.
    DoRA keeps the linear's output and the adapter's as well, for the gradient of its magnitudes.
    """
    row, b = method(config.method), DTYPES[config.dtype].itemsize
    shapes = adapted_by(config, sizes)
    if row.freeze_a:
        return b * config.rank * len(shapes)
    inputs = _shared_inputs(sizes, config) if b == FP32 else sum(d_in for _, d_in in shapes.values())
    outputs = sum(d_out for d_out, _ in shapes.values()) if row.use_dora else 0
    return b * (inputs + config.rank * len(shapes) + 2 * outputs)


def _shared_inputs(sizes: Sizes, config: TrainConfig) -> int:
    """Columns of what the adapted linears read, where each tensor is kept once and attention's output already is."""
    inputs = {}
    for name, (_, d_in) in adapted_by(config, sizes).items():
        layer, _, projection = name.rpartition(".")
        if projection != "o_proj":
            inputs[f"{layer}.{SHARED_INPUTS.get(projection, projection)}"] = d_in
    return sum(inputs.values())


def _saved_of_ia3(sizes: Sizes, config: TrainConfig) -> int:
    outputs, inputs = ia3_widths(config, adapted_by(config, sizes))
    return DTYPES[config.dtype].itemsize * outputs + FP32 * inputs


def _saved_of_vera(sizes: Sizes, config: TrainConfig) -> int:
    """What each of the two vectors multiplies."""
    return DTYPES[config.dtype].itemsize * sum(d_out + config.rank for d_out, _ in adapted_by(config, sizes).values())


SAVED: dict[str, Callable[[Sizes, TrainConfig], int]] = {
    "full": _saved_of_base,
    "lora": _saved_of_factors,
    "ia3": _saved_of_ia3,
    "vera": _saved_of_vera,
    "shira": lambda sizes, config: DTYPES[config.dtype].itemsize * _shared_inputs(sizes, config),
}
# Bytes for a position and unit of the MLP's inner width that come and go in a backward, where PEFT computes in fp32:
# the most that torch's profiler saw on the CPU (Llama, bf16 and fp32). Elsewhere three tensors of the compute dtype
WORKING = {"lora": 9, "dora": 19, "rslora": 9, "pissa": 9, "ia3": 12, "vera": 15}


def _copies(sizes: Sizes, config: TrainConfig) -> tuple[int, int]:
    """Bytes of weights made anew and kept from forward to backward: in autocast's cache, and with the layer's tensors.

    SHiRA makes each matrix with its entries added, and of these the places in int64.
    """
    row, b = method(config.method), DTYPES[config.dtype].itemsize
    is_cast = b < FP32
    if row.kind == "full":
        return is_cast * b * (sizes.num_multiplied + sizes.num_head), 0
    shapes = adapted_by(config, sizes)
    entries = sum(factor_entries(shapes, config.rank))
    if row.kind == "lora":
        return 0 if row.freeze_a else is_cast * b * entries, 0
    if row.kind == "shira":
        return 0, b * sum(d_out * d_in for d_out, d_in in shapes.values()) + 2 * INT64 * entries
    return 0, is_cast * b * entries if row.kind == "vera" else 0


def activation_bytes(sizes: Sizes, config: TrainConfig, part: Part, *, checkpointing: bool) -> int:
    """With checkpointing each layer keeps its input, and one at a time all that its backward needs."""
    is_full = method(config.method).kind == "full"
    stream = FP32 if is_full else DTYPES[config.dtype].itemsize  # under autocast what layers add to stays in fp32
    last_norm = part.num_positions * (2 if is_full else 1) * FP32 * sizes.hidden
    cached, made = _copies(sizes, config)
    layers = part.num_positions * saved_per_position(sizes, config, part) + made
    if not checkpointing:
        return layers + cached + last_norm
    inputs = part.num_positions * sizes.num_layers * stream * sizes.hidden
    return inputs + max((layers + cached) // sizes.num_layers, cached) + last_norm


def working_bytes(sizes: Sizes, config: TrainConfig, part: Part) -> int:
    """Gradients of the MLP's inner tensors, and what a method makes for one linear and throws away."""
    row, b = method(config.method), DTYPES[config.dtype].itemsize
    inner = part.num_positions * sizes.intermediate * WORKING.get(config.method, 3 * b)
    if row.kind == "full":  # the head's gradient, before it is added to the one that is kept
        return inner + FP32 * sizes.num_head
    shapes = adapted_by(config, sizes).values()
    if row.use_dora:  # PEFT multiplies out b @ a with an identity of d_in, scales it and adds it to a copy of W
        return inner + max(FP32 * (d_in * d_in + 4 * d_out * d_in) for d_out, d_in in shapes)
    return inner + (max(FP32 * d_out * d_in for d_out, d_in in shapes) if row.kind == "shira" else 0)
