"""Masks: what is kept, in each scope, exactly."""

import pytest
import torch

from lori.config import MaskConfig
from lori.masks import SCOPES, load_masks, magnitude_masks, num_kept, save_masks

BS = {
    "model.layers.0.self_attn.q_proj": torch.tensor([[9.0, -8.0], [0.1, 0.2]]),
    "model.layers.0.mlp.up_proj": torch.tensor([[0.3, 7.0], [0.4, 0.5]]),
    "model.layers.1.self_attn.q_proj": torch.tensor([[0.6, -0.7], [0.8, 0.9]]),
    "model.layers.1.mlp.up_proj": torch.tensor([[-6.0, 5.0], [1.0, 1.1]]),
}


def kept(masks):
    return {round(value, 1) for name, b in BS.items() for value in b[masks[name]].abs().tolist()}


@pytest.mark.parametrize(
    ("scope", "largest_quarter_of_each_group"),
    [
        ("model", {9.0, 8.0, 7.0, 6.0}),  # of all 16
        ("module", {9.0, 8.0, 7.0, 6.0}),  # 2 of 8 in attention, 2 of 8 in mlp
        ("projection", {9.0, 8.0, 7.0, 6.0}),  # here the same groups as module
        ("layer", {9.0, 8.0, 6.0, 5.0}),  # 2 of 8 in each layer
        ("matrix", {9.0, 7.0, 0.9, 6.0}),  # 1 of 4 in each matrix
    ],
)
def test_the_largest_magnitudes_of_each_group_are_kept(scope, largest_quarter_of_each_group):
    assert kept(magnitude_masks(BS, MaskConfig(sparsity=0.75, scope=scope))) == largest_quarter_of_each_group


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_exactly_the_asked_for_number_is_kept(scope, sparsity):
    torch.manual_seed(0)
    bs = {name: torch.randn(60, 10) for name in BS}
    masks = magnitude_masks(bs, MaskConfig(sparsity, scope))
    num_groups = {"model": 1, "module": 2, "projection": 2, "layer": 2, "matrix": 4}[scope]
    assert num_kept(masks) == num_groups * int((1 - sparsity) * (2400 // num_groups))


def test_ties_go_to_the_lower_index():
    masks = magnitude_masks({"m.0.q_proj": torch.ones(2, 3)}, MaskConfig(sparsity=0.5, scope="model"))
    assert masks["m.0.q_proj"].tolist() == [[True, True, True], [False, False, False]]


def test_kept_magnitudes_are_those_at_or_above_the_quantile():
    torch.manual_seed(0)
    b = torch.randn(100, 32)
    mask = magnitude_masks({"m.0.q_proj": b}, MaskConfig(0.9, "model"))["m.0.q_proj"]
    threshold = b.abs().flatten().kthvalue(3200 - 319 + 1).values  # int((1 − 0.9) · 3200) is 319 in floating point
    assert torch.equal(mask, b.abs() >= threshold)


def test_a_mask_survives_its_file(tmp_path):
    torch.manual_seed(0)
    masks = {"m.0.q_proj": torch.rand(13, 3) > 0.5, "m.0.up_proj": torch.rand(7, 3) > 0.9}
    save_masks(masks, tmp_path)
    loaded = load_masks(tmp_path)
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MaskConfig(0.9, "rowwise"), r"Unknown scope 'rowwise'. Known: model, module"),
        (MaskConfig(1.0, "model"), r"0 <= sparsity < 1"),
        (MaskConfig(-0.1, "model"), r"0 <= sparsity < 1"),
        (MaskConfig(0.99, "model"), r"keeps none of the 16 entries"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        magnitude_masks(BS, config)
