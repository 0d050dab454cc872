"""Sparse masks for LoRI-S from the magnitudes of LoRI-D's B (paper, section 3.2), from adapter files alone."""

import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lori.adapters.checked_files import read_checked, write_checked, written_whole
from lori.adapters.layer import projection_a
from lori.adapters.peft_files import check_digests, module_name, open_adapter
from lori.choices.scopes import SCOPES, check_mask_config
from lori.config import MaskConfig, RandomMaskConfig

MASK_FILE, FORMAT = "lori_mask.safetensors", "lori-mask/1"
NOT_FINITE = 0x7F80  # the upper half of an fp32 with all exponent bits: infinity, and every NaN above it


def extract_masks(
    adapter_dir: str | Path, config: MaskConfig, *, excluded: Mapping[str, Bool[Tensor, "_d_out _rank"]] | None = None
) -> dict[str, Bool[Tensor, "_d_out _rank"]]:
    """`magnitude_masks` of the B's in a PEFT directory; one of them is in memory at a time, its base model never.

    Entries of the masks `excluded` are passed over: as many others are kept in their place.

    Raises:
        ValueError: as `open_adapter`, `magnitude_masks` and `check_masks`; if too few others are there.
    """
    adapter_dir = Path(adapter_dir)
    with open_adapter(adapter_dir) as adapter:
        check_digests(adapter)
        if excluded is None:
            return _masks(adapter.modules, adapter.b, config)
        check_masks(excluded, {module: (len(adapter.b(module)), adapter.rank(module)) for module in adapter.modules})
        masks = _masks(adapter.modules, lambda module: adapter.b(module).masked_fill(excluded[module], 0.0), config)
    if any((mask & excluded[module]).any() for module, mask in masks.items()):
        raise ValueError(
            f"{adapter_dir} has too few entries that train outside the other mask: take a higher sparsity than"
            f" {config.sparsity:g}."
        )
    return masks


def draw_masks(adapter_dir: Path, config: RandomMaskConfig) -> dict[str, Bool[Tensor, "_d_out _rank"]]:
    """`random_masks` for the modules of an adapter, of which the shapes alone are read.

    Raises:
        ValueError: as `open_adapter`.
    """
    with open_adapter(adapter_dir) as adapter:
        shapes = {module: (len(adapter.b(module)), adapter.rank(module)) for module in adapter.modules}
    return random_masks(shapes, config, seed=config.draw)


def magnitude_masks(
    bs: Mapping[str, Float[Tensor, "_d_out _rank"]], config: MaskConfig
) -> dict[str, Bool[Tensor, "_d_out _rank"]]:
    """True where B is among the `int((1 − sparsity) · N)` largest magnitudes of its group of N entries.

    Exactly that many are kept: ties at the threshold go to the earlier module and the lower index, where the authors'
    `>=` keeps them all (extract_mask.py), 0.4 % too many on a bf16 B.

    Raises:
        ValueError: if the sparsity leaves a group no entry at all, or if a B holds NaN or infinity.
    """
    return _masks(list(bs), bs.__getitem__, config)


def random_masks(
    shapes: Mapping[str, tuple[int, int]], config: MaskConfig, *, seed: int | str
) -> dict[str, Bool[Tensor, "_d_out _rank"]]:
    """The control: as many entries of each group as `magnitude_masks` keeps, at random places.

    A function of its arguments alone, on every machine, as the frozen A's are. `shapes` are the B's (d_out, rank).
    """

    def scores(module: str) -> Tensor:
        # One column, so that the bound is 1 for every module: modules of another rank are as likely to be kept
        column = projection_a(f"random-mask/{seed}", module, (shapes[module][0] * shapes[module][1], 1))
        return column.view(shapes[module])

    return _masks(list(shapes), scores, config)


def _masks(modules: Sequence[str], read: Callable[[str], Tensor], config: MaskConfig) -> dict[str, Tensor]:
    group_of = SCOPES[check_mask_config(config).scope]
    groups: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        groups[group_of(module)].append(module)
    masks: dict[str, Tensor] = {}
    for group in groups.values():
        masks |= _largest(group, read, config.sparsity)
    return masks


def _largest(modules: Sequence[str], read: Callable[[str], Tensor], sparsity: float) -> dict[str, Tensor]:
    """The masks of one group, whose tensors are read three times and never held together."""
    threshold, num_ties = _threshold(modules, read, sparsity)
    masks = {}
    for module in modules:
        b = read(module)
        bits = _magnitude_bits(b)
        mask = bits > threshold
        if num_ties:
            ties = np.flatnonzero((bits == threshold).numpy())[:num_ties]
            mask.numpy()[ties] = True
            num_ties -= len(ties)
        masks[module] = mask.view(b.shape)
    return masks


