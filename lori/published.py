"""Adapters that others trained, from the hub or a folder: the authors' `tomg-group-umd/LoRI-*` and any PEFT LoRA.

The authors' repositories hold a PEFT adapter and, those of LoRI-D, masks as `masks/<sparsity>_mask.pt`.
"""

import re
import shutil
from pathlib import Path

from lori.adapters import SETTINGS_FILE, TENSORS_FILE, AdapterFile, open_adapter, read_settings
from lori.base_files import digest_of, fetch
from lori.config import PublishedConfig
from lori.masks import check_masks, load_masks, num_kept, save_masks
from lori.models import BASE_MODELS
from lori.parts import shapes_of

PATTERNS = [SETTINGS_FILE, TENSORS_FILE, "masks/*_mask.pt"]
AUTHORS_NAME = re.compile(r"(LoRI-[DS])_(\w+?)_(llama3|mistral7b)_rank_\d+")
AUTHORS_BASES = {"llama3": "llama-3-8b", "mistral7b": "mistral-7b"}


def find_published(name: str, adapters_dir: str | None, base: str) -> PublishedConfig:
    """What identifies an adapter: a folder's name and the digest of its files, or a hub id and its commit.

    Raises:
        ValueError: if there is none, if it holds no safetensors, or if it is another base's.
        BaseUnavailable: if the hub isn't reached, or lets nobody in without a token.
    """
    folder = _files(name, "main", adapters_dir)
    for file in (SETTINGS_FILE, TENSORS_FILE):
        if not (folder / file).is_file():
            raise ValueError(f"{name} has no {file}: only PEFT's LoRA adapters in safetensors are read.")
    _check_base(name, folder, base)
    revision = folder.name if adapters_dir is None else digest_of(_present(folder))
    return PublishedConfig(name, revision, base)


def _check_base(name: str, folder: Path, base: str) -> None:
    """Bases of one size have modules of the same shapes, so that an adapter would load on another than its own."""
    given = base.partition("@")[0]
    source = BASE_MODELS[given].source if given in BASE_MODELS else given
    names = {given.rpartition("/")[2], source.rpartition("/")[2]}
    said = str(read_settings(folder).get("base_model_name_or_path") or "").partition("@")[0].rstrip("/")
    authors = AUTHORS_NAME.search(name)
    if said and said.rpartition("/")[2] not in names:
        raise ValueError(f"{name} was trained on {said}, as its {SETTINGS_FILE} says, and not on {given}.")
    if not said and authors and given in AUTHORS_BASES.values() and AUTHORS_BASES[authors[3]] != given:
        raise ValueError(f"{name} was trained on {AUTHORS_BASES[authors[3]]}, as its name says, and not on {given}.")


def _present(folder: Path) -> list[Path]:
    return [path for pattern in PATTERNS for path in folder.glob(pattern)]


def _files(name: str, revision: str, adapters_dir: str | None) -> Path:
    if adapters_dir is not None:
        return Path(adapters_dir, name)
    return fetch(name, revision, PATTERNS)


def method_and_domain(name: str) -> tuple[str, str]:
    """What the authors' names say: `…/LoRI-S_code_llama3_rank_32` is lori-s on code. Others are their own method."""
    found = AUTHORS_NAME.search(name)
    return (found[1].lower(), found[2]) if found else (name.rpartition("/")[2], "")


def copy_published(config: PublishedConfig, adapters_dir: str | None, out: Path) -> dict[str, float]:
    """Write the adapter's files to `out`, with the mask of sparsity 0.9 as ours if there is one; what they hold.

    Raises:
        ValueError: if the files are damaged, are no LoRA adapter, or others than `config` says; if a mask is of other
            B's; if reading the mask could run code.
    """
    folder = _files(config.name, config.revision, adapters_dir)
    if adapters_dir is not None and digest_of(_present(folder)) != config.revision:
        raise ValueError(f"{config.name} in {adapters_dir} is no longer the adapter that was asked for: start again.")
    with open_adapter(folder) as adapter:
        metrics = _contents(adapter)
        for file in (SETTINGS_FILE, TENSORS_FILE):
            shutil.copyfile(folder / file, out / file)
        mask_file = folder / "masks" / "0.9_mask.pt"
        if mask_file.is_file():
            masks = load_masks(mask_file)
            check_masks(masks, {module: shape[:2] for module, shape in shapes_of(adapter).items()})
            save_masks(masks, out)
            metrics["mask_kept"] = float(num_kept(masks))
    return metrics


def _contents(adapter: AdapterFile) -> dict[str, float]:
    """Entries of B, and how many of them are not zero: of LoRI-S, those that its mask let train."""
    num_entries = sum(d_out * rank for d_out, rank, _ in shapes_of(adapter).values())
    num_nonzero = sum(int(adapter.b(module).count_nonzero()) for module in adapter.modules)
    return {"num_entries": float(num_entries), "num_trainable": float(num_nonzero)}
