"""Base models and their tokenizers, in memory."""

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

from lori.base_models.hub_files import check_weights
from lori.base_models.records import BaseModel
from lori.base_models.resolve import architecture_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_base(base: BaseModel) -> None:
    """Whether the base model can be loaded and trained, as far as config, tokenizer and the names of its files tell.

    Raises:
        ValueError: if its weights are not whole, or not in safetensors; if its tokenizer has no end
            token, or tokens that the model has no embedding of.
        BaseUnavailable: if its files can't be fetched.
    """
    _check_tokenizer(load_tokenizer(base), base.source, architecture_of(base).num_embeddings)
    check_weights(base.folder, base.source, base.revision)


def config_of(base: BaseModel) -> PreTrainedConfig:
    """The base model's configuration, from which its shapes follow without its weights.

    Raises:
        BaseUnavailable: if it can't be fetched.
    """
    config = AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
    config.name_or_path = base.name
    return config


def _without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """As the paper trains; and what dropout draws would depend on how a batch is cut up."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and name.endswith(("dropout", "pdrop", "layerdrop")):
            setattr(config, name, 0.0)
    return config


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
    base: BaseModel,
    device: str = "cpu",
    *,
    num_shards: int = 1,
    dtype: str = "float32",
) -> PreTrainedModel:
    """The base model in eval mode, with nothing trainable; `device` `auto` is the GPU where there is one.

    `num_shards` processes under torchrun each hold a share of the weights (FSDP2): for bases that don't fit one GPU.

    Raises:
        ValueError: for an unknown dtype, or weights that are not in safetensors or not whole.
        BaseUnavailable: if its files can't be fetched.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)} (lori/base_models/loading.py).")
    check_weights(base.folder, base.source, base.revision)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)  # the order of sums, and so the last bits, depends on how many there are
    place = (
        {"distributed_config": DistributedConfig(fsdp_size=num_shards)} if num_shards > 1 else {"device_map": device}
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        base.source,
        revision=base.revision,
        config=_without_dropout(config_of(base)),
        dtype=DTYPES[dtype],
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **place,
    )
    model, found = loaded
    if found["missing_keys"]:  # transformers draws them at random
        raise ValueError(f"The weights of {base.source} lack {', '.join(sorted(found['missing_keys'])[:3])}.")
    return model.requires_grad_(False).eval()


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """The base model's tokenizer; prompts are padded on the left, as generation needs it.

    Raises:
        ValueError: if there is none that transformers can read.
        BaseUnavailable: if its files can't be fetched.
    """
    try:
        return AutoTokenizer.from_pretrained(base.folder, padding_side="left", trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ValueError(f"{base.source} has no tokenizer that transformers can read: {error}") from error


def pad_and_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the padding and the end token. Without a padding token it is the end token: padding is masked anyway.

    Raises:
        ValueError: if the tokenizer has no end token, with which every response ends.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError(f"The tokenizer {tokenizer.name_or_path!r} has no end token: set tokenizer.eos_token.")
    return pad if isinstance(pad, int) else eos, eos
