"""Baselines that are PEFT's: IA³, VeRA and SHiRA, tuners of their own, and PiSSA, a LoRA that starts elsewhere.

    IA³     l ∘ W x for keys and values, W (l ∘ x) for the MLP's inner activations; l starts at 1     (2205.05638)
    VeRA    (W + diag(b) B diag(d) A) x; random A and B are all layers', b starts at 0 and d at 0.1   (2310.11454)
    SHiRA   (W + S) x; S starts at zero and has r (d_in + d_out) entries that train, at random places (2406.13175)
    PiSSA   (W − s B₀ A₀ + s B A) x; B₀ A₀, where B A starts, has W's r largest singular values       (2404.02948)

r is the config's `rank`, also of VeRA, whose paper takes 256 for 7 billion parameters, as more of it costs a parameter
a linear. The first three have no alpha, and no factors to merge; their files load in plain PEFT.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, PeftConfig, PeftModel, ShiraConfig, VeraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from lori.adapters.attached import ADAPTER, check_base, set_tensors
from lori.adapters.checked_files import METADATA, digest
from lori.adapters.peft_files import LORA_A
from lori.adapters.peft_settings import SETTINGS_FILE, TENSORS_FILE
from lori.base_models.hub_files import open_tensors
from lori.config import TrainConfig

# What IA³ scales, by the names that architectures have for it: PEFT's own table has one of keys and values, by model
KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "query_key_value", "qkv_proj", "c_attn")
INNER_ACTIVATIONS = ("down_proj", "fc2", "w2", "fc_out", "dense_4h_to_h", "mlp.c_proj")


def _ia3(config: TrainConfig) -> IA3Config:
    adapted = {projection.rpartition(".")[2] for projection in config.projections}
    outputs = [name for name in KEYS_AND_VALUES if name in adapted]
    inputs = [name for name in INNER_ACTIVATIONS if name.rpartition(".")[2] in adapted]
    if not outputs + inputs:
        raise ValueError(
            f"IA³ scales keys, values and inner activations, but none of {', '.join(config.projections)} is known as"
            " such: add their names to KEYS_AND_VALUES or INNER_ACTIVATIONS (lori/adapters/baselines.py)."
        )
    return IA3Config(task_type="CAUSAL_LM", target_modules=outputs + inputs, feedforward_modules=inputs)


def _vera(config: TrainConfig) -> VeraConfig:
    return VeraConfig(
        task_type="CAUSAL_LM",
        target_modules=list(config.projections),
        r=config.rank,
        projection_prng_key=config.seed,
        save_projection=True,  # torch may draw others elsewhere
    )


def _shira(config: TrainConfig) -> ShiraConfig:
    return ShiraConfig(
        task_type="CAUSAL_LM", target_modules=list(config.projections), r=config.rank, random_seed=config.seed
    )


@dataclass(frozen=True)
class Tuner:
    """A tuner of PEFT's beside LoRA: its settings for a training, and what the names of its tensors have in them."""

    settings: Callable[[TrainConfig], PeftConfig]
    mark: str


TUNERS = {
    "ia3": Tuner(_ia3, ".ia3_l"),
    "vera": Tuner(_vera, ".vera_lambda_"),
    "shira": Tuner(_shira, ".shira_weight"),
}


def attach_tuner(model: PreTrainedModel, config: TrainConfig, kind: str) -> PeftModel:
    """`model` with a new adapter of a row of `TUNERS`: the same function as before, until it trains.

    Raises:
        ValueError: if `config` names nothing that the tuner could adapt.
    """
    peft_model = get_peft_model(model, TUNERS[kind].settings(config))
    peft_model.train(model.training)  # PEFT's own starts in training mode
    assert isinstance(peft_model, PeftModel)
    peft_model.peft_config[ADAPTER].base_model_name_or_path = config.base_model  # not this machine's folder
    return peft_model


def kind_of(directory: Path) -> str:
    """The row of `TUNERS` whose tensors are in `directory`, or else lora, whose reader says what is wrong."""
    if not (directory / TENSORS_FILE).exists():
        return "lora"
    with open_tensors(directory / TENSORS_FILE) as file:
        names = " ".join(file.keys())
    return next((kind for kind, tuner in TUNERS.items() if tuner.mark in names), "lora")


def load_tuner(model: PreTrainedModel, directory: Path, kind: str, config: TrainConfig | None) -> PeftModel:
    """`model` with the adapter of a row of `TUNERS`, `kind`; with `config` it goes on training.

    Raises:
        ValueError: if the files are damaged or edited, or do not fit `model` or `config`.
    """
    try:
        settings = PeftConfig.from_pretrained(str(directory))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{directory / SETTINGS_FILE} is damaged: {error}. Save or download it again.") from error
    if settings.peft_type != kind.upper():
        raise ValueError(f"{directory / SETTINGS_FILE} is not of the {kind} adapter whose tensors lie beside it.")
    made_for = settings.base_model_name_or_path
    check_base(directory, made_for, config)
    with open_tensors(directory / TENSORS_FILE) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        noted = json.loads((file.metadata() or {}).get(METADATA, "{}")).get("sha256")
    if noted not in (None, digest_of_all(tensors)):
        raise ValueError(f"{directory} was changed after it was saved: restore it, or train it again.")
    settings.inference_mode = config is None
    settings.base_model_name_or_path = None  # PEFT would warn that it takes the base's own name
    peft_model = get_peft_model(model, settings)
    assert isinstance(peft_model, PeftModel)
    set_tensors(peft_model, directory, tensors)
    settings.base_model_name_or_path = made_for
    return peft_model.eval()


def digest_of_all(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over tensors in the order of their names."""
    return digest(tensors[name] for name in sorted(tensors))


def as_lora(
    tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a trained PiSSA as a LoRA of twice the rank on the base as it was.

    s (B A − B₀ A₀) = s [B −B₀] [A; A₀], PEFT's own conversion (`LoraModel.subtract_mutated_init`).
    """
    joined = {}
    for name, tensor in tensors.items():
        last, first = tensor.cpu(), initial[name]
        joined[name] = torch.cat([last, first], 0) if LORA_A in name else torch.cat([last, -first], 1)
    doubled = {"r": 2 * settings["r"], "lora_alpha": 2 * settings["lora_alpha"], "init_lora_weights": True}
    return joined, {**settings, **doubled}


def trained_half(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """A and B of PiSSA from those of `as_lora`."""
    return {name: tensor[:rank] if LORA_A in name else tensor[:, :rank] for name, tensor in tensors.items()}
