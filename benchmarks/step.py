"""One training step of LoRI beside PEFT's LoRA: time, and what autograd keeps between forward and backward.

    python -m benchmarks.step      # 3 minutes; writes benchmarks/step.json

A Llama of 28 million parameters, rank 32, 4 sequences of 256 tokens, one thread: the same forward (all logits) and
batch for all. PEFT's LoRA steps as Trainer does, with a clip of the global norm and one fused AdamW. A processor
without bf16 instructions multiplies bf16 matrices many times slower than fp32 ones; there it is one sequence of 64.
"""

from collections.abc import Callable
from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import goal, interleave, ratio, report, saved_bytes
from lori.adapters.attach import attach, sparsify
from lori.adapters.attached import b_shapes
from lori.adapters.layer import FlatValues, SparseB
from lori.adapters.masks import random_masks
from lori.base_models.resolve import LLAMA_PROJECTIONS
from lori.config import MaskConfig
from lori.recipes.paper_numbers import paper_config
from lori.training.trainer import clip_each

ROUNDS = 7
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "use_cache": False,
}
TOKENS = torch.randint(0, 4096, (4, 256), generator=torch.Generator().manual_seed(0))
FEW_TOKENS = TOKENS[:1, :64]


def base(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).to(dtype).requires_grad_(False)


def peft_lora(dtype: torch.dtype) -> nn.Module:
    return get_peft_model(base(dtype), LoraConfig(r=32, lora_alpha=64, target_modules=list(LLAMA_PROJECTIONS)))


def lori(method: str, dtype: torch.dtype) -> nn.Module:
    model = attach(base(dtype), paper_config(method, "nlu", "llama-28m"))
    if method == "lori-s":
        sparsify(model, random_masks(b_shapes(model), MaskConfig(0.9, "model"), seed=0))
    return model


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, labels=tokens).loss


def peft_step(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        loss_of(model, tokens).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def lori_step(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    sparse = [module for module in model.modules() if isinstance(module, SparseB)]
    flat = FlatValues(sparse, keep_dense=None) if sparse else None
    trainable = [flat.values] if flat else [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        if flat:
            flat.lend_gradients()
        loss_of(model, tokens).backward()
        clip_each(flat.gradients() if flat else [p.grad for p in trainable if p.grad is not None])
        optimizer.step()
        if flat:
            flat.scatter()
        model.zero_grad()

    return step


def gemm_speed(dtype: torch.dtype) -> float:
    """How fast a backward's dy @ W is in `dtype`, as a share of fp32: what bf16 can gain on this processor."""
    dy, w = torch.randn(256, 1408), torch.randn(1408, 512)
    works = {"own": partial(torch.matmul, dy.to(dtype), w.to(dtype)), "fp32": partial(torch.matmul, dy, w)}
    return 1 / ratio(interleave(works, ROUNDS), "own", "fp32")


def main() -> None:
    torch.set_num_threads(1)
    rows, goals = [], []
    for dtype in (torch.bfloat16, torch.float32):
        is_slow = dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        tokens = FEW_TOKENS if is_slow else TOKENS
        models = {"LoRA (PEFT)": peft_lora(dtype), "LoRI-D": lori("lori-d", dtype), "LoRI-S": lori("lori-s", dtype)}
        steps = {name: (peft_step if "PEFT" in name else lori_step)(model, tokens) for name, model in models.items()}
        seconds = interleave(steps, ROUNDS)
        saved = {
            name: saved_bytes(partial(loss_of, model, tokens), [*model.parameters(), *model.buffers()])
            for name, model in models.items()
        }
        for name, model in models.items():
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "tokens": tokens.numel(),
                    "method": name,
                    "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
                    "step / LoRA's": ratio(seconds, name, "LoRA (PEFT)"),
                    "saved activations / LoRA's": saved[name] / saved["LoRA (PEFT)"],
                    "GEMM speed / fp32's": gemm_speed(dtype),
                }
            )
        if dtype == torch.bfloat16:
            goals = [
                goal("LoRI-S step / LoRA's", rows[-1]["step / LoRA's"], "≤", 0.80),
                goal("LoRI-S saved activations / LoRA's", rows[-1]["saved activations / LoRA's"], "≤", 0.55),
            ]
    report("step", rows, goals=goals, rounds=ROUNDS, shape=SHAPE)
    for line in goals:
        print(line)


if __name__ == "__main__":
    main()
