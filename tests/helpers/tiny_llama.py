"""A tiny Llama with LoRA on every linear, by our layer or by PEFT's, with its loss and gradients."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lori.adapters.attached import ADAPTER, lora_layers
from lori.adapters.layer import LoriLinear, PlainLinear, SparseB, projection_a

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = torch.arange(3, 43).view(2, 20)


def tiny_llama(dtype=torch.float32):
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    return LlamaForCausalLM(shape).to(dtype)


def with_lora(model, *, fused, **options):
    """PEFT's LoRA, or ours: the same A and a B that is not zero."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **options)
    if fused:
        config._register_custom_module({PlainLinear: LoriLinear})
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for module, layer in lora_layers(model).items():
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        a.data = projection_a("0/test", module, tuple(a.shape)).to(a.dtype)
        a.requires_grad_(False)
        b.data = 0.1 * torch.randn(b.shape, generator=generator).to(b.dtype)
    return model


def some_masks(model, density=0.2):
    generator = torch.Generator().manual_seed(2)
    return {
        module: torch.rand(layer.lora_B[ADAPTER].weight.shape, generator=generator) < density
        for module, layer in lora_layers(model).items()
    }


def loss_of(model):
    return model(input_ids=TOKENS, labels=TOKENS).loss


def gradients(model):
    loss_of(model).backward()
    return {
        module: (b.values if isinstance(b, SparseB) else b.weight).grad
        for module, b in ((module, layer.lora_B[ADAPTER]) for module, layer in lora_layers(model).items())
    }
