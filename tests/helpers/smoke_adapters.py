"""Adapters of every method on the scale model, by the smoke profile, and shaken off their start."""

from dataclasses import replace

import torch

from lori.base_models.resolve import BASE_MODELS
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config

SCALE = BASE_MODELS["scale"]

TOKENS = torch.arange(3, 43).view(2, 20)


def config_of(name, **changes):
    return replace(train_config(profile("smoke"), "lora", "nlu", seed=0), method=name, **changes)


def shake(model):
    """Random values in everything that trains, so that an adapter is not the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model
