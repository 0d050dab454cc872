"""Base models: rows for the scale model and the paper's, and any other causal LM by its folder or hub id."""

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

from lori.base_models.architecture import architecture
from lori.base_models.hub_files import BaseUnavailable as BaseUnavailable
from lori.base_models.hub_files import fetch_small_files
from lori.base_models.records import Architecture, BaseModel

SCALE_MODEL_DIR, SCALE_SUITE = Path(__file__).parents[1] / "scale_model", "miniature"
RECIPE_FILE = "recipe.json"  # beside a scale model: what it was made with
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def _paper_base(
    name: str, source: str, revision: str | None, projections: tuple[str, ...] = LLAMA_PROJECTIONS
) -> BaseModel:
    return BaseModel(name, source, revision, suite="paper", projections=projections, dtype="bfloat16")


def _shipped(name: str, folder: Path) -> BaseModel:
    digests = json.dumps(json.loads((folder / RECIPE_FILE).read_text())["sha256"], sort_keys=True)
    recorded = hashlib.sha256(digests.encode()).hexdigest()[:12]
    return BaseModel(name, str(folder), None, SCALE_SUITE, LLAMA_PROJECTIONS, "float32", recorded)


BASE_MODELS = {
    base.name: base
    for base in (
        _shipped("scale", SCALE_MODEL_DIR),
        _paper_base("llama-3-8b", "meta-llama/Meta-Llama-3-8B", "8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"),
        _paper_base("mistral-7b", "mistralai/Mistral-7B-v0.1", "27d67f1b5f57dc0953326b2601d68371d40ea8da"),
    )
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
        return _paper_base(name, name, folder.name, architecture(folder).projections)
    if row is None:
        raise ValueError(
            f"Unknown base model {name!r}. Known: {', '.join(BASE_MODELS)}, or any folder or hub id 'org/model' of a"
            " causal language model."
        )
    if revision and identity != row.identity:
        raise ValueError(f"Base model {name!r} is at another revision here than {revision}: check that one out.")
    return row


def _folder_row(name: str, models_dir: str | None) -> BaseModel | None:
    if models_dir is None or "/" in name or not (Path(models_dir, name) / "config.json").is_file():
        return None
    folder = Path(models_dir, name)
    row = _paper_base(name, str(folder), None, architecture(folder).projections)
    return replace(row, suite=SCALE_SUITE, dtype="float32") if _is_scale_model(folder) else row


def _is_scale_model(folder: Path) -> bool:
    """Whether `lori.scale_model.pretrain` made it: a file of that name may be anything else."""
    try:
        return json.loads((folder / RECIPE_FILE).read_text())["suite"] == SCALE_SUITE
    except (OSError, ValueError, LookupError, TypeError):
        return False


def architecture_of(base: BaseModel) -> Architecture:
    """The architecture of a base model: of a row as well, which does not say all of it.

    Raises:
        ValueError, BaseUnavailable: as `base_model`.
    """
    return architecture(base.folder)


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
