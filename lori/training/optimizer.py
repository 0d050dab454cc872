"""AdamW as the paper sets it, and what happens to the gradients before its step."""

from collections.abc import Iterable

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from lori.adapters.attached import ADAPTER, weight_of

WEIGHT_DECAY = 0.0  # any other value would move the entries of B that the mask must leave alone
MAX_GRADIENT_NORM = 1.0  # of each weight matrix by itself (paper; apply_mask_in_backward.py), not of all together
BETAS, EPSILON = (0.9, 0.999), 1e-8


def adamw(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """AdamW with the paper's constants."""
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True
    )


@torch.no_grad()
def clip_each(gradients: list[Tensor]) -> Tensor:
    """Scale each gradient to a norm of at most `MAX_GRADIENT_NORM`, in place; the norms before are returned."""
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = [MAX_GRADIENT_NORM / (norm + 1e-6) for norm in norms.tolist()]  # 1e-6 as torch's clip_grad_norm_
    too_long = [(gradient, factor) for gradient, factor in zip(gradients, factors, strict=True) if factor < 1]
    if too_long:
        torch._foreach_mul_([gradient for gradient, _ in too_long], [factor for _, factor in too_long])
    return norms


@torch.no_grad()
def preconditioners(layers: Iterable[LoraLayer]) -> list[tuple[Tensor, Tensor]]:
    """Each B, and what LoRA-FA multiplies its gradient by from the right: (A Aᵀ)⁻¹ / s².

    The step of s B A is then as close to full fine-tuning's as a frozen A allows (2308.03303). As PEFT's
    `LoraFAOptimizer` (0.21.2), but once for the whole training, as A is frozen, and in double precision, where PEFT
    multiplies in bf16; epsilon is the constant above, not 1e-6. Of a random A in many columns the factor is nearly a
    multiple of the identity, which Adam cancels: LoRA-FA is then close to LoRI-D.
    """
    pairs = []
    for layer in layers:
        a = weight_of(layer.lora_A).double()
        inverse = torch.linalg.pinv(a @ a.T, hermitian=True) / layer.scaling[ADAPTER] ** 2
        pairs.append((weight_of(layer.lora_B), inverse.float()))
    return pairs
