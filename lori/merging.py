"""Adapters of several domains into one, from their files (paper, section 3.3).

PEFT's `add_weighted_adapter` is what the authors call. `concat` is the plain weighted sum of the updates. The others
merge A and B apart, each with √(w · s), s = alpha / rank, so the merged update also holds every cross term b_i @ a_j.
Methods without low-rank factors (`full`, `dora`) are merged on their dense updates, where concat and linear are one.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from peft.utils.merge_utils import dare_linear, magnitude_prune, task_arithmetic, ties
from safetensors.torch import load_file, save_file
from torch import Tensor

from lori.config import MergeConfig
from lori.methods import LORA_A, LORA_B, apply_adapter
from lori.models import load_base

# Of the same tensor of every adapter and its weights, the merged tensor. None: rank adds up, nothing is summed.
MERGE_METHODS: dict[str, Callable[..., Tensor] | None] = {
    "concat": None,
    "linear": lambda tensors, weights, density: task_arithmetic(tensors, weights),  # noqa: ARG005
    "magnitude": magnitude_prune,
    "ties": ties,
    "dare": dare_linear,
}


def check_merge_config(config: MergeConfig, num_adapters: int) -> MergeConfig:
    """`config` if it can be carried out on that many adapters.

    Raises:
        ValueError: for an unknown method, another number of weights than adapters, a negative or not finite weight, or
            a density outside (0, 1].
    """
    if config.method not in MERGE_METHODS:
        raise ValueError(
            f"Unknown merge method {config.method!r}. Known: {', '.join(MERGE_METHODS)} (lori/merging.py)."
        )
    if len(config.weights) != num_adapters:
        raise ValueError(f"{num_adapters} adapters need {num_adapters} weights, not {len(config.weights)}.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in config.weights):
        raise ValueError(f"Merge weights are finite and not negative (√w is taken of them), not {config.weights}.")
    if not 0 < config.density <= 1:
        raise ValueError(f"density is the share kept, 0 < density <= 1, not {config.density}.")
    return config


def merge(adapter_dirs: Sequence[Path], config: MergeConfig, out: Path) -> None:
    """Write the merge of `adapter_dirs` to `out`: a PEFT directory, or a whole model for methods without factors.

    Raises:
        ValueError: as `check_merge_config`, and for factors of different ranks, which only concat can merge.
    """
    check_merge_config(config, len(adapter_dirs))
    out.mkdir(parents=True, exist_ok=True)
    if all(_has_factors(directory) for directory in adapter_dirs):
        _merge_factors(adapter_dirs, config, out)
    else:
        _merge_dense(adapter_dirs, config, out)


def _has_factors(directory: Path) -> bool:
    path = directory / "adapter_config.json"
    return path.exists() and not json.loads(path.read_text())["use_dora"]


def _seeded(config: MergeConfig, name: str, tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The merge of one tensor; dare's draws depend on the seed and the tensor's name, not on the order of files."""
    combine = MERGE_METHODS[config.method] or MERGE_METHODS["linear"]
    assert combine is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.Random(f"{config.seed}/{name}").getrandbits(63))
        return combine(list(tensors), weights, config.density)


def _merge_factors(adapter_dirs: Sequence[Path], config: MergeConfig, out: Path) -> None:
    settings = [json.loads((directory / "adapter_config.json").read_text()) for directory in adapter_dirs]
    ranks = [setting["r"] for setting in settings]
    scaled = [w * setting["lora_alpha"] / setting["r"] for w, setting in zip(config.weights, settings, strict=True)]
    if config.method != "concat" and len(set(ranks)) > 1:
        raise ValueError(
            f"Only concat merges adapters of different ranks {ranks}: {config.method} sums their factors."
        )
    files = [load_file(str(directory / "adapter_model.safetensors")) for directory in adapter_dirs]
    combine = _concatenate if config.method == "concat" else partial(_sum_factors, config)
    merged = {name: combine(name, [file[name] for file in files], scaled).contiguous() for name in files[0]}
    rank = sum(ranks) if config.method == "concat" else ranks[0]
    save_file(merged, str(out / "adapter_model.safetensors"), metadata={"format": "pt"})
    merged_config = {**settings[0], "r": rank, "lora_alpha": rank}  # the scaling is in the factors now
    (out / "adapter_config.json").write_text(json.dumps(merged_config, indent=2, sort_keys=True))


def _concatenate(name: str, factors: Sequence[Tensor], scaled: Sequence[float]) -> Float[Tensor, "_ _"]:
    """[w₁s₁A₁; w₂s₂A₂; …] and [B₁ B₂ …]: b @ a is Σ wᵢ sᵢ Bᵢ Aᵢ."""
    if LORA_A in name:
        return torch.cat([weight * a for weight, a in zip(scaled, factors, strict=True)], dim=0)
    return torch.cat(list(factors), dim=1)


def _sum_factors(config: MergeConfig, name: str, factors: Sequence[Tensor], scaled: Sequence[float]) -> Tensor:
    assert LORA_A in name or LORA_B in name
    return _seeded(config, name, factors, torch.tensor(scaled).sqrt())


def _merge_dense(adapter_dirs: Sequence[Path], config: MergeConfig, out: Path) -> None:
    base = load_base(config.base_model)
    origin = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    updates = []
    for directory in adapter_dirs:
        adapted = apply_adapter(load_base(config.base_model), directory).state_dict()
        updates.append({name: adapted[name] - tensor for name, tensor in origin.items()})
    weights = torch.tensor(config.weights)
    merged = {
        name: tensor + _seeded(config, name, [update[name] for update in updates], weights)
        for name, tensor in origin.items()
    }
    base.load_state_dict(merged)
    base.save_pretrained(str(out))
