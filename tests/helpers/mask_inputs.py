"""Bs to draw masks of, and adapters that hold them."""

import torch

from lori.adapters.peft_files import write_adapter

BS = {
    "model.layers.0.self_attn.q_proj": torch.tensor([[9.0, -8.0], [0.1, 0.2]]),
    "model.layers.0.mlp.up_proj": torch.tensor([[0.3, 7.0], [0.4, 0.5]]),
    "model.layers.1.self_attn.q_proj": torch.tensor([[0.6, -0.7], [0.8, 0.9]]),
    "model.layers.1.mlp.up_proj": torch.tensor([[-6.0, 5.0], [1.0, 1.1]]),
}


def same(masks, others):
    return masks.keys() == others.keys() and all(torch.equal(masks[name], others[name]) for name in masks)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def save_bs(directory, dtype):
    tensors = {}
    for name, b in BS.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(2, 5)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(dtype)
    write_adapter(directory, tensors, {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2, "lora_alpha": 4}, {})
