"""Sparse masks for LoRI-S from the magnitudes of LoRI-D's B (paper, section 3.2), from adapter files alone."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lori.config import MaskConfig
from lori.methods import LORA_B, module_name

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MASK_FILE = "lori_mask.safetensors"


def _projection(module: str) -> str:
    return module.rsplit(".", 1)[-1]


def _layer(module: str) -> str:
    found = re.search(r"\.(\d+)\.", module)
    return found.group(1) if found else ""


# Entries compete for the kept share within a group; a scope says which group a module is in (paper, table of masks).
SCOPES: dict[str, Callable[[str], str]] = {
    "model": lambda _module: "",
    "module": lambda module: "attention" if _projection(module) in ATTENTION else "mlp",
    "projection": _projection,
    "layer": _layer,
    "matrix": lambda module: module,
}


def check_mask_config(config: MaskConfig) -> MaskConfig:
    """`config` if it can be carried out.

    Raises:
        ValueError: for an unknown scope, or a sparsity outside [0, 1).
    """
    if config.scope not in SCOPES:
        raise ValueError(f"Unknown scope {config.scope!r}. Known: {', '.join(SCOPES)} (lori/masks.py).")
    if not 0 <= config.sparsity < 1:
        raise ValueError(f"sparsity is the share of zeros, 0 <= sparsity < 1 (the paper: 0.9), not {config.sparsity}.")
    return config


def magnitude_masks(
    bs: Mapping[str, Float[Tensor, "_out _rank"]], config: MaskConfig
) -> dict[str, Bool[Tensor, "_out _rank"]]:
    """True where B is among the `int((1 − sparsity) · N)` largest magnitudes of its group of N entries.

    Exactly that many are kept: ties at the threshold go to the earlier module and the lower index, where the authors'
    `>=` keeps them all (extract_mask.py), 0.4 % too many on a bf16 B.

    Raises:
        ValueError: if the sparsity leaves a group no entry at all.
    """
    group_of = SCOPES[check_mask_config(config).scope]
    groups: dict[str, list[str]] = defaultdict(list)
    for module in bs:
        groups[group_of(module)].append(module)
    masks: dict[str, Tensor] = {}
    for modules in groups.values():
        magnitudes = torch.cat([bs[module].abs().flatten() for module in modules])
        num_kept = int((1 - config.sparsity) * magnitudes.numel())
        if num_kept == 0:
            raise ValueError(f"sparsity {config.sparsity} keeps none of the {magnitudes.numel()} entries of a group.")
        order = torch.sort(magnitudes, descending=True, stable=True).indices
        kept = torch.zeros(magnitudes.numel(), dtype=torch.bool)
        kept[order[:num_kept]] = True
        for module, part in zip(modules, kept.split([bs[module].numel() for module in modules]), strict=True):
            masks[module] = part.view_as(bs[module])
    return masks


def read_bs(adapter_dir: Path) -> dict[str, Tensor]:
    """Every B of a PEFT adapter by module name, in fp32, without loading its base model."""
    with safe_open(str(adapter_dir / "adapter_model.safetensors"), "pt") as file:
        return {module_name(name): file.get_tensor(name).float() for name in file.keys() if LORA_B in name}  # noqa: SIM118


def save_masks(masks: Mapping[str, Tensor], directory: Path) -> None:
    """Write the masks as packed bits, lowest bit first, with their shapes in the metadata."""
    directory.mkdir(parents=True, exist_ok=True)
    bits = {
        name: torch.from_numpy(np.packbits(mask.numpy().ravel(), bitorder="little")) for name, mask in masks.items()
    }
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    # One entry: safetensors writes several in an order that differs between processes
    save_file(bits, str(directory / MASK_FILE), metadata={"shapes": json.dumps(shapes, sort_keys=True)})


def load_masks(directory: Path) -> dict[str, Bool[Tensor, "_out _rank"]]:
    """What `save_masks` wrote."""
    path = str(directory / MASK_FILE)
    with safe_open(path, "pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
    masks = {}
    for name, bits in load_file(path).items():
        out, rank = shapes[name]
        flags = np.unpackbits(bits.numpy(), bitorder="little", count=out * rank).astype(bool)
        masks[name] = torch.from_numpy(flags).view(out, rank)
    return masks


def num_kept(masks: Mapping[str, Tensor]) -> int:
    """How many entries may train."""
    return int(sum(mask.sum() for mask in masks.values()))
