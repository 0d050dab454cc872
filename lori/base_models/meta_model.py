"""A base model without weights, from its config.json: which of its linears get an adapter, and its sizes."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from lori.base_models.records import Architecture

LEAST_SHARE = 0.5  # of the layers' entries in linears: 1 without norms in a dense model, a few percent with experts


def read_architecture(path: Path) -> Architecture:
    """The architecture of a config.json; it raises what `architecture` does."""
    config = _config(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        num_parameters, projections = model.num_parameters(), _projections(model, path)
        try:
            inject_adapter_in_model(LoraConfig(r=1, target_modules=list(projections)), model)
        except ValueError as error:
            raise ValueError(f"{path}: PEFT can't adapt this architecture. {error}") from error
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    return Architecture(projections, len(embedding), num_parameters, context_of(config))


def _config(path: Path) -> PreTrainedConfig:
    try:
        written = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): download it again.") from error
    name = written.get("model_type")
    if name not in CONFIG_MAPPING:
        needs = "needs code of its own, which is never run" if "auto_map" in written else "is unknown to transformers"
        raise ValueError(f"{path}: the architecture {name!r} {needs}. Choose a base model that transformers knows.")
    if "quantization_config" in written:
        raise ValueError(f"{path}: these weights are quantised, and merging needs whole ones: name the original.")
    config = AutoConfig.from_pretrained(path.parent, trust_remote_code=False)
    if not _is_causal(config, written):
        raise ValueError(
            f"{path} is of no causal language model but of {', '.join(written.get('architectures') or [name])}:"
            " choose one that writes from left to right, such as Llama."
        )
    return config


def _is_causal(config: PreTrainedConfig, written: Mapping[str, Any]) -> bool:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # Encoders have a causal class, too: what was saved decides. Of MPT the name's case has changed since
    saved = written.get("architectures") or [causal.__name__]
    return any(name == causal.__name__ or name.endswith("ForCausalLM") for name in saved)


def _projections(model: PreTrainedModel, path: Path) -> tuple[str, ...]:
    """The names of all linears inside the decoder's layers: neither the head nor, beside images, another tower."""
    num_layers = model.config.get_text_config().num_hidden_layers
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    layers = [layer for child in lists if len(child) == num_layers for layer in child]
    inside = {id(module) for layer in layers for module in layer.modules()}
    modules = dict(model.named_modules())
    linears = {
        name: module
        for name, module in modules.items()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    }
    num_reached = sum(module.weight.numel() for module in linears.values())
    num_entries = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    if not linears or num_reached < LEAST_SHARE * num_entries:
        raise ValueError(
            f"{path}: only {num_reached / max(num_entries, 1):.0%} of the layers' weights are linears, as in a mixture"
            " of experts: no adapter would reach the experts. Choose a dense model."
        )
    return _suffixes(linears, modules)


def _suffixes(wanted: Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """The shortest names that PEFT finds all of `wanted` by, and nothing else of `modules`."""
    others = [f".{name}" for name in modules if name not in wanted]
    found: dict[str, bool] = {}  # whether only wanted modules end so
    for name in wanted:
        parts = name.split(".")
        for start in range(len(parts) - 1, -1, -1):
            suffix = ".".join(parts[start:])
            if suffix not in found:
                found[suffix] = not any(other.endswith(f".{suffix}") for other in others)
            if found[suffix]:
                break
    return tuple(suffix for suffix, is_exact in found.items() if is_exact)


def context_of(config: PreTrainedConfig) -> int | None:
    """How many tokens the model can read; GPT-2's n_positions goes by this name, too. None is no limit (ALiBi)."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
