"""The layer: the same numbers as PEFT's and as masked dense gradients, with a fraction of what they store."""

import hashlib
import math
import struct
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from helpers.tiny_llama import TARGETS, TOKENS, gradients, some_masks, tiny_llama, with_lora
from lori.adapters.attach import sparsify
from lori.adapters.attached import ADAPTER, lora_layers
from lori.adapters.checked_files import digest
from lori.adapters.layer import LoriLinear, PlainLinear, projection_a


def test_the_fused_node_gives_pefts_logits_and_gradients():
    ours, peft = with_lora(tiny_llama(), fused=True), with_lora(tiny_llama(), fused=False)
    assert all(isinstance(layer, LoriLinear) for layer in lora_layers(ours).values())
    torch.testing.assert_close(ours(TOKENS).logits, peft(TOKENS).logits, atol=1e-6, rtol=1e-5)
    expected = gradients(peft)
    for module, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, expected[module], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_kept_values_is_the_masked_dense_gradient_bit_for_bit(dtype):
    dense, sparse = with_lora(tiny_llama(dtype), fused=True), with_lora(tiny_llama(dtype), fused=True)
    masks = some_masks(sparse)
    expected = gradients(dense)
    for module, gradient in gradients(sparsify(sparse, masks)).items():
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, expected[module][masks[module]])


def test_a_sparse_b_stores_and_trains_its_kept_entries_alone():
    model = with_lora(tiny_llama(), fused=True)
    masks = some_masks(model)
    sparsify(model, masks)
    num_kept = sum(int(mask.sum()) for mask in masks.values())
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == num_kept
    assert {p.dtype for p in trainable} == {torch.float32}
    indices = [layer.lora_B[ADAPTER].index for layer in lora_layers(model).values()]
    assert sum(len(index) for index in indices) == num_kept
    assert {index.dtype for index in indices} == {torch.int32}


def saved_bytes(model):
    """Bytes that autograd keeps for the backward pass, parameters and buffers apart."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.ones(8, 64)).sum()
    del loss
    return sum(storages.values())


def one_linear(*, fused):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
    if fused:
        config._register_custom_module({PlainLinear: LoriLinear})
    return get_peft_model(nn.Sequential(nn.Linear(64, 32, bias=False)), config)


def test_the_node_saves_h_and_no_input_activation():
    assert saved_bytes(one_linear(fused=True)) == 8 * 4 * 4  # rows x rank x fp32: s x Aᵀ
    assert saved_bytes(one_linear(fused=False)) >= 8 * 64 * 4  # a trained A needs x


@pytest.mark.parametrize(
    "case", ["two adapters", "dropout", "merged", "disabled", "quantised", "base trained", "A trained"]
)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_what_the_node_cannot_do_gives_pefts_numbers(case, is_sparse):
    def outputs(*, fused):
        options = {"lora_dropout": 0.5} if case == "dropout" else {}
        base = tiny_llama()
        if case == "quantised":
            make_quantised(base)
        model = with_lora(base, fused=fused, **options)
        if is_sparse and fused:
            sparsify(model, some_masks(model))
        return run(case, model)

    ours, peft = outputs(fused=True), outputs(fused=False)
    torch.testing.assert_close(ours, peft, atol=1e-6, rtol=1e-5)


class HalvedLinear(nn.Linear):
    """Stands for a quantised linear: a subclass whose weight is not what it multiplies with."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / 2)


def make_quantised(model):
    for block in model.model.layers:
        projection = HalvedLinear(32, 32, bias=False)
        projection.load_state_dict(block.self_attn.q_proj.state_dict())
        block.self_attn.q_proj = projection


def run(case, model):
    if case == "two adapters":
        config = LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights=False)
        torch.manual_seed(4)
        model.add_adapter("other", config)
        model.base_model.set_adapter([ADAPTER, "other"])
    if case == "merged":
        model.merge_adapter()
    if case == "base trained":
        model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.requires_grad_(True)
    if case == "A trained":
        for layer in lora_layers(model).values():
            layer.lora_A[ADAPTER].weight.requires_grad_(True)
    torch.manual_seed(5)  # of dropout
    with model.disable_adapter() if case == "disabled" else nullcontext():
        return model.train()(TOKENS).logits


def test_a_bias_that_trains_gets_its_gradient():
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
    config._register_custom_module({PlainLinear: LoriLinear})
    model = get_peft_model(nn.Sequential(nn.Linear(6, 3)), config)
    bias = model.base_model.model[0].base_layer.bias.requires_grad_(True)
    model(torch.ones(5, 6)).sum().backward()
    assert bias.grad.tolist() == [5.0, 5.0, 5.0]


def test_what_the_layer_returns_may_be_changed_in_place():
    output = one_linear(fused=True)(torch.ones(8, 64))
    output += 1
    output.sum().backward()


class Packed(nn.Parameter):
    """Stands for the weight of a linear that torchao quantised: the linear keeps its class."""


