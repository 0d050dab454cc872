"""A small random Llama with any method attached, trained and saved."""

from dataclasses import replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lori.adapters.attach import (
    attach,
    save_adapter,
    sparsify,
)
from lori.adapters.attached import lora_layers
from lori.base_models.loading import load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.choices.methods import METHODS
from lori.config import TrainConfig
from lori.training.trainer import train

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS, WIDTH, KEYS, INNER = 2, 16, 8, 24
SHAPES = {  # (d_in, d_out)
    "q_proj": (WIDTH, WIDTH),
    "k_proj": (WIDTH, KEYS),
    "v_proj": (WIDTH, KEYS),
    "o_proj": (WIDTH, WIDTH),
    "gate_proj": (WIDTH, INNER),
    "up_proj": (WIDTH, INNER),
    "down_proj": (INNER, WIDTH),
}
TOKENS = torch.arange(3, 33).view(3, 10)
ROWS = [
    {"input_ids": list(range(n, n + 10)), "labels": [-100] * 6 + list(range(n + 6, n + 10))} for n in range(4, 52, 6)
]
TRAINED = [name for name, row in METHODS.items() if row.kind != "none"]
TUNERS = ["ia3", "vera", "shira"]


def base(dtype=torch.float32):
    torch.set_num_threads(1)  # as load_base: the order of sums depends on it
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(shape).to(dtype).requires_grad_(False).eval()


def config_of(name, **changes):
    config = TrainConfig(
        base_model="tiny",
        projections=PROJECTIONS,
        method=name,
        domain="nlu",
        rank=2,
        alpha=4,
        learning_rate=1e-2,
        num_epochs=3,
        batch_size=8,
        max_length=16,
        max_prompt_length=8,
        seed=0,
    )
    return replace(config, **changes)


def fit(model, name, runtime=None, **changes):
    train(model, ROWS, config_of(name, **changes), tokenizer=load_tokenizer(BASE_MODELS["scale"]), runtime=runtime)
    return model


def started(name, model=None, **changes):
    """`model` before its first step; LoRI-S with a mask of every third entry."""
    attached = attach(base() if model is None else model, config_of(name, **changes))
    if METHODS[name].mask_from:
        bs = {module: layer.lora_B["default"].weight for module, layer in lora_layers(attached).items()}
        sparsify(attached, {module: torch.arange(b.numel()).view(b.shape) % 3 == 0 for module, b in bs.items()})
    return attached


def trained(name, **changes):
    return fit(started(name, **changes), name, **changes)


def saved(name, directory, **changes):
    model = trained(name, **changes)
    save_adapter(model, directory, config_of(name, **changes))
    return model


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def assert_same_function(first, second):
    torch.testing.assert_close(logits(first), logits(second), atol=2e-5, rtol=1e-5)
