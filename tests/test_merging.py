"""Merges from files are PEFT's merges, and concat is the exact weighted sum."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import magnitude_prune, ties
from safetensors.torch import load_file

from lori.adapters.attach import apply_adapter, attach, save_adapter
from lori.adapters.merging import merge
from lori.adapters.peft_files import module_name, open_adapter, write_adapter
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS
from lori.choices.merge_methods import MERGE_METHODS
from lori.config import MergeConfig
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config

SCALE = BASE_MODELS["scale"]

# All but dare, which draws
PEFT_NAMES = {"concat": "cat", "linear": "linear", "svd": "svd", "magnitude": "magnitude_prune", "ties": "ties"}
ROW, COLUMN = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]])


def make_adapter(directory, name, domain, **changes):
    config = replace(train_config(profile("smoke"), name, domain, seed=0), **changes)
    model = attach(load_base(SCALE), config)
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
    return MergeConfig(SCALE.identity, method, tuple(weights), density, seed, match_norms=False)


def weights_of(model):
    return {name: p.detach() for name, p in model.state_dict().items()}


def updates(directory):
    base, adapted = (
        weights_of(load_base(SCALE)),
        weights_of(apply_adapter(load_base(SCALE), directory)),
    )
    return {name: adapted[name] - base[name] for name in base}


def written(directory, factors, **changes):
    """An adapter of (a, b) by module, at scaling 2, of a base model that nobody needs."""
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    tensors |= changes.pop("tensors", {})
    rank = next(iter(factors.values()))[0].shape[0]
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": SCALE.identity,
        "r": rank,
        "lora_alpha": 2 * rank,
    }
    write_adapter(directory, tensors, settings | {"target_modules": sorted(factors)} | changes, {})
    return directory


def products(directory):
    with open_adapter(directory) as adapter:
        return {m: adapter.scaling(m) * adapter.b(m) @ adapter.a(m) for m in adapter.modules}


def pefts_merge(directories, weights, method):
    model = PeftModel.from_pretrained(load_base(SCALE), str(directories[0]), adapter_name="0")
    for index, directory in enumerate(directories[1:], start=1):
        model.load_adapter(str(directory), adapter_name=str(index))
    names = [str(index) for index in range(len(directories))]
    model.add_weighted_adapter(names, weights, "merged", combination_type=PEFT_NAMES[method], density=0.5)
    model.set_adapter("merged")
    return weights_of(model.merge_and_unload())


def assert_merged(out, expected):
    for name, value in weights_of(apply_adapter(load_base(SCALE), out)).items():
        torch.testing.assert_close(value, expected[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.9], [0.5, -0.3, 0.9]])
@pytest.mark.parametrize("method", PEFT_NAMES)
def test_a_merge_from_files_is_pefts_merge(method, weights, adapters, tmp_path):
    merge(adapters, merge_of(method, weights), tmp_path)
    assert_merged(tmp_path, pefts_merge(adapters, weights, method))


@pytest.mark.parametrize("method", PEFT_NAMES)
def test_a_module_that_only_some_have_is_merged_from_those_as_in_peft(method, adapters, tmp_path):
    few = make_adapter(tmp_path / "few", "lora", "code", projections=("q_proj", "down_proj"))
    merge([few, adapters[0]], merge_of(method, [0.5, 0.3]), tmp_path / "out")
    assert_merged(tmp_path / "out", pefts_merge([few, adapters[0]], [0.5, 0.3], method))


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_different_ranks_on_different_modules_are_merged_as_in_peft(method, adapters, tmp_path):
    few = make_adapter(tmp_path / "few", "lora", "code", projections=("q_proj", "v_proj"), rank=3, alpha=12)
    merge([few, adapters[0]], merge_of(method, [0.5, 0.3]), tmp_path / "out")
    assert_merged(tmp_path / "out", pefts_merge([few, adapters[0]], [0.5, 0.3], method))


def test_svd_is_the_best_approximation_of_the_sum_at_the_largest_rank(tmp_path):
    torch.manual_seed(0)
    factors = [(torch.randn(rank, 7), torch.randn(5, rank)) for rank in (2, 1)]
    directories = [written(tmp_path / str(index), {"p": pair}) for index, pair in enumerate(factors)]
    merge(directories, merge_of("svd", [0.5, 0.8]), tmp_path / "out")
    u, singular, v = torch.linalg.svd(sum(2 * w * b @ a for w, (a, b) in zip([0.5, 0.8], factors, strict=True)))
    torch.testing.assert_close(products(tmp_path / "out")["p"], u[:, :2] @ singular[:2].diag() @ v[:2])


def test_svd_fills_up_what_a_small_module_lacks(tmp_path):
    wide = torch.eye(3)
    directory = written(tmp_path / "a", {"p": (torch.ones(3, 2), torch.ones(2, 3)), "q": (wide, wide)})
    merge([directory], merge_of("svd", [1.0]), tmp_path / "out")
    with open_adapter(tmp_path / "out") as merged:
        assert merged.a("p").shape == (3, 2)
    torch.testing.assert_close(products(tmp_path / "out")["p"], torch.full((2, 2), 6.0))


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


def test_one_adapter_is_pruned_as_several_are(tmp_path):
    a, b = torch.tensor([[4.0, 1.0]]), torch.tensor([[1.0], [3.0]])
    merge([written(tmp_path / "a", {"p": (a, b)})], merge_of("magnitude", [1.0], density=0.5), tmp_path / "out")
    expected = torch.tensor([[0.0, 0.0], [24.0, 0.0]])  # 2 · 3 · 4
    torch.testing.assert_close(products(tmp_path / "out")["p"], expected)


@pytest.mark.parametrize("method", ["concat", "linear", "svd"])
def test_every_module_has_its_own_scaling(method, tmp_path):
    ones = torch.ones(4, 1), torch.ones(1, 4)  # b @ a is 4
    patterns = {"rank_pattern": {"q": 1}, "alpha_pattern": {"p": 6}, "use_rslora": True}
    factors = {"p": ones, "x.q": (torch.ones(1, 1), torch.ones(1, 1))}
    merge([written(tmp_path / "a", factors, **patterns)], merge_of(method, [0.5]), tmp_path / "out")
    merged = products(tmp_path / "out")
    torch.testing.assert_close(merged["p"], torch.tensor([[0.5 * 6 / 2 * 4]]))  # alpha / √rank
    torch.testing.assert_close(merged["x.q"], torch.tensor([[0.5 * 8.0]]))
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (4, 4, False)
    assert (settings["rank_pattern"], settings["alpha_pattern"]) == ({}, {})


def test_a_merge_is_of_all_target_modules_and_says_how_it_was_made(tmp_path):
    first = written(tmp_path / "a", {"x.p": (ROW, COLUMN)}, target_modules=["p"], task_type="CAUSAL_LM")
    second = written(tmp_path / "b", {"x.q": (ROW, COLUMN)}, target_modules=["q"])
    pattern = written(tmp_path / "c", {"x.r": (ROW.bfloat16(), COLUMN.bfloat16())}, target_modules=r"x\..*")
    merge([first, second], merge_of("concat", [1.0, 0.5]), tmp_path / "names")
    merge([first, pattern], merge_of("concat", [1.0, 0.5]), tmp_path / "modules")
    with open_adapter(tmp_path / "names") as merged:
        assert (merged.settings["target_modules"], merged.settings["task_type"]) == (["p", "q"], "CAUSAL_LM")
        how = {
            "base_model": SCALE.identity,
            "method": "concat",
            "weights": [1.0, 0.5],
            "density": 0.5,
            "seed": 0,
        }
        assert merged.metadata == {"merged": {**how, "match_norms": False, "variant": ""}}
    with open_adapter(tmp_path / "modules") as merged:
        assert merged.settings["target_modules"] == ["x.p", "x.r"]
        assert merged.a("x.r").dtype == torch.float32


def test_embeddings_in_an_adapters_file_are_left_out(tmp_path):
    embedding = {"base_model.model.model.embed_tokens.weight": torch.ones(5, 2)}
    directory = written(tmp_path / "a", {"p": (ROW, COLUMN)}, tensors=embedding)
    merge([directory], merge_of("concat", [1.0]), tmp_path / "out")
    with open_adapter(tmp_path / "out") as merged:
        assert (merged.modules, merged.extras) == (["p"], [])


@pytest.mark.parametrize("method", ["concat", "linear", "svd"])
def test_matched_norms_are_the_mean_of_the_whole_updates_norms(method, tmp_path):
    other_row, other_column = ROW.flip(1), COLUMN.flip(0)
    first = written(tmp_path / "a", {"p": (ROW, 3 * COLUMN), "q": (ROW, 4 * COLUMN)})  # norm 2 · 5
    second = written(tmp_path / "b", {"r": (other_row, other_column)})  # norm 2 · 1; the mean is 6
    merge([first, second], replace(merge_of(method, [1.0, 0.5]), match_norms=True), tmp_path / "out")
    merged = products(tmp_path / "out")
    torch.testing.assert_close(merged["p"], 6 * 3 / 5 * COLUMN @ ROW)
    torch.testing.assert_close(merged["q"], 6 * 4 / 5 * COLUMN @ ROW)
    torch.testing.assert_close(merged["r"], 0.5 * 6 * other_column @ other_row)


def test_dense_updates_are_matched_in_norm_too(tmp_path):
    directories = [make_adapter(tmp_path / domain, "full", domain) for domain in ("nlu", "safety")]
    big = apply_adapter(load_base(SCALE), directories[0])
    with torch.no_grad():
        big.model.norm.weight.add_(20)
    big.save_pretrained(str(directories[0]))
    merge(directories, replace(merge_of("linear", [1.0, 0.5]), match_norms=True), tmp_path / "out")
    merged, parts = updates(tmp_path / "out"), [updates(directory) for directory in directories]
    norms = [sum(t.double().square().sum() for t in part.values()).sqrt().item() for part in parts]
    assert norms[0] > 2 * norms[1]
    scales = [weight * sum(norms) / 2 / norm for weight, norm in zip([1.0, 0.5], norms, strict=True)]
    for name, update in merged.items():
        expected = sum(scale * part[name] for scale, part in zip(scales, parts, strict=True))
        torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-4)


def test_an_update_of_zero_has_no_norm_to_match(tmp_path):
    directories = [
        written(tmp_path / name, {"p": (ROW, scale * COLUMN)}) for name, scale in (("good", 1), ("zero", 0))
    ]
    with pytest.raises(ValueError, match=r"The update of \S*/zero is zero"):
        merge(directories, replace(merge_of("concat", [1.0, 1.0]), match_norms=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_concat_adds_ranks_and_the_others_refuse_different_ones(adapters, tmp_path):
    small = make_adapter(tmp_path / "small", "lora", "code", rank=3, alpha=6)
    merge([adapters[0], small], merge_of("concat", [1.0, 1.0]), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == profile("smoke").rank + 3
    with pytest.raises(ValueError, match=r"Only concat and svd merge adapters of different ranks"):
        merge([adapters[0], small], merge_of("linear", [1.0, 1.0]), tmp_path / "out2")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (merge_of("average", [1.0, 1.0]), r"Unknown merge method 'average'. Known: concat, linear"),
        (merge_of("concat", [1.0]), r"2 adapters need 2 weights, not 1"),
        (merge_of("concat", [1.0, float("nan")]), r"finite"),
        (merge_of("ties", [1.0, 1.0], density=0.0), r"0 < density <= 1"),
    ],
)
def test_a_merge_that_cannot_be_is_refused_before_anything_is_written(config, message, adapters, tmp_path):
    with pytest.raises(ValueError, match=message):
        merge(adapters[:2], config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def cut(directory):
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return directory


FIT = {"p": (ROW, COLUMN)}
LONE_A, LONE_BIAS = "base_model.model.q.lora_A.weight", "base_model.model.p.bias"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda out: written(out, FIT, base_model_name_or_path="tall"), r"good of 'scale@\w+', \S*/bad of 'tall'"),
        (lambda out: written(out, FIT, bias="all"), r"bad has bias, which a merge of factors would lose"),
        (lambda out: written(out, FIT, lora_bias=True), r"bad has lora_bias"),
        (lambda out: written(out, FIT, modules_to_save=["lm_head"]), r"bad has modules_to_save"),
        (lambda out: written(out, FIT, kasa_config={"beta": 1}), r"bad has kasa_config"),
        (lambda out: written(out, FIT, tensors={LONE_BIAS: torch.ones(2)}), r"bad has base_model.model.p.bias"),
        (lambda out: written(out, FIT, peft_type="LOHA"), r"bad/adapter_config.json is of a LOHA adapter"),
        (lambda out: written(out, FIT, tensors={LONE_A: ROW}), r"bad is damaged: \S*q.lora_A.weight lacks"),
        (lambda out: written(out, {"p": (ROW, torch.ones(2, 3))}), r"bad: A \[1, 2\] and B \[2, 3\] of p do not fit"),
        (
            lambda out: written(out, {"p": (ROW, torch.ones(3, 1))}),
            r"bad was made for another base model than \S*good",
        ),
        (lambda out: written(out, {"p": (ROW, COLUMN / 0)}), r"bad: p has NaN or infinite entries"),
        (lambda out: written(out, {"p": (ROW * -torch.inf, COLUMN)}), r"bad: p has NaN or infinite entries"),
        (lambda out: cut(written(out, FIT)), r"bad/adapter_model.safetensors is damaged"),
        (lambda out: out, r"bad holds neither an adapter \(adapter_config.json\) nor a model"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_named_and_nothing_is_written(bad, message, tmp_path):
    directories = [written(tmp_path / "good", FIT), bad(tmp_path / "bad")]
    with pytest.raises(ValueError, match=message):
        merge(directories, merge_of("concat", [1.0, 1.0]), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"good", "bad"}


def test_a_failed_merge_leaves_an_older_one_as_it_was(tmp_path):
    out = written(tmp_path / "out", FIT)
    before = {path: path.read_bytes() for path in out.iterdir()}
    late = written(tmp_path / "late", {"p": (ROW, COLUMN), "q": (ROW, torch.nan * COLUMN)})
    with pytest.raises(ValueError, match="late: q has NaN"):
        merge([late], merge_of("concat", [1.0]), out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    merge([out], merge_of("concat", [0.5]), out)  # an adapter may be its own merge's place
    torch.testing.assert_close(products(out)["p"], COLUMN @ ROW)


def test_ranks_that_differ_by_module_are_summed_where_they_agree(tmp_path):
    torch.manual_seed(0)
    pairs = {"p": (torch.randn(2, 3), torch.randn(3, 2)), "q": (torch.randn(1, 3), torch.randn(3, 1))}
    first, second = (written(tmp_path / name, pairs, rank_pattern={"q": 1}) for name in "ab")
    merge([first, second], merge_of("linear", [0.5, 0.5]), tmp_path / "out")
    with open_adapter(tmp_path / "out") as merged:
        assert [merged.a(module).shape[0] for module in "pq"] == [2, 2]
    # (√.5 + √.5)² = 2 times the scaling: alpha 4 / 2 for p, 4 / 1 for q
    torch.testing.assert_close(products(tmp_path / "out")["p"], 2 * 2 * pairs["p"][1] @ pairs["p"][0])
    torch.testing.assert_close(products(tmp_path / "out")["q"], 2 * 4 * pairs["q"][1] @ pairs["q"][0])
    third = written(tmp_path / "c", {"p": pairs["p"], "q": pairs["p"]})
    with pytest.raises(ValueError, match=r"those of q have ranks \[1, 2\]"):
        merge([first, third], merge_of("ties", [0.5, 0.5]), tmp_path / "out2")


def test_svd_of_models_without_factors_is_refused(tmp_path):
    directory = make_adapter(tmp_path / "model", "full", "nlu")
    with pytest.raises(ValueError, match=r"svd needs the low-rank factors that \S*/model lacks"):
        merge([directory], merge_of("svd", [1.0]), tmp_path / "out")


def test_a_damaged_model_or_one_of_another_shape_is_refused(tmp_path):
    directory = make_adapter(tmp_path / "model", "full", "nlu")
    wider = apply_adapter(load_base(SCALE), directory)
    wider.resize_token_embeddings(wider.config.vocab_size + 8)
    wider.save_pretrained(str(tmp_path / "wider"))
    with pytest.raises(ValueError, match=r"wider was made for another base model than scale"):
        merge([directory, tmp_path / "wider"], merge_of("linear", [1.0, 1.0]), tmp_path / "out")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        merge([directory], merge_of("linear", [1.0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
