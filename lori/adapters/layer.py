"""LoRI inside PEFT's LoRA tuner: a frozen random A, a B that is dense (LoRI-D) or sparse (LoRI-S), one autograd node.

    y = x Wᵀ + s (x Aᵀ) Bᵀ,  s = alpha / rank                                              (paper, section 3)

A frozen A needs no gradient, so the only activation that the adapter saves is h = s x Aᵀ, of rank columns. Everything
PEFT does with a LoRA layer (merge, disable, several adapters, save) works on these layers too, and what is saved is a
plain LoRA adapter.
"""

import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor


def projection_a(key: str, module: str, shape: tuple[int, int]) -> Float[Tensor, "rank d_in"]:
    """The random projection A of one linear: U(−1/√d_in, +1/√d_in), PEFT's kaiming-uniform with a = √5.

    The paper draws A per task and the authors never seed it. Here it is a function of its arguments alone: 24 bits of
    a SHAKE-256 stream are an odd integer below 2²⁴, exact in fp32, times the bound: one rounding, the same bits on
    every machine and in every release of torch and numpy. `key` is `methods.a_key`: seed and domain.
    """
    stream = hashlib.shake_256(f"{key}/{module}/{shape[0]}x{shape[1]}".encode())
    words = np.frombuffer(stream.digest(4 * shape[0] * shape[1]), dtype="<u4") >> 8
    odd = 2 * words.astype(np.int32) + 1 - 2**24
    bound = np.float32(1 / np.sqrt(shape[1]) / 2**24)
    return torch.from_numpy(odd.astype(np.float32) * bound).view(shape)


def scatter(values: Tensor, index: Tensor, shape: tuple[int, int], rest: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The dense B, in `dtype`: `values` at the flat positions `index`, elsewhere `rest` or zero."""
    flat = values.new_zeros(shape[0] * shape[1], dtype=dtype) if rest is None else rest.to(dtype, copy=True).flatten()
    flat[index] = values.to(dtype)  # positions are unique, so the order of writes cannot matter
    return flat.view(shape)


class SparseB(nn.Module):
    """B of LoRI-S: only the kept entries are stored and trained, in fp32, with their flat positions as int32.

    `rest` holds what lies outside the mask, which never trains: None for zeros, or the first domain's values in
    continual learning. In a state dict it is a dense `weight` (d_out, rank), so that every checkpoint is PEFT's.
    """

    def __init__(self, b: Float[Tensor, "d_out rank"], mask: Bool[Tensor, "d_out rank"]):
        super().__init__()
        self.out_features, self.in_features = b.shape
        index = mask.to(b.device).flatten().nonzero().squeeze(1)
        outside = b.detach().masked_fill(mask.to(b.device), 0)
        self.values = nn.Parameter(b.detach().flatten()[index].float())
        self.register_buffer("index", index.to(torch.int32), persistent=False)
        self.register_buffer("rest", outside.float() if bool(outside.any()) else None, persistent=False)
        self.dense: Tensor | None = None  # this B in the compute dtype, kept by `FlatValues`
        self.bias = None  # PEFT looks for one

    index: Int[Tensor, " kept"]
    rest: Tensor | None

    @property
    def weight(self) -> Float[Tensor, "d_out rank"]:
        """The dense B, differentiable: what PEFT's own code paths read (merge, several adapters, fallback)."""
        flat = torch.zeros(self.out_features * self.in_features, dtype=self.values.dtype, device=self.values.device)
        flat = flat if self.rest is None else self.rest.flatten()
        return flat.index_put((self.index.long(),), self.values).view(self.out_features, self.in_features)

    @property
    def mask(self) -> Bool[Tensor, "d_out rank"]:
        """Where entries are kept."""
        flat = torch.zeros(self.out_features * self.in_features, dtype=torch.bool)
        return flat.index_fill(0, self.index.long().cpu(), 1).view(self.out_features, self.in_features)

    def forward(self, h: Tensor) -> Tensor:
        """h (…, rank) to (…, d_out)."""
        return F.linear(h, self.weight)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        destination[prefix + "weight"] = self.weight.detach()

    def _load_from_state_dict(self, state_dict, prefix, *arguments):  # pyright: ignore[reportIncompatibleMethodOverride]
        _, _, missing, _, errors = arguments
        name = prefix + "weight"
        if name not in state_dict:
            missing.append(name)
            return
        if state_dict[name].shape != (self.out_features, self.in_features):
            errors.append(f"{name}: {tuple(state_dict[name].shape)} for a B of {self.out_features, self.in_features}.")
            return
        flat = state_dict[name].flatten().to(self.values)
        index = self.index.long()
        rest = torch.zeros_like(flat) if self.rest is None else self.rest.flatten()
        if not torch.equal(flat.index_fill(0, index, 0), rest):
            errors.append(f"{name}: it differs outside the mask from the B that was made sparse; load it elsewhere.")
            return
        with torch.no_grad():
            self.values.copy_(flat[index])
            if self.dense is not None:
                self.dense.view(-1)[index] = self.values.to(self.dense.dtype)

    def extra_repr(self) -> str:
        """For printing a model."""
        num_entries = self.out_features * self.in_features
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, kept={len(self.index)}/{num_entries}"
        )


