"""Adapters to merge, and what merging them comes to."""

from dataclasses import replace

import torch

from lori.adapters.attach import apply_adapter, attach, save_adapter
from lori.adapters.peft_files import open_adapter, write_adapter
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS
from lori.config import MergeConfig
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config

SCALE = BASE_MODELS["scale"]

ROW, COLUMN = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]])


def make_adapter(directory, name, domain, **changes):
    config = replace(train_config(profile("smoke"), name, domain, seed=0), **changes)
    model = attach(load_base(SCALE), config)
    torch.manual_seed(len(domain))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_adapter(model, directory, config)
    return directory


def merge_of(method, weights, density=0.5, seed=0):
    return MergeConfig(SCALE.identity, method, tuple(weights), density, seed, match_norms=False)


def weights_of(model):
    return {name: p.detach() for name, p in model.state_dict().items()}


def updates(directory):
    base, adapted = (
        weights_of(load_base(SCALE)),
        weights_of(apply_adapter(load_base(SCALE), directory)),
    )
    return {name: adapted[name] - base[name] for name in base}


def written(directory, factors, **changes):
    """An adapter of (a, b) by module, at scaling 2, of a base model that nobody needs."""
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    tensors |= changes.pop("tensors", {})
    rank = next(iter(factors.values()))[0].shape[0]
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": SCALE.identity,
        "r": rank,
        "lora_alpha": 2 * rank,
    }
    write_adapter(directory, tensors, settings | {"target_modules": sorted(factors)} | changes, {})
    return directory


def products(directory):
    with open_adapter(directory) as adapter:
        return {m: adapter.scaling(m) * adapter.b(m) @ adapter.a(m) for m in adapter.modules}
