"""Which entries of the B's compete for the kept share of a mask (paper, table of masks)."""

import re
from collections.abc import Callable

from lori.config import MaskConfig

ATTENTION = re.compile(r"attn|attention|(^|\.)[qkvo]_proj$", re.IGNORECASE)
LAYER = re.compile(r"(.*?\.)?\d+\.")  # up to the first number: an encoder's layer 3 is not the decoder's


def _layer(module: str) -> str:
    found = LAYER.match(module)
    return found.group() if found else ""


# Entries compete for the kept share within a group; a scope says which group a module is in (paper, table of masks).
SCOPES: dict[str, Callable[[str], str]] = {
    "model": lambda _module: "",
    "module": lambda module: "attention" if ATTENTION.search(module) else "mlp",
    "projection": lambda module: module.rsplit(".", 1)[-1],
    "layer": _layer,
    "matrix": lambda module: module,
}


def check_mask_config(config: MaskConfig) -> MaskConfig:
    """`config` if it can be carried out.

    Raises:
        ValueError: for an unknown scope, or a sparsity outside [0, 1).
    """
    if config.scope not in SCOPES:
        raise ValueError(f"Unknown scope {config.scope!r}. Known: {', '.join(SCOPES)} (lori/choices/scopes.py).")
    if not 0 <= config.sparsity < 1:
        raise ValueError(f"sparsity is the share of zeros, 0 <= sparsity < 1 (the paper: 0.9), not {config.sparsity}.")
    return config