class _Lori(torch.autograd.Function):
    """The frozen linear and its adapter as one node; saves h = s x Aᵀ of the activations and nothing else.

    `b` is a dense B or the kept values of a sparse one, whose `index` and `rest` place them; `dense` is the same B
    already in the compute dtype. The dense gradient of a sparse B lives for one linear only: a GEMM and a gather are
    faster than a sampled product at 10 % and rank 32 (measured; GPUs are further on the GEMM's side).
    """

    @staticmethod
    def forward(ctx, x, w, bias, a, b, index, rest, dense, scaling):  # noqa: PLR0913 autograd takes them one by one
        rows = x.reshape(-1, x.shape[-1])
        h = (rows @ a.to(rows.dtype).t()).mul_(scaling)  # scaled where it is small
        full = _dense_b(b, index, rest, dense, (w.shape[0], a.shape[0]), rows.dtype)
        y = F.linear(x, w, bias)
        y.view(-1, w.shape[0]).addmm_(h, full.t())  # of y itself a view must not be returned: none may change it then
        ctx.save_for_backward(h, w, a, b, index, rest, dense)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        h, w, a, b, index, rest, dense = ctx.saved_tensors
        dy_rows = dy.reshape(-1, w.shape[0])
        dx = db = None
        if ctx.needs_input_grad[4]:
            db = dy_rows.t() @ h
            db = (db if index is None else db.view(-1).index_select(0, index)).to(b.dtype)
        if ctx.needs_input_grad[0]:
            full = _dense_b(b, index, rest, dense, (w.shape[0], a.shape[0]), dy_rows.dtype)
            dx = dy_rows @ w
            dx.addmm_((dy_rows @ full).mul_(ctx.scaling), a.to(dx.dtype))
            dx = dx.view(*dy.shape[:-1], w.shape[1])
        return dx, None, None, None, db, None, None, None, None


def _dense_b(b, index, rest, dense, shape, dtype):
    if dense is not None and dense.dtype == dtype:
        return dense
    return b.to(dtype) if index is None else scatter(b, index, shape, rest, dtype)


class LoriLinear(LoraLinear):
    """PEFT's LoRA linear with a frozen A; its fast path is one fused node, everything else is PEFT's forward."""

    def update_layer(self, adapter_name: str, *arguments: Any, **options: Any) -> None:
        """PEFT's, and A frozen if the adapter's config asked for this layer: a plain LoRA beside it trains its A."""
        super().update_layer(adapter_name, *arguments, **options)
        if options["config"]._custom_modules:
            freeze_a(self, adapter_name)

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """x (…, d_in) to (…, d_out)."""
        if arguments or options or not self._is_plain():
            return super().forward(x, *arguments, **options)
        name = self.active_adapters[0]
        w, bias = self.base_layer.weight, self.base_layer.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, w, bias = x.to(dtype), w.to(dtype), None if bias is None else bias.to(dtype)
        a, b, scaling = self.lora_A[name].weight, self.lora_B[name], self.scaling[name]
        if isinstance(b, SparseB):
            return _Lori.apply(x, w, bias, a, b.values, b.index, b.rest, b.dense, scaling)
        return _Lori.apply(x, w, bias, a, b.weight, None, None, None, scaling)

    def _is_plain(self) -> bool:
        """One active adapter without variants on an ordinary frozen linear: what the fused node computes."""
        names = self.active_adapters
        return (
            len(names) == 1
            and names[0] in self.lora_A
            and names[0] not in self.lora_variant
            and isinstance(self.lora_dropout[names[0]], nn.Identity)
            and not (self.disable_adapters or self.merged or self.lora_bias[names[0]])
            and not self.lora_A[names[0]].weight.requires_grad
            and not any(parameter.requires_grad for parameter in self.base_layer.parameters())
            and not (self.base_layer._forward_hooks or self.base_layer._forward_pre_hooks)
            and isinstance(self.base_layer, PlainLinear)
        )


