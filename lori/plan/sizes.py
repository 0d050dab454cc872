"""The sizes of a base model and of what a method adds to it, exactly, from its configuration and without weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from lori.adapters import baselines
from lori.choices.methods import method
from lori.choices.scopes import SCOPES, check_mask_config
from lori.config import MaskConfig, TrainConfig

# Model types whose layers keep what Llama's keep: the others' activations are a guess (Gemma has the same projections)
LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Sizes:
    """A base model's. `linears` are (d_out, d_in) by name, without the head; `queries`, `keys`: d_out of q, k."""

    num_parameters: int
    linears: Mapping[str, tuple[int, int]]
    vocabulary: int
    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    queries: int
    keys: int
    is_like_llama: bool

    @property
    def num_multiplied(self) -> int:
        """Entries of all linears but the head: each token is multiplied with each of them."""
        return sum(d_out * d_in for d_out, d_in in self.linears.values())

    @property
    def num_head(self) -> int:
        """Entries of the head, and of the embedding."""
        return self.vocabulary * self.hidden

    def adapted(self, projections: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """The linears that get an adapter, found by the ends of their names as in PEFT."""
        return {
            name: shape
            for name, shape in self.linears.items()
            if any(f".{name}".endswith(f".{end}") for end in projections)
        }


def sizes_of(base: PreTrainedConfig) -> Sizes:
    """The sizes of the model that transformers makes of `base`, which may be any causal LM's configuration."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base, trust_remote_code=False)
    head, text = model.get_output_embeddings(), base.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    num_key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    return Sizes(
        num_parameters=model.num_parameters(),
        linears={
            name: _shape(module)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        },
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        intermediate=inner,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        queries=text.num_attention_heads * head_size,
        keys=num_key_heads * head_size,
        is_like_llama=base.model_type in LIKE_LLAMA,
    )


def _shape(module: nn.Linear | Conv1D) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


@dataclass(frozen=True)
class Adapter:
    """What a method adds to a base, in entries.

    `num_b` are B's, `num_kept` those inside its mask (all without one), `num_rest` those outside it that an earlier
    domain left. `num_fp32` and `num_int32` lie beside B while it trains, `num_saved` of four bytes each in the file.
    `mask_bytes` is the packed mask's, `flops` are a position's in forward and backward, beyond the base's.
    """

    num_trainable: int
    num_b: int = 0
    num_kept: int = 0
    num_rest: int = 0
    num_fp32: int = 0
    num_int32: int = 0
    num_saved: int = 0
    mask_bytes: int = 0
    flops: int = 0


def adapter_of(
    config: TrainConfig, sizes: Sizes, mask: MaskConfig | None = None, *, continues: bool = False
) -> Adapter:
    """What `config.method` adds to the base; `continues` if it goes on from an adapter of another domain.

    Raises:
        ValueError: if the method needs a mask and there is none, or finds nothing to adapt in this base.
    """
    row = method(config.method)
    if row.mask_from and mask is None:
        raise ValueError(f"{config.method} trains inside a mask: give its cell one, made from {row.mask_from}.")
    if row.kind in ("none", "full"):
        return Adapter(sizes.num_parameters if row.kind == "full" else 0)
    shapes = adapted_by(config, sizes)
    if not shapes:
        raise ValueError(f"{config.base_model} has no linear that {config.method} adapts, among {config.projections}.")
    if row.kind == "lora":
        return _factors(config, shapes, mask, continues=continues)
    return TUNERS[row.kind](config, shapes)


def adapted_by(config: TrainConfig, sizes: Sizes) -> dict[str, tuple[int, int]]:
    """The linears that the method adapts: IA³ not all projections."""
    return sizes.adapted(_ia3_targets(config)[0] if method(config.method).kind == "ia3" else config.projections)


def _factors(
    config: TrainConfig, shapes: Mapping[str, tuple[int, int]], mask: MaskConfig | None, *, continues: bool
) -> Adapter:
    row = method(config.method)
    num_a, num_b = factor_entries(shapes, config.rank)
    kept = num_kept(shapes, config.rank, mask) if mask else num_b
    magnitudes = num_b // config.rank if row.use_dora else 0
    first = num_a + num_b if row.from_svd else 0  # PiSSA's, which its file subtracts again
    inverses = config.rank**2 * len(shapes) if row.precondition else 0
    return Adapter(
        num_trainable=kept + magnitudes + (0 if row.freeze_a else num_a),
        num_b=num_b,
        num_kept=kept,
        num_rest=num_b if mask and continues else 0,
        num_fp32=num_a + magnitudes + first + inverses,
        num_saved=num_a + num_b + magnitudes + first,
        mask_bytes=mask_bytes(shapes, config.rank) if mask else 0,
        # Forward, the gradient of what comes in and, where it trains, of the factor itself
        flops=6 * num_b + (4 if row.freeze_a else 6) * num_a,
    )


def factor_entries(shapes: Mapping[str, tuple[int, int]], rank: int) -> tuple[int, int]:
    """Entries of all A's and of all B's."""
    return rank * sum(d_in for _, d_in in shapes.values()), rank * sum(d_out for d_out, _ in shapes.values())


def _ia3_targets(config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ends of names: of all linears that are scaled, and of those whose input is."""
    settings: Any = baselines.TUNERS["ia3"].settings(config)
    return tuple(settings.target_modules), tuple(settings.feedforward_modules)


def ia3_widths(config: TrainConfig, shapes: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Entries of the vectors that scale outputs, and of those that scale inputs."""
    inner = {name for name in shapes if any(f".{name}".endswith(f".{end}") for end in _ia3_targets(config)[1])}
    outputs = sum(d_out for name, (d_out, _) in shapes.items() if name not in inner)
    return outputs, sum(shapes[name][1] for name in inner)


def _ia3(config: TrainConfig, shapes: Mapping[str, tuple[int, int]]) -> Adapter:
    vectors = sum(ia3_widths(config, shapes))
    return Adapter(num_trainable=vectors, num_fp32=vectors, num_saved=vectors)


def _vera(config: TrainConfig, shapes: Mapping[str, tuple[int, int]]) -> Adapter:
    """One random A and B for all linears, of the largest that any needs, and two vectors for each."""
    vectors = sum(d_out + config.rank for d_out, _ in shapes.values())
    shared = config.rank * sum(map(max, zip(*shapes.values(), strict=True)))
    multiplied = sum(factor_entries(shapes, config.rank))
    return Adapter(num_trainable=vectors, num_fp32=vectors + shared, num_saved=vectors + shared, flops=4 * multiplied)


def _shira(config: TrainConfig, shapes: Mapping[str, tuple[int, int]]) -> Adapter:
    """As many entries as LoRA, with row and column of each; the gradient of the whole matrix is computed."""
    values = sum(factor_entries(shapes, config.rank))
    return Adapter(
        num_trainable=values,
        num_fp32=values,
        num_int32=2 * values,
        num_saved=3 * values,
        flops=2 * sum(d_out * d_in for d_out, d_in in shapes.values()),
    )


TUNERS: dict[str, Callable[[TrainConfig, Mapping[str, tuple[int, int]]], Adapter]] = {
    "ia3": _ia3,
    "vera": _vera,
    "shira": _shira,
}


def num_kept(shapes: Mapping[str, tuple[int, int]], rank: int, mask: MaskConfig) -> int:
    """Entries that `mask` keeps of the B's of linears (d_out, d_in): `int((1 − sparsity) · N)` of each group of N."""
    group_of = SCOPES[check_mask_config(mask).scope]
    groups: dict[str, int] = defaultdict(int)
    for name, (d_out, _) in shapes.items():
        groups[group_of(name)] += d_out * rank
    return sum(int((1 - mask.sparsity) * size) for size in groups.values())


def mask_bytes(shapes: Mapping[str, tuple[int, int]], rank: int) -> int:
    """Bytes of the packed mask: eight entries in one, and each module starts a new one."""
    return sum(math.ceil(d_out * rank / 8) for d_out, _ in shapes.values())
