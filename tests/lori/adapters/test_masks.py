"""Masks: what is kept, in each scope, exactly."""

import hashlib
import struct

import pytest
import torch

from helpers.mask_inputs import BS, normal, same, save_bs
from helpers.merge_inputs import make_adapter
from lori.adapters.interference import compare_masks, whole_overlap
from lori.adapters.masks import (
    check_masks,
    draw_masks,
    extract_masks,
    magnitude_masks,
    num_kept,
    random_masks,
)
from lori.choices.scopes import SCOPES
from lori.config import MaskConfig, RandomMaskConfig

SHAPES = dict.fromkeys(BS, (2, 2))


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
    num_groups = {"model": 1, "module": 2, "projection": 2, "layer": 2, "matrix": 4}[scope]
    expected = num_groups * int((1 - sparsity) * (2400 // num_groups))
    assert num_kept(magnitude_masks(bs, MaskConfig(sparsity, scope))) == expected
    shapes = dict.fromkeys(BS, (60, 10))
    assert num_kept(random_masks(shapes, MaskConfig(sparsity, scope), seed=0)) == expected


@pytest.mark.parametrize(
    ("module", "module_group", "layer"),
    [
        ("model.layers.10.self_attn.o_proj", "attention", "model.layers.10."),
        ("model.layers.1.mlp.down_proj", "mlp", "model.layers.1."),
        ("transformer.h.3.attn.c_attn", "attention", "transformer.h.3."),
        ("transformer.h.3.mlp.c_fc", "mlp", "transformer.h.3."),
        ("gpt_neox.layers.2.attention.query_key_value", "attention", "gpt_neox.layers.2."),
        ("encoder.block.4.layer.0.SelfAttention.q", "attention", "encoder.block.4."),
        ("decoder.block.4.layer.2.DenseReluDense.wi", "mlp", "decoder.block.4."),
        ("model.layers.5.mlp.experts.7.up_proj", "mlp", "model.layers.5."),
        ("lm_head", "mlp", ""),
    ],
)
def test_scopes_read_the_names_of_other_architectures(module, module_group, layer):
    assert (SCOPES["module"](module), SCOPES["layer"](module)) == (module_group, layer)


# The reference: a stable sort of everything, so that ties stay in module order and flat order
def first_of_the_sorted(bs, sparsity):
    magnitudes = torch.cat([b.flatten() for b in bs.values()]).double().abs()
    number = int((1 - sparsity) * len(magnitudes))
    order = sorted(range(len(magnitudes)), key=lambda i: -magnitudes[i].item())
    expected = torch.zeros(len(magnitudes), dtype=torch.bool)
    expected[order[:number]] = True
    return expected


DISTRIBUTIONS = {
    "normal": normal(41, 24),
    "bf16-valued": (0.01 * normal(41, 24)).bfloat16().float(),
    "bf16": (0.01 * normal(41, 24)).bfloat16(),
    "fp16": normal(41, 24).half(),
    "five values": (2 * normal(41, 24)).round().clamp(-2, 2),
    "all equal": torch.full((41, 24), -0.25),
    "all zero": torch.zeros(41, 24),
    "zeros of both signs": torch.tensor([0.0, -0.0]).repeat(41, 12),
    "mostly zero": normal(41, 24) * (normal(41, 24) > 1.7),
    "denormal": normal(41, 24) * 2.0**-140,
    "heavy-tailed": normal(41, 24).pow(15).clamp(-3e38, 3e38),
    "neighbours in the last bit": (torch.arange(984).view(41, 24) % 7 + 0x3F80_0000)
    .to(torch.int32)
    .view(torch.float32),
    "transposed": normal(24, 41).t(),
}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_what_is_kept_is_what_a_stable_sort_puts_first(distribution, sparsity):
    whole = DISTRIBUTIONS[distribution]
    bs = {"m.0.q_proj": whole[:20], "m.0.v_proj": whole[20:21], "m.1.q_proj": whole[21:]}
    masks = magnitude_masks(bs, MaskConfig(sparsity, "model"))
    flat = torch.cat([masks[name].flatten() for name in bs])
    assert torch.equal(flat, first_of_the_sorted(bs, sparsity))


def test_ties_go_to_the_lower_index_and_the_earlier_module():
    bs = {"m.1.q_proj": torch.ones(2, 3), "m.0.q_proj": torch.ones(2, 3)}
    masks = magnitude_masks(bs, MaskConfig(sparsity=0.6, scope="model"))  # int(0.4 · 12) is 4
    assert masks["m.1.q_proj"].tolist() == [[True, True, True], [True, False, False]]
    assert not masks["m.0.q_proj"].any()


def test_kept_magnitudes_are_those_at_or_above_the_quantile():
    b = normal(100, 32)
    mask = magnitude_masks({"m.0.q_proj": b}, MaskConfig(0.9, "model"))["m.0.q_proj"]
    threshold = b.abs().flatten().kthvalue(3200 - 319 + 1).values  # int((1 − 0.9) · 3200) is 319 in floating point
    assert torch.equal(mask, b.abs() >= threshold)


def test_kthvalue_agrees_in_every_layer_of_a_deeper_model():
    bs = {f"h.{layer}.{name}": normal(300, 8) * (layer + 1) for layer in range(3) for name in ("c_attn", "c_fc")}
    masks = magnitude_masks(bs, MaskConfig(0.75, "layer"))
    for layer in range(3):
        names = [f"h.{layer}.c_attn", f"h.{layer}.c_fc"]
        magnitudes, flat = (torch.cat([d[name].flatten() for name in names]) for d in (bs, masks))
        threshold = magnitudes.abs().kthvalue(4800 - 1200 + 1).values
        assert magnitudes.abs()[flat].min() == threshold
        assert int(flat.sum()) == 1200


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_b_that_is_not_finite_is_refused_by_its_module(value):
    bs = {**BS, "model.layers.1.mlp.up_proj": torch.tensor([[1.0, value], [2.0, 3.0]])}
    with pytest.raises(ValueError, match=r"B of model\.layers\.1\.mlp\.up_proj holds NaN or infinity"):
        magnitude_masks(bs, MaskConfig(0.5, "model"))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", SCOPES)
def test_an_adapters_files_are_enough_for_its_mask(tmp_path, scope, dtype):
    save_bs(tmp_path / "adapter", dtype)
    config = MaskConfig(0.75, scope)
    assert same(extract_masks(tmp_path / "adapter", config), magnitude_masks(BS, config))


def test_a_disjoint_mask_keeps_the_largest_of_what_the_other_leaves(tmp_path):
    save_bs(tmp_path, torch.float32)
    first = extract_masks(tmp_path, MaskConfig(0.75, "model"))
    second = extract_masks(tmp_path, MaskConfig(0.75, "model"), excluded=first)
    assert (kept(first), kept(second)) == ({9.0, 8.0, 7.0, 6.0}, {5.0, 1.1, 1.0, 0.9})
    with pytest.raises(ValueError, match=r"too few entries that train outside the other mask: take a higher sparsity"):
        extract_masks(tmp_path, MaskConfig(0.1, "model"), excluded=first)  # 14 of 16, of which 12 are left
    with pytest.raises(ValueError, match="not of one adapter"):
        extract_masks(tmp_path, MaskConfig(0.75, "model"), excluded={})


def test_a_mask_of_no_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        extract_masks(tmp_path, MaskConfig(0.9, "model"))


def test_a_random_mask_keeps_the_largest_of_a_hash_stream():
    def scores(seed, module, num_entries):
        stream = hashlib.shake_256(f"random-mask/{seed}/{module}/{num_entries}x1".encode()).digest(4 * num_entries)
        return [abs(2 * (word >> 8) + 1 - 2**24) for (word,) in struct.iter_unpack("<I", stream)]

    masks = random_masks({"m.0.q_proj": (2, 4), "m.0.up_proj": (3, 4)}, MaskConfig(0.75, "model"), seed=7)
    all_scores = scores(7, "m.0.q_proj", 8) + scores(7, "m.0.up_proj", 12)
    threshold = sorted(all_scores)[-5]  # a quarter of 20
    found = masks["m.0.q_proj"].flatten().tolist() + masks["m.0.up_proj"].flatten().tolist()
    assert found == [score >= threshold for score in all_scores]


def test_another_seed_is_another_random_mask():
    shapes = {"m.0.q_proj": (100, 4)}
    first, again, other = (random_masks(shapes, MaskConfig(0.5, "model"), seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_a_random_mask_of_an_adapter_has_its_shapes_and_is_another_for_each_domain(tmp_path):
    adapter = make_adapter(tmp_path / "adapter", "lori-d", "nlu")
    magnitudes = extract_masks(adapter, MaskConfig(0.9, "layer"))
    draws = ("0/nlu", "0/nlu", "0/math")
    nlu, again, math = (draw_masks(adapter, RandomMaskConfig(0.9, "layer", draw)) for draw in draws)
    shapes = {module: tuple(mask.shape) for module, mask in magnitudes.items()}
    assert {module: tuple(mask.shape) for module, mask in nlu.items()} == shapes
    assert num_kept(nlu) == num_kept(magnitudes)
    assert same(nlu, again)
    assert whole_overlap(compare_masks(nlu, math)) == pytest.approx(1.0, abs=0.3)
    assert whole_overlap(compare_masks(nlu, magnitudes)) == pytest.approx(1.0, abs=0.3)


def test_a_random_mask_favours_no_module_whatever_its_rank():
    shapes = {"m.0.q_proj": (4000, 8), "m.0.up_proj": (500, 64)}
    masks = random_masks(shapes, MaskConfig(0.9, "model"), seed=0)
    for mask in masks.values():
        assert abs(mask.float().mean().item() - 0.1) < 5 * (0.09 / 32_000) ** 0.5  # five standard errors


def test_masks_of_the_same_modules_and_shapes_fit():
    check_masks({name: b > 1 for name, b in BS.items()}, SHAPES)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {**SHAPES, "lm_head": (2, 2)},
            r"4 modules, the adapter 5: not of one adapter\. Only the adapter has lm_head",
        ),
        (dict(list(SHAPES.items())[1:]), r"4 modules, the adapter 3: not of one adapter\. Only the mask has model\."),
        (dict.fromkeys(SHAPES, (2, 4)), r"is \(2, 2\) for a B of \(2, 4\): made at another rank"),
    ],
)
def test_masks_of_another_adapter_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        check_masks({name: b > 1 for name, b in BS.items()}, shapes)
