"""Base models: rows for the scale model and the paper's, and any other causal LM by its folder or hub id."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed import DistributedConfig

from lori.architectures import architecture
from lori.base_files import BaseUnavailable as BaseUnavailable
from lori.base_files import check_weights, fetch_small_files, fingerprint

SCALE_MODEL_DIR = Path(__file__).parent / "scale_model"
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class BaseModel:
    """Where the weights lie, and what LoRI needs to know of them.

    `source` is a folder or a hub id, `revision` the hub's commit; None for a folder, whose files have digests.
    `suite` names the world that its domains are drawn from; `projections` are the linears that get an adapter, and
    `dtype` is the weights' while an adapter trains on them.
    """

    source: str
    revision: str | None
    suite: str
    projections: tuple[str, ...]
    dtype: str


def _paper_base(source: str, revision: str | None, projections: tuple[str, ...] = LLAMA_PROJECTIONS) -> BaseModel:
    return BaseModel(source, revision, suite="paper", projections=projections, dtype="bfloat16")


BASE_MODELS = {
    "scale": BaseModel(str(SCALE_MODEL_DIR), None, "miniature", projections=LLAMA_PROJECTIONS, dtype="float32"),
    "llama-3-8b": _paper_base("meta-llama/Meta-Llama-3-8B", "8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"),
    "mistral-7b": _paper_base("mistralai/Mistral-7B-v0.1", "27d67f1b5f57dc0953326b2601d68371d40ea8da"),
}


def split_base(name_or_path: str) -> tuple[str, str | None]:
    """What a user calls a base model, as its name and the folder that it is in; None for a row and for the hub.

    A row of `BASE_MODELS` wins over a folder, and a folder with a config.json over a hub id.

    Raises:
        ValueError: if the folder's name holds an @, which separates name and revision, or is that of a row.
    """
    folder = Path(os.path.abspath(Path(name_or_path).expanduser()))
    if name_or_path in BASE_MODELS or not (folder / "config.json").is_file():
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
    return _paper_base(str(folder), None, architecture(folder).projections)


def _revision(row: BaseModel) -> str:
    """The hub's commit, or 12 hex digits that stand for the weights and the tokenizer in a folder."""
    if row.revision:
        return row.revision
    if row != BASE_MODELS["scale"]:
        return fingerprint(Path(row.source))
    digests = json.loads((Path(row.source) / "recipe.json").read_text())["sha256"]
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


def check_base(name: str, models_dir: str | None = None) -> None:
    """Whether the base model can be loaded and trained, as far as config, tokenizer and the names of its files tell.

    Raises:
        ValueError: as `base_model`; if its weights are not whole, or not in safetensors; if its tokenizer has no end
            token, or tokens that the model has no embedding of.
        BaseUnavailable: as `base_model`.
    """
    row = base_model(name, models_dir)
    folder = _small_files(row)
    _check_tokenizer(load_tokenizer(name, models_dir), row.source, architecture(folder).num_embeddings)
    check_weights(folder, row.source, row.revision)


def config_of(name: str, models_dir: str | None = None) -> PreTrainedConfig:
    """The base model's configuration, from which its shapes follow without its weights.

    Raises:
        ValueError, BaseUnavailable: as `base_model`.
    """
    config = AutoConfig.from_pretrained(_small_files(base_model(name, models_dir)), trust_remote_code=False)
    config.name_or_path = name
    return config


def context_of(config: PreTrainedConfig) -> int | None:
    """How many tokens the model can read; GPT-2's n_positions goes by this name, too. None is no limit (ALiBi)."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """As the paper trains; and what dropout draws would depend on how a batch is cut up."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and name.endswith(("dropout", "pdrop", "layerdrop")):
            setattr(config, name, 0.0)
    return config


def check_device(device: str, gpu: str | None) -> None:
    """Whether `device`, `auto` or torch's name of one, is there; if a `gpu` is to compute, whether there is any.

    Raises:
        ValueError: if not.
    """
    if device != "auto" and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"LORI_DEVICE={device!r} is no device: auto, cpu, cuda or cuda:0.")
    needs_gpu = device.startswith("cuda") or gpu not in (None, "cpu")
    if needs_gpu and (device == "cpu" or not torch.cuda.is_available()):
        raise ValueError(
            f"There is no GPU here for LORI_DEVICE={device} and gpu={gpu}: see whether torch is a CUDA build, or leave"
            " both out to compute on the CPU."
        )


def _small_files(row: BaseModel) -> Path:
    return fetch_small_files(row.source, row.revision) if row.revision else Path(row.source)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str, num_embeddings: int) -> None:
    used = (*pad_and_eos(tokenizer), tokenizer.bos_token_id)
    added = tokenizer.added_tokens_decoder.items()
    unused = {index for index, token in added if token.special and index not in used}  # Gemma-3's image token
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= num_embeddings and i not in unused}
    if beyond:
        listed = ", ".join(f"{token!r} ({index})" for index, token in sorted(beyond.items())[:3])
        raise ValueError(
            f"The tokenizer of {source} has tokens beyond the model's {num_embeddings} embeddings: {listed}. None are"
            " added here: take the tokenizer that the model was trained with."
        )


def load_base(
    name: str,
    device: str = "cpu",
    *,
    num_shards: int = 1,
    models_dir: str | None = None,
    dtype: str = "float32",
) -> PreTrainedModel:
    """The base model in eval mode, with nothing trainable; `device` `auto` is the GPU where there is one.

    `num_shards` processes under torchrun each hold a share of the weights (FSDP2): for bases that don't fit one GPU.

    Raises:
        ValueError: as `base_model`; for an unknown dtype, or weights that are not in safetensors or not whole.
        BaseUnavailable: as `base_model`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)} (lori/models.py).")
    row = base_model(name, models_dir)
    check_weights(_small_files(row), row.source, row.revision)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)  # the order of sums, and so the last bits, depends on how many there are
    place = (
        {"distributed_config": DistributedConfig(fsdp_size=num_shards)} if num_shards > 1 else {"device_map": device}
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        row.source,
        revision=row.revision,
        config=_without_dropout(config_of(name, models_dir)),
        dtype=DTYPES[dtype],
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **place,
    )
    model, found = loaded
    if found["missing_keys"]:  # transformers draws them at random
        raise ValueError(f"The weights of {row.source} lack {', '.join(sorted(found['missing_keys'])[:3])}.")
    return model.requires_grad_(False).eval()


def load_tokenizer(name: str, models_dir: str | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer; prompts are padded on the left, as generation needs it.

    Raises:
        ValueError: as `base_model`, or if there is none that transformers can read.
        BaseUnavailable: as `base_model`.
    """
    row = base_model(name, models_dir)
    try:
        return AutoTokenizer.from_pretrained(_small_files(row), padding_side="left", trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ValueError(f"{row.source} has no tokenizer that transformers can read: {error}") from error


def pad_and_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the padding and the end token. Without a padding token it is the end token: padding is masked anyway.

    Raises:
        ValueError: if the tokenizer has no end token, with which every response ends.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError(f"The tokenizer {tokenizer.name_or_path!r} has no end token: set tokenizer.eos_token.")
    return pad if isinstance(pad, int) else eos, eos
