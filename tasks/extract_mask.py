"""Extract the mask of LoRI-S from a LoRI-D adapter."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lori.adapters.masks import draw_masks, extract_masks, load_masks, num_kept, save_masks
from lori.config import MaskConfig, RandomMaskConfig
from tasks import tracking
from tasks.publish.catalogue import Entry, register_model, suffix
from tasks.results import Handle, Runtime


def extract_mask(
    config: MaskConfig, *, adapter: Handle, excluded: Handle | None = None, key: str, runtime: Runtime
) -> Handle:
    """The magnitude mask of `adapter`'s B's, from its files alone; without entries of the mask `excluded`."""
    if excluded is None:
        return _logged(extract_masks, config, "mask", adapter=adapter, key=key, runtime=runtime)
    apart = load_masks(tracking.fetch(runtime, excluded))
    make = partial(extract_masks, excluded=apart)
    return _logged(make, config, "disjoint-mask", adapter=adapter, key=key, runtime=runtime)


def draw_mask(config: RandomMaskConfig, *, adapter: Handle, key: str, runtime: Runtime) -> Handle:
    """A random mask for an adapter of `adapter`'s shapes."""
    return _logged(draw_masks, config, "random-mask", adapter=adapter, key=key, runtime=runtime)


def _logged(
    make: Callable[..., dict[str, Tensor]], config: Any, kind: str, *, adapter: Handle, key: str, runtime: Runtime
) -> Handle:
    name = f"{kind}-{adapter.config['domain']}-seed{adapter.config['seed']}{suffix(config.variant)}"
    params = {**asdict(config), "domain": adapter.config["domain"], "seed": adapter.config["seed"]}
    tags = {"lori.role": "mask", "lori.domain": adapter.config["domain"], "lori.seed": str(adapter.config["seed"])}
    with (
        tracking.logged_run(runtime, key, name, tags=tags, params=params) as run_id,
        tempfile.TemporaryDirectory() as scratch,
    ):
        masks = make(tracking.fetch(runtime, adapter), config)
        save_masks(masks, Path(scratch))
        uri, sha256 = tracking.log_model(runtime, run_id, key, Path(scratch), kind="mask", name=name, params=params)
        tracking.link_inputs(runtime, run_id, [adapter])
        metrics = {"num_kept": float(num_kept(masks)), "num_entries": float(sum(m.numel() for m in masks.values()))}
        tracking.log_metrics(runtime, run_id, metrics)
        handle = Handle("mask", key, name, run_id, uri, sha256, metrics, params)
        made_of = adapter.config
        entry = Entry(
            base_model=made_of["base_model"],
            rank=made_of["rank"],
            method=f"{made_of['method']}-{kind}",
            domain=made_of["domain"],
            seed=made_of["seed"],
            variant=config.variant,
        )
        register_model(handle, entry, runtime)
    return handle
