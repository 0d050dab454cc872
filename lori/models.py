"""Base models: one row each, and how to load one."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed import DistributedConfig

SCALE_MODEL_DIR = Path(__file__).parent / "scale_model"
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class BaseModel:
    """Where the weights lie, and what LoRI needs to know of them.

    `source` is a folder or a hub id, `revision` the hub's commit; None for the scale model, whose recipe has digests.
    `suite` names the world that its domains are drawn from; `projections` are the linears that get an adapter.
    """

    source: str
    revision: str | None
    suite: str
    projections: tuple[str, ...]


BASE_MODELS = {"scale": BaseModel(str(SCALE_MODEL_DIR), None, suite="miniature", projections=LLAMA_PROJECTIONS)}


def base_model(identity: str) -> BaseModel:
    """The row of `BASE_MODELS` for `name` or `name@revision`.

    Raises:
        ValueError: if no row has that name, or the row has another revision than the one asked for.
    """
    name, _, revision = identity.partition("@")
    if name not in BASE_MODELS:
        raise ValueError(f"Unknown base model {name!r}. Known: {', '.join(BASE_MODELS)} (lori/models.py).")
    if revision not in ("", _revision(BASE_MODELS[name])):
        raise ValueError(f"Base model {name!r} is at another revision here than {revision}: check that one out.")
    return BASE_MODELS[name]


def _revision(row: BaseModel) -> str:
    """The hub's commit, or 12 hex digits that stand for the shipped weights and tokenizer."""
    if row.revision:
        return row.revision
    digests = json.loads((Path(row.source) / "recipe.json").read_text())["sha256"]
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]


def identity(name: str) -> str:
    """`name@revision`: what a config calls a base model, so that other weights are another key."""
    return f"{name}@{_revision(base_model(name))}"


def load_base(name: str, device: str = "cpu", *, num_shards: int = 1) -> PreTrainedModel:
    """The base model in fp32, in eval mode, with nothing trainable.

    `num_shards` processes under torchrun each hold a share of the weights (FSDP2): for bases that don't fit one GPU.
    """
    if device == "cpu":
        torch.set_num_threads(1)  # the order of sums, and so the last bits, depends on how many there are
    row = base_model(name)
    place = (
        {"distributed_config": DistributedConfig(fsdp_size=num_shards)} if num_shards > 1 else {"device_map": device}
    )
    model = AutoModelForCausalLM.from_pretrained(row.source, revision=row.revision, dtype=torch.float32, **place)
    return model.requires_grad_(False).eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The base model's tokenizer; prompts are padded on the left, as generation needs it."""
    row = base_model(name)
    return AutoTokenizer.from_pretrained(row.source, revision=row.revision, padding_side="left")


def pad_and_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the padding and the end token. Without a padding token it is the end token: padding is masked anyway.

    Raises:
        ValueError: if the tokenizer has no end token, with which every response ends.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError(f"The tokenizer {tokenizer.name_or_path!r} has no end token: set tokenizer.eos_token.")
    return pad if isinstance(pad, int) else eos, eos