def _threshold(modules: Sequence[str], read: Callable[[str], Tensor], sparsity: float) -> tuple[int, int]:
    """The bits of the smallest kept magnitude, and how many entries of just that magnitude are kept.

    Two counts, by the upper 16 bits and, within the bin found, by the lower 16: exact for any distribution, without a
    sort or a copy of the group.
    """
    upper_counts = torch.zeros(2**15, dtype=torch.int64)
    for module in modules:
        counts = torch.bincount(_magnitude_bits(read(module)).bitwise_right_shift_(16), minlength=2**15)
        if counts[NOT_FINITE:].any():
            raise ValueError(f"B of {module} holds NaN or infinity: train the adapter again at a lower learning rate.")
        upper_counts += counts
    num_entries = int(upper_counts.sum())
    num_kept = int((1 - sparsity) * num_entries)
    if num_kept == 0:
        raise ValueError(f"sparsity {sparsity} keeps none of the {num_entries} entries of a group.")
    upper, num_left = _bin_of(upper_counts, num_kept)
    lower_counts = np.zeros(2**16, dtype=np.int64)
    for module in modules:
        bits = _magnitude_bits(read(module)).numpy()  # numpy selects three times as fast as torch
        lower_counts += np.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=2**16)
    lower, num_ties = _bin_of(torch.from_numpy(lower_counts), num_left)
    return upper << 16 | lower, num_ties


def _magnitude_bits(b: Tensor) -> Int[Tensor, " entries"]:
    """The fp32 bits of abs(b), flat: as integers they are in the order of the magnitudes, denormals too."""
    return b.detach().float().contiguous().view(torch.int32).view(-1) & 0x7FFFFFFF


def _bin_of(counts: Int[Tensor, " bins"], num_kept: int) -> tuple[int, int]:
    """The bin of the `num_kept`-th entry from the top, and how many entries of that bin are still to be kept."""
    at_or_above = counts.flip(0).cumsum(0).flip(0)
    found = int((at_or_above >= num_kept).nonzero()[-1])
    return found, num_kept - int(at_or_above[found] - counts[found])


def check_masks(masks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Whether `masks` fit an adapter whose B's have these shapes, (d_out, rank) by module.

    Raises:
        ValueError: if modules are missing or too many, or if a shape differs.
    """
    if masks.keys() != shapes.keys():
        example = sorted(masks.keys() ^ shapes.keys())[0]
        where = "mask" if example in masks else "adapter"
        raise ValueError(
            f"The mask has {len(masks)} modules, the adapter {len(shapes)}: not of one adapter. Only the {where} has"
            f" {example}; extract the mask from an adapter of the same base model and projections."
        )
    for module, shape in shapes.items():
        if tuple(masks[module].shape) != tuple(shape):
            raise ValueError(
                f"The mask of {module} is {tuple(masks[module].shape)} for a B of {tuple(shape)}:"
                " made at another rank or for another base model."
            )


def pack(mask: Bool[Tensor, "_d_out _rank"]) -> UInt8[Tensor, " num_bytes"]:
    """Eight entries a byte, the lowest bit first; the last byte is filled up with zeros."""
    return torch.from_numpy(np.packbits(mask.numpy().ravel(), bitorder="little"))


def unpack(bits: UInt8[Tensor, " num_bytes"], shape: tuple[int, int]) -> Bool[Tensor, "_d_out _rank"]:
    """What was packed."""
    flags = np.unpackbits(bits.numpy(), bitorder="little", count=shape[0] * shape[1])
    return torch.from_numpy(flags.view(np.bool_)).view(shape)


def save_masks(masks: Mapping[str, Bool[Tensor, "_d_out _rank"]], directory: str | Path) -> None:
    """Write lori_mask.safetensors: packed bits, shapes and a checksum. An adapter in `directory` stays as it is."""
    directory = Path(directory)
    bits = {module: pack(mask) for module, mask in masks.items()}
    shapes = {module: list(mask.shape) for module, mask in masks.items()}
    with written_whole(directory) as partial:
        write_checked(partial / MASK_FILE, bits, {"format": FORMAT, "shapes": shapes, "num_kept": num_kept(masks)})


def load_masks(path: str | Path) -> dict[str, Bool[Tensor, "_d_out _rank"]]:
    """The masks in a directory (`save_masks`), or in a file of the authors' (`0.9_mask.pt`), by module.

    Raises:
        ValueError: if there are none, if the file is damaged or edited, or if reading it could run code.
    """
    path = Path(path)
    path = path / MASK_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} does not exist: save a mask of a LoRI-D adapter there first (save_masks).")
    return _load_authors_masks(path) if path.suffix == ".pt" else _load_packed_masks(path)


def _load_packed_masks(path: Path) -> dict[str, Tensor]:
    header, bits = read_checked(path, FORMAT)
    return {module: unpack(bits[module], (out, rank)) for module, (out, rank) in header["shapes"].items()}


def _load_authors_masks(path: Path) -> dict[str, Tensor]:
    """A pickled dict of bool tensors by parameter name, as extract_mask.py saves it; nothing else is unpickled."""
    try:
        masks = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is not read: it is damaged, or holds more than tensors, and unpickling that could run any code."
            " Download it again, or extract the mask from the adapter."
        ) from error
    entries = masks.values() if isinstance(masks, dict) else []
    if not entries or any(not isinstance(mask, Tensor) or mask.dtype != torch.bool for mask in entries):
        raise ValueError(f"{path} is not a mask of the authors': a dict of bool tensors by parameter name.")
    return {module_name(name): mask for name, mask in masks.items()}


def num_kept(masks: Mapping[str, Tensor]) -> int:
    """How many entries may train."""
    return sum(int(mask.count_nonzero()) for mask in masks.values())
