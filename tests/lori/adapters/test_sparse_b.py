"""A sparse B: it loads and saves as a dense weight, and trains what its mask keeps."""

import pytest
import torch
from torch import nn

from helpers.tiny_llama import loss_of, some_masks, tiny_llama, with_lora
from lori.adapters.attach import sparsify
from lori.adapters.attached import ADAPTER, lora_layers
from lori.adapters.layer import FlatValues, SparseB


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
