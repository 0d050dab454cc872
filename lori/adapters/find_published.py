"""Adapters that others trained, from the hub or a folder: the authors' `tomg-group-umd/LoRI-*` and any PEFT LoRA.

The authors' repositories hold a PEFT adapter and, those of LoRI-D, masks as `masks/<sparsity>_mask.pt`.
"""

import re
from pathlib import Path

from lori.adapters.peft_settings import SETTINGS_FILE, TENSORS_FILE, read_settings
from lori.base_models.hub_files import digest_of, fetch
from lori.base_models.resolve import BASE_MODELS
from lori.config import PublishedConfig

PATTERNS = [SETTINGS_FILE, TENSORS_FILE, "masks/*_mask.pt"]
AUTHORS_NAME = re.compile(r"(LoRI-[DS])_(\w+?)_(llama3|mistral7b)_rank_\d+")
AUTHORS_BASES = {"llama3": "llama-3-8b", "mistral7b": "mistral-7b"}


def find_published(name: str, adapters_dir: str | None, base: str) -> PublishedConfig:
    """What identifies an adapter: a folder's name and the digest of its files, or a hub id and its commit.

    Raises:
        ValueError: if there is none, if it holds no safetensors, or if it is another base's.
        BaseUnavailable: if the hub isn't reached, or lets nobody in without a token.
    """
    folder = files_of(name, "main", adapters_dir)
    for file in (SETTINGS_FILE, TENSORS_FILE):
        if not (folder / file).is_file():
            raise ValueError(f"{name} has no {file}: only PEFT's LoRA adapters in safetensors are read.")
    _check_base(name, folder, base)
    revision = folder.name if adapters_dir is None else digest_of(present(folder))
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


def present(folder: Path) -> list[Path]:
    """The files in `folder` that are the adapter's."""
    return [path for pattern in PATTERNS for path in folder.glob(pattern)]


def files_of(name: str, revision: str, adapters_dir: str | None) -> Path:
    """The folder that the adapter's files are in; those of the hub are fetched."""
    if adapters_dir is not None:
        return Path(adapters_dir, name)
    return fetch(name, revision, PATTERNS)


def method_and_domain(name: str) -> tuple[str, str]:
    """What the authors' names say: `…/LoRI-S_code_llama3_rank_32` is lori-s on code. Others are their own method."""
    found = AUTHORS_NAME.search(name)
    return (found[1].lower(), found[2]) if found else (name.rpartition("/")[2], "")
