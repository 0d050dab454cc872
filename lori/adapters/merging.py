"""Adapters of several domains into one, from their files (paper, section 3.3).

PEFT's `add_weighted_adapter` (0.21.2) is what the authors call; from files, the base model is never loaded, and what
is merged is one module at a time. With s = alpha / rank:

    concat      b @ a = Σ wᵢ sᵢ bᵢ aᵢ, exactly; the ranks add up
    svd         the best approximation of the same sum at the largest rank of the adapters
    the others  merge A and B apart, each with √(w s), so that b @ a also holds every cross term bᵢ @ aⱼ

They prune (magnitude, ties, dare) A's and B's apart too. Of one adapter PEFT makes a linear merge whatever is asked
for; here one adapter is pruned like several. Methods without low-rank factors (`full`, `dora`) are merged on their
dense updates, where concat and linear are one.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils.merge_utils import task_arithmetic
from torch import Tensor

from lori.adapters.attach import apply_adapter
from lori.adapters.checked_files import written_whole
from lori.adapters.merge_inputs import A, B, Pair, Part, check_directories, factors_of, norm_of, shapes_of
from lori.adapters.peft_files import LORA_A, PREFIX, check_digests, open_adapter, write_adapter
from lori.adapters.peft_settings import SETTINGS_FILE, read_settings
from lori.base_models.loading import load_base
from lori.base_models.records import BaseModel
from lori.base_models.resolve import base_model
from lori.choices.merge_methods import MERGE_METHODS, check_merge_config
from lori.config import MergeConfig


def weighted_sum(tensors: list[Tensor], weights: Tensor, density: float) -> Tensor:  # noqa: ARG001
    """Σ wᵢ tᵢ."""
    return task_arithmetic(tensors, weights)


def concatenate(scaled: Sequence[float], pairs: Sequence[Pair], rank: int) -> Pair:  # noqa: ARG001
    """[w₁s₁A₁; w₂s₂A₂; …] and [B₁ B₂ …]: b @ a is Σ wᵢ sᵢ Bᵢ Aᵢ."""
    a = torch.cat([weight * a for weight, (a, _) in zip(scaled, pairs, strict=True)], dim=0)
    return a, torch.cat([b for _, b in pairs], dim=1)


def truncated_svd(scaled: Sequence[float], pairs: Sequence[Pair], rank: int) -> Pair:
    """The truncated SVD of Σ wᵢ sᵢ Bᵢ Aᵢ without that matrix: QR of the stacked factors, SVD of the small core.

    As in PEFT's "svd", the singular values are in B. PEFT decomposes the dense sum, 4 s for one matrix of 1024 × 4096.
    """
    a, b = concatenate(scaled, [(a.double(), b.double()) for a, b in pairs], rank)
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, singular, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return (v[:rank] @ q_a.T).float(), (q_b @ (u[:, :rank] * singular[:rank])).float()


def merge(
    adapter_dirs: Sequence[str | Path], config: MergeConfig, out: str | Path, *, models_dir: str | None = None
) -> None:
    """Write the merge of `adapter_dirs` to `out`: a PEFT directory, or a whole model for methods without factors.

    A merge of factors is in fp32 at scaling 1, with the other settings of the first adapter, and has each module that
    any adapter has. Embeddings in an adapter's file are left out: PEFT copies the base model's there when it was given
    a <PAD> token, as the authors do. Methods without factors need the base's weights: a base in a folder is looked for
    in `models_dir`.

    Raises:
        ValueError: as `check_merge_config`; for adapters of different base models, damaged ones, or ones that are more
            than their factors; for different ranks, which only concat and svd merge. `out` stays as it was.
    """
    directories, out = [Path(directory) for directory in adapter_dirs], Path(out)
    check_merge_config(config, len(directories))
    check_directories(directories, config.base_model)
    without = [str(directory) for directory in directories if not _has_factors(directory)]
    if without and MERGE_METHODS[config.method].tensors is None:
        raise ValueError(
            f"{config.method} needs the low-rank factors that {', '.join(without)} lacks (a full or DoRA model, whose"
            " dense update has no rank to keep): merge with concat or linear."
        )
    if without:
        _merge_dense(directories, config, out, base_model(config.base_model, models_dir))
    else:
        _merge_factors(directories, config, out)


def _has_factors(directory: Path) -> bool:
    return (directory / SETTINGS_FILE).exists() and not read_settings(directory).get("use_dora")


def _seeded(config: MergeConfig, name: str, tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The merge of one tensor; dare's draws depend on the seed and the tensor's name, not on the order of files."""
    function = MERGE_METHODS[config.method].tensors
    assert function is not None
    combine = resolve_name(function)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.Random(f"{config.seed}/{name}").getrandbits(63))
        return combine(list(tensors), weights, config.density)


def _norm_scales(norms: Sequence[float], adapter_dirs: Sequence[Path]) -> list[float]:
    """What brings each update to the mean of all norms.

    Raises:
        ValueError: for an update of zero, which no factor can bring there.
    """
    for norm, directory in zip(norms, adapter_dirs, strict=True):
        if norm == 0:
            raise ValueError(f"The update of {directory} is zero, so no norm can be matched: leave the adapter out.")
    return [sum(norms) / len(norms) / norm for norm in norms]