def test_a_linear_with_a_weight_of_another_type_keeps_pefts_own_layer():
    linear = nn.Linear(6, 3)
    linear.weight = Packed(linear.weight.detach())
    assert not isinstance(linear, PlainLinear)
    assert isinstance(nn.Linear(6, 3), PlainLinear)


def test_a_plain_lora_that_is_added_trains_its_a():
    model = with_lora(tiny_llama(), fused=True)
    model.add_adapter("plain", LoraConfig(r=2, target_modules=TARGETS))
    model.set_adapter("plain")
    for layer in lora_layers(model).values():
        assert layer.lora_A["plain"].weight.requires_grad
        assert not layer.lora_A[ADAPTER].weight.requires_grad


def test_a_quantised_linear_keeps_pefts_own_layer():
    base = tiny_llama()
    make_quantised(base)
    layers = lora_layers(with_lora(base, fused=True))
    assert not isinstance(layers["model.layers.0.self_attn.q_proj"], LoriLinear)
    assert isinstance(layers["model.layers.0.self_attn.k_proj"], LoriLinear)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_merge_unmerge_and_unload(is_sparse):
    model = with_lora(tiny_llama(), fused=True)
    if is_sparse:
        sparsify(model, some_masks(model))
    with torch.no_grad():
        before = model(TOKENS).logits
        model.merge_adapter()
        torch.testing.assert_close(model(TOKENS).logits, before, atol=1e-5, rtol=1e-4)
        model.unmerge_adapter()
        torch.testing.assert_close(model(TOKENS).logits, before, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.merge_and_unload()(TOKENS).logits, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_autocast_computes_in_bf16_and_keeps_fp32_gradients(is_sparse):
    model = with_lora(tiny_llama(), fused=True)
    if is_sparse:
        sparsify(model, some_masks(model))
    exact = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.base_model.model.model.layers[0].mlp.up_proj(torch.ones(1, 32))
        rounded = gradients(model)
    assert hidden.dtype == torch.bfloat16
    for module, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        # bf16 has 8 bits of mantissa, and errors add up over two layers
        torch.testing.assert_close(gradient, exact[module], atol=0.05 * float(exact[module].abs().max()), rtol=0.05)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    plain, checkpointed = (with_lora(tiny_llama(), fused=True).train() for _ in range(2))
    masks = some_masks(plain)
    checkpointed.enable_input_require_grads()
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    expected = gradients(sparsify(plain, masks))
    for module, gradient in gradients(sparsify(checkpointed, masks)).items():
        assert torch.equal(gradient, expected[module])


def test_a_stays_frozen_whatever_peft_does_to_the_adapter():
    model = with_lora(tiny_llama(), fused=True)
    model.set_adapter(ADAPTER)
    with model.disable_adapter():
        pass
    model.base_model.set_requires_grad(ADAPTER, True)
    for layer in lora_layers(model).values():
        assert not layer.lora_A[ADAPTER].weight.requires_grad
        assert layer.lora_B[ADAPTER].weight.requires_grad


def test_a_is_kaiming_uniform():
    a = projection_a("0/nlu", "m", (64, 400))
    bound = 1 / 400**0.5
    assert a.abs().max() <= bound
    assert abs(a.mean()) < 0.01 * bound
    assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)  # of a uniform on ±bound


def test_a_has_the_same_bits_everywhere():
    # In integers and doubles, each rounded to fp32 once: no numpy, no torch
    stream = hashlib.shake_256(b"3/math/model.layers.0.mlp.up_proj/2x5").digest(4 * 2 * 5)
    odd = [2 * (word >> 8) + 1 - 2**24 for word in struct.unpack("<10I", stream)]
    bound = struct.unpack("<f", struct.pack("<f", 1 / math.sqrt(5) / 2**24))[0]
    expected = struct.pack("<10f", *(value * bound for value in odd))
    a = projection_a("3/math", "model.layers.0.mlp.up_proj", (2, 5))
    assert a.numpy().tobytes() == expected
    assert digest([a]) == hashlib.sha256(expected).hexdigest()
    assert digest([a]).startswith("eb705607eb409f69")


@pytest.mark.parametrize("is_sparse", [False, True])
def test_compiled_it_gives_the_same_outputs_and_gradients(is_sparse):
    model = with_lora(tiny_llama(), fused=True)
    if is_sparse:
        sparsify(model, some_masks(model))
    mlp = model.get_base_model().model.layers[0].mlp  # three adapters; the rest of the model is not ours
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))

    def outputs_and_gradients(forward):
        model.zero_grad()
        outputs = forward(hidden)
        outputs.square().sum().backward()
        bs = [layer.lora_B[ADAPTER] for layer in lora_layers(mlp).values()]
        return [outputs, *((b.values if is_sparse else b.weight).grad for b in bs)]

    torch.compiler.reset()  # or it runs what it has of the other parameter
    compiled = torch.compile(mlp, backend="aot_eager")  # no compiler is needed
    expected = outputs_and_gradients(mlp)
    assert len(expected) == 1 + 3
    for ours, theirs in zip(outputs_and_gradients(compiled), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
