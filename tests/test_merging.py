"""Merges from files are PEFT's merges, and concat is the exact weighted sum."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import magnitude_prune, ties
from safetensors.torch import load_file

from lori.config import MergeConfig
from lori.merging import MERGE_METHODS, merge
from lori.methods import apply_adapter, attach, module_name, save_adapter
from lori.models import load_base
from lori.recipes import profile, train_config

PEFT_NAMES = {"concat": "cat", "linear": "linear", "magnitude": "magnitude_prune", "ties": "ties"}  # dare draws


def make_adapter(directory, name, domain, **changes):
    config = replace(train_config(profile("smoke"), name, domain, seed=0), **changes)
    model = attach(load_base("scale"), config)
    torch.manual_seed(len(domain))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_adapter(model, directory, config)
    return directory


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(root / domain, "lora", domain) for domain in ("nlu", "math", "safety")]


def merge_of(method, weights, density=0.5, seed=0):
    return MergeConfig("scale", method, tuple(weights), density, seed)


def weights_of(model):
    return {name: p.detach() for name, p in model.state_dict().items()}


def updates(directory):
    base, adapted = weights_of(load_base("scale")), weights_of(apply_adapter(load_base("scale"), directory))
    return {name: adapted[name] - base[name] for name in base}


@pytest.mark.parametrize("method", PEFT_NAMES)
def test_a_merge_from_files_is_pefts_merge(method, adapters, tmp_path):
    weights = [0.5, 0.3, 0.9]
    merge(adapters, merge_of(method, weights), tmp_path)
    model = PeftModel.from_pretrained(load_base("scale"), str(adapters[0]), adapter_name="0")
    for index, directory in enumerate(adapters[1:], start=1):
        model.load_adapter(str(directory), adapter_name=str(index))
    model.add_weighted_adapter(["0", "1", "2"], weights, "merged", combination_type=PEFT_NAMES[method], density=0.5)
    model.set_adapter("merged")
    expected, ours = weights_of(model.merge_and_unload()), weights_of(apply_adapter(load_base("scale"), tmp_path))
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("names", [("lora", "lori-d"), ("full", "dora"), ("full", "full", "lora")])
def test_concat_is_the_weighted_sum_of_the_updates(names, tmp_path):
    directories = [
        make_adapter(tmp_path / domain, name, domain)
        for name, domain in zip(names, ("nlu", "math", "code"), strict=False)
    ]
    weights = [0.4, 0.7, 0.2][: len(names)]
    merge(directories, merge_of("concat", weights), tmp_path / "out")
    merged, parts = updates(tmp_path / "out"), [updates(directory) for directory in directories]
    for name, update in merged.items():
        expected = sum(weight * part[name] for weight, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("method", "reference"), [("magnitude", magnitude_prune), ("ties", ties)])
def test_methods_without_factors_are_merged_on_their_dense_updates(method, reference, tmp_path):
    directories = [make_adapter(tmp_path / domain, "full", domain) for domain in ("nlu", "safety")]
    merge(directories, merge_of(method, [0.4, 0.7]), tmp_path / "out")
    merged, parts = updates(tmp_path / "out"), [updates(directory) for directory in directories]
    for name, update in merged.items():
        expected = reference([part[name] for part in parts], torch.tensor([0.4, 0.7]), 0.5)
        torch.testing.assert_close(update, expected, atol=1e-6, rtol=1e-4)


def test_linear_on_factors_has_the_papers_cross_terms(adapters, tmp_path):
    merge(adapters[:2], merge_of("linear", [0.5, 0.3]), tmp_path)
    files = [load_file(str(directory / "adapter_model.safetensors")) for directory in adapters[:2]]
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    a, b = ([file[n] for file in files] for n in (name, name.replace("lora_A", "lora_B")))
    s = 2.0  # alpha / rank
    expected = sum(
        (wi * s * wj * s) ** 0.5 * b[i] @ a[j] for i, wi in enumerate([0.5, 0.3]) for j, wj in enumerate([0.5, 0.3])
    )
    torch.testing.assert_close(updates(tmp_path)[module_name(name) + ".weight"], expected, atol=1e-5, rtol=1e-4)


def test_dare_keeps_about_the_density_rescaled_and_repeats_with_its_seed(adapters, tmp_path):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        merge(adapters[:1], merge_of("dare", [0.5], density=0.25, seed=seed), tmp_path / out)
    drawn = {out: load_file(str(tmp_path / out / "adapter_model.safetensors")) for out in "abc"}
    original = load_file(str(adapters[0] / "adapter_model.safetensors"))
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    survived = drawn["a"][name] != 0
    assert survived.float().mean().item() == pytest.approx(0.25, abs=0.05)
    scale = (0.5 * 2.0) ** 0.5 / 0.25  # √(w s), and 1 / density
    torch.testing.assert_close(drawn["a"][name][survived], scale * original[name][survived])
    assert torch.equal(drawn["a"][name], drawn["b"][name])
    assert not torch.equal(drawn["a"][name], drawn["c"][name])


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_one_adapter_at_weight_one_and_density_one_is_unchanged(method, adapters, tmp_path):
    merge(adapters[:1], merge_of(method, [1.0], density=1.0), tmp_path)
    before, after = updates(adapters[0]), updates(tmp_path)
    for name, update in after.items():
        torch.testing.assert_close(update, before[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_the_order_of_adapters_does_not_matter(method, adapters, tmp_path):
    merge(adapters[:2], merge_of(method, [0.5, 0.8], density=1.0), tmp_path / "ab")
    merge(adapters[1::-1], merge_of(method, [0.8, 0.5], density=1.0), tmp_path / "ba")
    first, second = updates(tmp_path / "ab"), updates(tmp_path / "ba")
    for name, update in first.items():
        torch.testing.assert_close(update, second[name], atol=1e-6, rtol=1e-5)


def test_concat_adds_ranks_and_the_others_refuse_different_ones(adapters, tmp_path):
    small = make_adapter(tmp_path / "small", "lora", "code", rank=3, alpha=6)
    merge([adapters[0], small], merge_of("concat", [1.0, 1.0]), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == profile("smoke").rank + 3
    with pytest.raises(ValueError, match=r"Only concat merges adapters of different ranks"):
        merge([adapters[0], small], merge_of("linear", [1.0, 1.0]), tmp_path / "out2")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (merge_of("average", [1.0, 1.0]), r"Unknown merge method 'average'. Known: concat, linear"),
        (merge_of("concat", [1.0]), r"2 adapters need 2 weights, not 1"),
        (merge_of("concat", [1.0, -1.0]), r"not negative"),
        (merge_of("concat", [1.0, float("nan")]), r"finite"),
        (merge_of("ties", [1.0, 1.0], density=0.0), r"0 < density <= 1"),
    ],
)
def test_a_merge_that_cannot_be_is_refused_before_anything_is_written(config, message, adapters, tmp_path):
    with pytest.raises(ValueError, match=message):
        merge(adapters[:2], config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
