"""The adapter in a model: its layers, and its tensors by the names that they have in a file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from lori.adapters.peft_files import PREFIX, AdapterFile
from lori.config import TrainConfig

ADAPTER = "default"  # PEFT's name for the adapter in a model; a file has none


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that have an adapter with factors, by module name."""
    return {name.removeprefix(PREFIX): layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def weight_of(factors: nn.ModuleDict) -> Tensor:
    """The matrix of a layer's `lora_A` or `lora_B`."""
    weight = factors[ADAPTER].weight
    assert isinstance(weight, Tensor)
    return weight


def shape_of(matrix: Tensor) -> tuple[int, int]:
    """Rows and columns."""
    rows, columns = matrix.shape
    return rows, columns


def b_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(d_out, rank) of every B, by module name."""
    return {module: shape_of(weight_of(layer.lora_B)) for module, layer in lora_layers(model).items()}


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """What PEFT saves of the adapter, by PEFT's names."""
    # Of a sharded base, PEFT would gather every weight on the way
    own = {name: tensor for name, tensor in model.state_dict().items() if f".{ADAPTER}" in name}
    # "auto" would ask the hub whether the base's embedding was resized: ours never is
    return get_peft_model_state_dict(model, state_dict=own, save_embedding_layers=False)


def set_tensors(model: PeftModel, directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Give the adapter in `model` the `tensors` that were read in `directory`.

    Raises:
        ValueError: if they are not those of this adapter on this base.
    """
    wanted = adapter_tensors(model)
    for name in sorted(wanted.keys() | tensors.keys()):
        there, here = (tuple(d[name].shape) if name in d else "none" for d in (tensors, wanted))
        if there != here:
            raise ValueError(
                f"{directory} is not an adapter of this base model: {name} is {there} there and {here} here."
            )
    set_peft_model_state_dict(model, dict(tensors))


def check_base(directory: Path, made_for: str | None, config: TrainConfig | None) -> None:
    """Whether an adapter is of the base that `config` trains.

    Raises:
        ValueError: if it is not.
    """
    if config is not None and made_for != config.base_model:
        raise ValueError(f"{directory} is an adapter of {made_for}, not of {config.base_model}.")


def check_untrained(model: PeftModel, adapter: AdapterFile, name: str) -> None:
    """Whether an embedding or head in an adapter file is the base's own, as far as the base has rows.

    Raises:
        ValueError: if it is not: it was trained, and leaving it out would change the model.
    """
    saved, own = adapter.file.get_tensor(name), dict(model.get_base_model().named_parameters(remove_duplicate=False))
    parameter = own.get(name.removeprefix(PREFIX))
    if parameter is None or not torch.equal(saved[: len(parameter)], parameter.detach().cpu().to(saved.dtype)):
        raise ValueError(f"{adapter.directory} also trained {name}, which is no LoRA factor: it can't be loaded here.")
