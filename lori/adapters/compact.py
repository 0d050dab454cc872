"""One small file for an adapter of LoRI: what its A is drawn from, which entries of B are kept, and their values.

A frozen A is a function of `a_key`, and B is zero outside its mask: for Llama-3-8B at r = 32 and sparsity 0.9 that is
14.3 MB in bf16 instead of PEFT's 335.5. The PEFT directory comes back bit for bit (bf16: with B rounded once;
a −0 outside the mask as 0).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lori.adapters.checked_files import (
    digest,
    is_first_process,
    read_checked,
    wait_for_all,
    write_checked,
    written_whole,
)
from lori.adapters.layer import projection_a
from lori.adapters.masks import MASK_FILE, check_masks, load_masks, pack, save_masks, unpack
from lori.adapters.peft_files import PREFIX, AdapterFile, check_digests, open_adapter, write_adapter

FORMAT = "lori-compact/1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save_compact(adapter_dir: str | Path, path: str | Path, *, dtype: str) -> None:
    """Write the adapter of LoRI in `adapter_dir` as one file, its values as float32 (exact) or bfloat16 (rounded).

    The mask is the lori_mask.safetensors beside the adapter (LoRI-S); without one, all of B are values (LoRI-D).

    Raises:
        ValueError: for another dtype, if A is not the one of its seed, if B has non-zeros outside the mask, or if the
            adapter was changed after it was saved.
    """
    adapter_dir, path = Path(adapter_dir), Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)} (lori/adapters/compact.py).")
    is_sparse = (adapter_dir / MASK_FILE).exists()
    with open_adapter(adapter_dir) as adapter:
        header = {"format": FORMAT, "settings": adapter.settings, "metadata": adapter.metadata}
        header["a_sha256"] = digest(_drawn_again(adapter))
        if adapter.extras:
            raise ValueError(f"{adapter_dir} holds {adapter.extras[0]}, no factor of LoRI's: it would be lost.")
        check_digests(adapter)
        table = [[name, *adapter.b(name).shape, adapter.a(name).shape[1]] for name in adapter.modules]
        masks = load_masks(adapter_dir) if is_sparse else _masks(None, table)
        check_masks(masks, {name: (d_out, rank) for name, d_out, rank, _ in table})
        kept = [_kept(adapter, row[0], masks[row[0]]) for row in table]
    header["modules"] = [[*row, len(values)] for row, values in zip(table, kept, strict=True)]
    tensors = {"values": torch.cat(kept).to(DTYPES[dtype])}
    if is_sparse:
        tensors["mask"] = torch.cat([pack(masks[row[0]]) for row in table])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        write_checked(partial, tensors, header)
        if is_first_process():
            os.replace(partial, path)
        wait_for_all()
    finally:
        partial.unlink(missing_ok=True)


def _drawn_again(adapter: AdapterFile) -> Iterator[Tensor]:
    """Every A from the adapter's `a_key`, found equal to the one in its file."""
    key = adapter.metadata.get("a_key")
    if key is None:
        raise ValueError(
            f"{adapter.directory} has no a_key in its metadata (A was trained, or another tool's): it can't be drawn"
            " again. Keep the PEFT directory."
        )
    for module in adapter.modules:
        stored = adapter.a(module)
        drawn = projection_a(key, module, (stored.shape[0], stored.shape[1]))
        if stored.dtype != drawn.dtype or not torch.equal(stored, drawn):
            raise ValueError(
                f"{adapter.directory}: A of {module} is not what a_key {key!r} gives (trained, edited or converted):"
                " it can't be drawn again. Keep the PEFT directory."
            )
        yield drawn


def _kept(adapter: AdapterFile, module: str, mask: Tensor) -> Float[Tensor, " kept"]:
    b = adapter.b(module)
    if b.dtype != torch.float32:
        raise ValueError(f"{adapter.directory}: B of {module} is {b.dtype}, not the float32 that LoRI saves.")
    if b.masked_fill(mask, 0).any():
        raise ValueError(
            f"{adapter.directory}: B of {module} has non-zeros outside the mask, as continual adapters have (the first"
            f" domain's values): they would be lost. Without {MASK_FILE} beside it all of B is stored."
        )
    return b[mask]


def expand_compact(path: str | Path, adapter_dir: str | Path) -> None:
    """Write the PEFT directory that `path` was made of, with its mask if it had one, as a new or empty directory.

    Raises:
        ValueError: if `path` is damaged or no compact adapter, if `adapter_dir` holds files, or if this machine draws
            another A than the one that B was trained with.
    """
    path, adapter_dir = Path(path), Path(adapter_dir)
    if adapter_dir.exists() and any(adapter_dir.iterdir()):
        raise ValueError(f"{adapter_dir} holds files already: expand into a new directory.")
    header, tensors = read_checked(path, FORMAT)
    metadata, table = header["metadata"], header["modules"]
    drawn = {name: projection_a(metadata["a_key"], name, (rank, d_in)) for name, _, rank, d_in, _ in table}
    if digest(drawn.values()) != header["a_sha256"]:
        raise ValueError(f"{path}: A as this machine draws it has other bits than the one that B was trained with.")
    masks = _masks(tensors.get("mask"), table)
    parts = tensors["values"].float().split([row[-1] for row in table])
    bs = {}
    for (name, mask), part in zip(masks.items(), parts, strict=True):
        bs[name] = torch.zeros(mask.shape).masked_scatter_(mask, part)
    if "b_sha256" in metadata:
        metadata["b_sha256"] = digest(bs.values())  # another one if the values were rounded
    factors = {f"{PREFIX}{name}.lora_A.weight": a for name, a in drawn.items()}
    factors |= {f"{PREFIX}{name}.lora_B.weight": b for name, b in bs.items()}
    with written_whole(adapter_dir) as partial:  # adapter and mask together or not at all
        write_adapter(partial, factors, header["settings"], metadata)
        if "mask" in tensors:
            save_masks(masks, partial)


def _masks(bits: Tensor | None, table: list[list]) -> dict[str, Tensor]:
    if bits is None:
        return {name: torch.ones(d_out, rank, dtype=torch.bool) for name, d_out, rank, *_ in table}
    parts = bits.split([(d_out * rank + 7) // 8 for _, d_out, rank, _, _ in table])  # each module starts a byte
    return {row[0]: unpack(part, (row[1], row[2])) for row, part in zip(table, parts, strict=True)}