def _merge_factors(adapter_dirs: Sequence[Path], config: MergeConfig, out: Path) -> None:
    with ExitStack() as stack:
        adapters = [stack.enter_context(open_adapter(directory)) for directory in adapter_dirs]
        shapes = [shapes_of(adapter) for adapter in adapters]
        with ThreadPoolExecutor(max_workers=2) as pool:  # hashing lets other threads run
            list(pool.map(check_digests, adapters))
        parts = [Part(*each) for each in zip(adapters, shapes, config.weights, strict=True)]
        modules = _check_parts(parts, config)
        if config.match_norms:
            scales = _norm_scales([norm_of(part) for part in parts], adapter_dirs)
            parts = [replace(part, norm_scale=scale) for part, scale in zip(parts, scales, strict=True)]
        rank = (sum if config.method == "concat" else max)(part.rank for part in parts)
        places = {}
        for module, (d_out, d_in) in modules.items():
            places[f"{PREFIX}{module}{A}"] = torch.empty(rank, d_in, device="meta")
            places[f"{PREFIX}{module}{B}"] = torch.empty(d_out, rank, device="meta")
        stream = _merged(parts, config, list(modules), rank)
        write_adapter(out, places, _settings(parts, list(modules), rank), {"merged": asdict(config)}, stream)


def _check_parts(parts: Sequence[Part], config: MergeConfig) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of every module that a part has, in the order of the names in the file."""
    ranks = [part.rank for part in parts]
    modules = {}
    for module in sorted({name for part in parts for name in part.shapes}, key=lambda name: name + LORA_A):
        having = [part for part in parts if module in part.shapes]
        first = having[0].shapes[module]
        for part in having:
            d_out, rank, d_in = part.shapes[module]
            if (d_out, d_in) != (first[0], first[2]):
                raise ValueError(
                    f"{part.adapter.directory} was made for another base model than {having[0].adapter.directory}:"
                    f" {module} is {d_out} × {d_in} there and {first[0]} × {first[2]} here."
                )
            if MERGE_METHODS[config.method].pairs is None and (rank != first[1] or len(set(ranks)) > 1):
                raise ValueError(
                    f"Only concat and svd merge adapters of different ranks {ranks}: {config.method} sums their"
                    f" factors, and those of {module} have ranks {[p.shapes[module][1] for p in having]}."
                )
        modules[module] = (first[0], first[2])
    return modules


def _merged(parts: Sequence[Part], config: MergeConfig, modules: Sequence[str], rank: int) -> Iterator[Tensor]:
    """A and B of each module in turn, filled up with zeros to `rank`."""
    function = MERGE_METHODS[config.method].pairs
    pairs_of = resolve_name(function) if function else None
    for module in modules:
        having = [part for part in parts if module in part.shapes]
        scaled = [part.weight * part.adapter.scaling(module) for part in having]
        pairs = [factors_of(part, module) for part in having]
        a, b = pairs_of(scaled, pairs, rank) if pairs_of else _merge_apart(config, module, scaled, pairs)
        missing = rank - a.shape[0]
        yield F.pad(a, (0, 0, 0, missing)) if missing else a
        yield F.pad(b, (0, missing)) if missing else b


def _merge_apart(config: MergeConfig, module: str, scaled: Sequence[float], pairs: Sequence[Pair]) -> Pair:
    """A's and B's each with √|w s|; the sign goes on A alone, since on both it would cancel."""
    on_b = torch.tensor([math.sqrt(abs(weight)) for weight in scaled])
    on_a = on_b.copysign(torch.tensor(scaled))
    a = _seeded(config, f"{PREFIX}{module}{A}", [a for a, _ in pairs], on_a)
    return a, _seeded(config, f"{PREFIX}{module}{B}", [b for _, b in pairs], on_b)


def _settings(parts: Sequence[Part], modules: Sequence[str], rank: int) -> dict[str, Any]:
    """The first adapter's, but with the scaling in the factors, and for the modules that there are now."""
    settings = [part.adapter.settings for part in parts]
    restricted = any(s.get("layers_to_transform") is not None or s.get("exclude_modules") for s in settings)
    named = [s["target_modules"] for s in settings if isinstance(s["target_modules"], list)]
    short = len(named) == len(settings) and not restricted
    return {
        **settings[0],
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted({name for names in named for name in names}) if short else sorted(modules),
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
    }


def _merge_dense(adapter_dirs: Sequence[Path], config: MergeConfig, out: Path, base: BaseModel) -> None:
    model = load_base(base)
    origin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    updates = [_dense_update(directory, base, origin) for directory in adapter_dirs]
    if config.match_norms:
        norms = [math.sqrt(sum(float(t.double().square().sum()) for t in update.values())) for update in updates]
        scales = _norm_scales(norms, adapter_dirs)
        updates = [{n: scale * t for n, t in update.items()} for scale, update in zip(scales, updates, strict=True)]
    weights = torch.tensor(config.weights)
    merged = {
        name: tensor + _seeded(config, name, [update[name] for update in updates], weights)
        for name, tensor in origin.items()
    }
    model.load_state_dict(merged)
    with written_whole(out) as partial:
        model.save_pretrained(str(partial))


def _dense_update(directory: Path, base: BaseModel, origin: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a full or DoRA model adds to each tensor of its base.

    Raises:
        ValueError: if its tensors are not those of the base, or not finite.
    """
    adapted = apply_adapter(load_base(base), directory).state_dict()
    if {name: t.shape for name, t in adapted.items()} != {name: t.shape for name, t in origin.items()}:
        raise ValueError(f"{directory} was made for another base model than {base.identity}: its tensors differ.")
    for name, tensor in adapted.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{directory}: {name} has NaN or infinite entries. Train it again.")
    return {name: adapted[name] - tensor for name, tensor in origin.items()}