class _ExactlyLinear(type):
    def __instancecheck__(cls, module: object) -> bool:
        # DTensor: a share of an ordinary weight (FSDP2), whole whenever the layer computes
        return type(module) is nn.Linear and (
            type(module.weight) is nn.Parameter or isinstance(module.weight, DTensor)
        )


class PlainLinear(metaclass=_ExactlyLinear):
    """Key for `LoraConfig._register_custom_module`: `nn.Linear` with an ordinary weight.

    Quantised linears are subclasses (bitsandbytes) or have a weight of another type (torchao); PEFT has layers of its
    own for them, which can also merge.
    """


def freeze_a(layer: LoraLayer, adapter_name: str) -> None:
    """A never trains, whatever PEFT does to the layer later (`set_adapter`, `is_trainable=True`)."""
    # A new dict: the one on the class is shared by all layers
    layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, adapter_name: ("lora_A",)}
    layer._freeze_non_trainable_peft_weights(adapter_name)


class FlatValues:
    """The kept values of all sparse B's as one vector: one tensor to step, one Adam state, one scatter a step.

    `values` is what the optimizer gets; the layers' parameters and gradients are parts of it. On a GPU `keep_dense`
    also holds every B in the compute dtype (88 MB in bf16 for Llama-3-8B at r = 32), written by one scatter after each
    step, where each layer would launch its own twice.
    """

    def __init__(self, layers: list[SparseB], *, keep_dense: torch.dtype | None):
        self.layers = layers
        self.values = nn.Parameter(torch.cat([layer.values.detach() for layer in layers]))
        self.parts = self._split(self.values.detach())
        self.values.grad = torch.zeros_like(self.values)
        self.gradient_parts = self._split(self.values.grad)
        for layer, part in zip(layers, self.parts, strict=True):
            layer.values.data = part
        self.dense: Tensor | None = None
        if keep_dense is not None:
            self._allocate_dense(keep_dense)

    def _split(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split([len(layer.index) for layer in self.layers])

    def _allocate_dense(self, dtype: torch.dtype) -> None:
        sizes = [layer.out_features * layer.in_features for layer in self.layers]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        self.dense = torch.cat([layer.weight.detach().flatten().to(dtype) for layer in self.layers])
        self.index = torch.cat([layer.index.long() + start for layer, start in zip(self.layers, starts, strict=True)])
        for layer, part in zip(self.layers, self.dense.split(sizes), strict=True):
            layer.dense = part.view(layer.out_features, layer.in_features)

    def lend_gradients(self) -> None:
        """Before the first backward of a step: zero, and what the layers then accumulate into."""
        assert self.values.grad is not None
        self.values.grad.zero_()
        for layer, part in zip(self.layers, self.gradient_parts, strict=True):
            layer.values.grad = part

    def gradients(self) -> list[Tensor]:
        """After the last backward: the parts of `values.grad`, a matrix each."""
        for layer, part in zip(self.layers, self.gradient_parts, strict=True):
            if layer.values.grad is not None and layer.values.grad.data_ptr() != part.data_ptr():
                part.copy_(layer.values.grad)
        return list(self.gradient_parts)

    @torch.no_grad()
    def scatter(self) -> None:
        """After a step: the layers' values, where DDP gave them storages of their own, and the dense B's."""
        for layer, part in zip(self.layers, self.parts, strict=True):
            if layer.values.data_ptr() != part.data_ptr():
                layer.values.copy_(part)
        if self.dense is not None:
            self.dense[self.index] = self.values.to(self.dense.dtype)

    def release(self) -> None:
        """Give each layer values of its own again, and forget the dense B's."""
        for layer in self.layers:
            layer.values.data = layer.values.detach().clone()
            layer.values.grad = layer.dense = None
