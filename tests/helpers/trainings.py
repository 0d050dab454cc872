"""Trainings of the scale model on eight rows, and one that dies on the way."""

from dataclasses import replace

import torch

from lori.adapters.attached import lora_layers
from lori.adapters.masks import magnitude_masks
from lori.adapters.peft_files import LORA_B
from lori.base_models.loading import load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.config import MaskConfig
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config
from lori.training.trainer import summed_token_loss, train

SCALE = BASE_MODELS["scale"]

ROWS = [
    {"input_ids": list(range(start, start + 14)), "labels": [-100] * 8 + list(range(start + 8, start + 14))}
    for start in range(10, 90, 10)
]


def config_of(name, **changes):
    base = train_config(profile("smoke"), "lora", "nlu", seed=0)
    return replace(base, **{"method": name, "batch_size": 8, "num_epochs": 3, **changes})


def fit(model, name, *, rows=ROWS, runtime=None, **changes):
    return train(model, rows, config_of(name, **changes), tokenizer=load_tokenizer(SCALE), runtime=runtime)


def trained(model):
    """What trained, dense: B's by module name, other parameters by their own."""
    bs = {module: layer.lora_B["default"].weight.detach().clone() for module, layer in lora_layers(model).items()}
    others = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad and LORA_B not in n}
    return {**bs, **others}


def some_masks(model, density=0.2):
    torch.manual_seed(3)
    bs = {module: torch.rand(layer.lora_B["default"].weight.shape) for module, layer in lora_layers(model).items()}
    return magnitude_masks(bs, MaskConfig(1 - density, "model"))


class Killed(RuntimeError):
    """Stands for the end of the process."""


def dying(*, after):
    """The loss function of a process that ends when it is called once more than `after` times."""
    calls = iter(range(after))

    def loss(model, batch):
        if next(calls, None) is None:
            raise Killed
        return summed_token_loss(model, batch)

    return loss


def without_times(curve):
    of_the_machine = ("time_ms", "train/tokens_per_second", "train/memory_mb")
    return [{name: value for name, value in point.items() if name not in of_the_machine} for point in curve]
