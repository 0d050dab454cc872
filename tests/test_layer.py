"""The layer: the same numbers as PEFT's and as masked dense gradients, with a fraction of what they store."""

import hashlib
import math
import struct
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lori.adapters.attach import sparsify
from lori.adapters.attached import ADAPTER, lora_layers
from lori.adapters.checked_files import digest
from lori.adapters.layer import FlatValues, LoriLinear, PlainLinear, SparseB, projection_a

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
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    expected = gradients(sparsify(plain, masks))
    for module, gradient in gradients(sparsify(checkpointed, masks)).items():
        assert torch.equal(gradient, expected[module])


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


def test_a_stays_frozen_whatever_peft_does_to_the_adapter():
    model = with_lora(tiny_llama(), fused=True)
    model.set_adapter(ADAPTER)
    with model.disable_adapter():
        pass
    model.base_model.set_requires_grad(ADAPTER, True)
    for layer in lora_layers(model).values():
        assert not layer.lora_A[ADAPTER].weight.requires_grad
        assert layer.lora_B[ADAPTER].weight.requires_grad


def sparse_of(b, mask):
    return SparseB(nn.Parameter(b.clone()), mask)


B = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
MASK = torch.tensor([[True, False], [False, True], [False, False]])


def test_a_sparse_b_is_a_dense_weight_in_a_state_dict():
    b = sparse_of(B * MASK, MASK)
    assert list(b.state_dict()) == ["weight"]
    assert torch.equal(b.state_dict()["weight"], B * MASK)
    b.load_state_dict({"weight": 10 * B * MASK})
    assert b.values.tolist() == [10.0, 40.0]


@pytest.mark.parametrize("start", [B * MASK, B])
def test_a_state_dict_that_differs_outside_the_mask_is_refused(start):
    b = sparse_of(start, MASK)
    with pytest.raises(RuntimeError, match="differs outside the mask"):
        b.load_state_dict({"weight": start + torch.eye(3, 2).flip(0)})


def test_a_state_dict_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match=r"\(2, 3\) for a B of \(3, 2\)"):
        sparse_of(B, MASK).load_state_dict({"weight": B.T})


def test_what_lies_outside_the_mask_stays_and_does_not_train():
    b = sparse_of(B, MASK)
    b.weight.sum().backward()
    assert b.values.grad.tolist() == [1.0, 1.0]
    with torch.no_grad():
        b.values.zero_()
    assert torch.equal(b.weight, B * ~MASK)


def test_an_empty_mask_is_a_frozen_b():
    b = sparse_of(B, torch.zeros(3, 2, dtype=torch.bool))
    assert torch.equal(b(torch.eye(2)), B.T)


@pytest.mark.parametrize("keep_dense", [None, torch.float32])
def test_the_flat_layout_steps_as_one_vector_and_gives_the_same_bits(keep_dense):
    masks = some_masks(with_lora(tiny_llama(), fused=True))
    each = sparsify(with_lora(tiny_llama(), fused=True), masks)
    flat_model = sparsify(with_lora(tiny_llama(), fused=True), masks)
    layers = [layer.lora_B[ADAPTER] for layer in lora_layers(flat_model).values()]
    flat = FlatValues(layers, keep_dense=keep_dense)
    one = torch.optim.AdamW([flat.values], lr=1e-2, weight_decay=0.0)
    many = torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(4):
        for optimizer, model in ((one, flat_model), (many, each)):
            if optimizer is one:
                flat.lend_gradients()
            loss_of(model).backward()
            flat.gradients()
            optimizer.step()
            model.zero_grad()
        flat.scatter()
    if keep_dense:
        assert all(torch.equal(layer.dense, layer.weight) for layer in layers)
    for expected, b in zip((p for p in each.parameters() if p.requires_grad), layers, strict=True):
        assert torch.equal(b.values, expected)
    flat.release()
    assert all(layer.dense is None for layer in layers)


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
