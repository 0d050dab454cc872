"""Base models: rows for the scale model and the paper's, and any other causal LM by its folder or hub id."""

import hashlib
import json
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from lori.base_models.architecture import architecture
from lori.base_models.hub_files import BaseUnavailable as BaseUnavailable
from lori.base_models.hub_files import fetch_small_files, fingerprint
from lori.base_models.records import Architecture, BaseModel

SCALE_MODEL_DIR, SCALE_SUITE = Path(__file__).parents[1] / "scale_model", "miniature"
RECIPE_FILE = "recipe.json"  # beside a scale model: what it was made with
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def _paper_base(source: str, revision: str | None, projections: tuple[str, ...] = LLAMA_PROJECTIONS) -> BaseModel:
    return BaseModel(source, revision, suite="paper", projections=projections, dtype="bfloat16")


BASE_MODELS = {
    "scale": BaseModel(str(SCALE_MODEL_DIR), None, SCALE_SUITE, projections=LLAMA_PROJECTIONS, dtype="float32"),
    "llama-3-8b": _paper_base("meta-llama/Meta-Llama-3-8B", "8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"),
    "mistral-7b": _paper_base("mistralai/Mistral-7B-v0.1", "27d67f1b5f57dc0953326b2601d68371d40ea8da"),
}


def split_base(name_or_path: str) -> tuple[str, str | None]:
    """What a user calls a base model, as its name and the folder that it is in; None for a row and for the hub.

    A row of `BASE_MODELS` wins over a folder, and a folder with a config.json over a hub id.

    Raises:
        ValueError: if the folder's name holds an @, which separates name and revision, or is that of a row.
    """
    if name_or_path in BASE_MODELS:
        return name_or_path, None
    folder = Path(os.path.abspath(Path(name_or_path).expanduser()))
    if not (folder / "config.json").is_file():
        return name_or_path, None
    if folder.name in BASE_MODELS:
        raise ValueError(f"{folder}: {folder.name} is the name of a row of BASE_MODELS already. Rename the folder.")
    if "@" in folder.name:
        raise ValueError(f"{folder}: a base model's name has no @, which is for its revision. Rename the folder.")
    return folder.name, str(folder.parent)


def base_model(identity: str, models_dir: str | None = None) -> BaseModel:
    """The base model called `name` or `name@revision`: a row of `BASE_MODELS`, a folder in `models_dir`, or a hub id.

    Without `models_dir` it may be a path, too. Of a hub id, config and tokenizer are fetched.

    Raises:
        ValueError: if there is none of that name, if it is at another revision here than the one asked for, or if it
            is no causal LM that can be adapted.
        BaseUnavailable: if the hub can't be reached, or lets nobody in without a token.
    """
    if models_dir is None:
        identity, models_dir = split_base(identity)
    name, _, revision = identity.partition("@")
    row = BASE_MODELS.get(name) or _folder_row(name, models_dir)
    if row is None and HUB_ID.fullmatch(name):
        folder = fetch_small_files(name, revision or "main")
        return _paper_base(name, folder.name, architecture(folder).projections)
    if row is None:
        raise ValueError(
            f"Unknown base model {name!r}. Known: {', '.join(BASE_MODELS)}, or any folder or hub id 'org/model' of a"
            " causal language model."
        )
    if revision and revision != _revision(row):
        raise ValueError(f"Base model {name!r} is at another revision here than {revision}: check that one out.")
    return row


def _folder_row(name: str, models_dir: str | None) -> BaseModel | None:
    if models_dir is None or "/" in name or not (Path(models_dir, name) / "config.json").is_file():
        return None
    folder = Path(models_dir, name)
    row = _paper_base(str(folder), None, architecture(folder).projections)
    return replace(row, suite=SCALE_SUITE, dtype="float32") if _is_scale_model(folder) else row


def _is_scale_model(folder: Path) -> bool:
    """Whether `lori.scale_model.pretrain` made it: a file of that name may be anything else."""
    try:
        return json.loads((folder / RECIPE_FILE).read_text())["suite"] == SCALE_SUITE
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _revision(row: BaseModel) -> str:
    """The hub's commit, or 12 hex digits that stand for the weights and the tokenizer in a folder."""
    if row.revision:
        return row.revision
    return _scale_revision() if row == BASE_MODELS["scale"] else fingerprint(Path(row.source))


@cache  # every config asks for it
def _scale_revision() -> str:
    digests = json.loads((SCALE_MODEL_DIR / RECIPE_FILE).read_text())["sha256"]
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]


def identity(name: str, models_dir: str | None = None) -> str:
    """`name@revision`: what a config calls a base model, so that other weights are another key.

    A folder's path is not in it: a copy elsewhere is the same base model.

    Raises:
        ValueError, BaseUnavailable: as `base_model`.
    """
    if models_dir is None:
        name, models_dir = split_base(name)
    return f"{name.partition('@')[0]}@{_revision(base_model(name, models_dir))}"


def architecture_of(name: str, models_dir: str | None = None) -> Architecture:
    """The architecture of a base model: of a row as well, which does not say all of it.

    Raises:
        ValueError, BaseUnavailable: as `base_model`.
    """
    return architecture(small_files(base_model(name, models_dir)))


def small_files(row: BaseModel) -> Path:
    """The folder with config and tokenizer; those of the hub are fetched."""
    return fetch_small_files(row.source, row.revision) if row.revision else Path(row.source)


def check_device(device: str, gpu: str | None) -> None:
    """Whether `device`, `auto` or torch's name of one, is there; if a `gpu` is to compute, whether there is any.

    Raises:
        ValueError: if not.
    """
    if device != "auto" and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"LORI_DEVICE={device!r} is no device: auto, cpu, cuda or cuda:0.")
    needs_gpu = device.startswith("cuda") or gpu not in (None, "cpu")
    if needs_gpu and (device == "cpu" or not _has_gpu()):
        raise ValueError(
            f"There is no GPU here for LORI_DEVICE={device} and gpu={gpu}: see whether torch is a CUDA build, or leave"
            " both out to compute on the CPU."
        )


def _has_gpu() -> bool:
    import torch  # where a GPU is asked for, and nowhere else

    return torch.cuda.is_available()
