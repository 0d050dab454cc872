"""The tables hold together, and a wrong name is answered with the right ones."""

import json
from dataclasses import asdict, replace
from itertools import product

import pytest

from helpers.bases import config_of, write_base
from helpers.rows import real_data_dir
from lori.base_models.resolve import base_model
from lori.choices.domains import DOMAINS
from lori.choices.methods import METHODS
from lori.choices.profiles import CONTROLS, SCALE
from lori.recipes.checked_profile import profile
from lori.recipes.configs import data_config, eval_config, mask_config, merge_config, random_mask_config, train_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": "gpt"}, r"Unknown base model 'gpt'\. Known: scale"),
        ({"domains": ["nlu", "law"]}, r"Unknown domain 'law'\. Known: nlu, math, code, safety"),
        ({"methods": ["lorax"]}, r"Unknown method 'lorax'\. Known: base, full"),
        ({"merge_methods": ["mean"]}, r"Unknown merge method 'mean'\. Known: concat"),
        ({"scope": "row"}, r"Unknown scope 'row'"),
        ({"sparsity": 1.5}, r"0 <= sparsity < 1"),
        ({"rank": 0}, r"rank is at least 1"),
        ({"calibration_rows": 15}, r"calibration_rows is at least a batch of 16"),
        ({"merged": ["base"]}, r"base trains nothing that could be merged"),
        ({"learning_rates": {"lora": 0.0}}, r"The learning rate of lora is a positive number"),
        ({"learning_rates": {"lorax": 0.1}}, r"Unknown method 'lorax'"),
        ({"seeds": []}, r"seeds is \[\]: name at least one, each once"),
        ({"domains": ["nlu", "nlu"]}, r"each once"),
        ({"weights": [0.5, 0.5]}, r"4 adapters need 4 weights, not 2"),
        ({"weights": [0.5, 0.5, 0.5, float("nan")]}, r"finite"),
        ({"density": 1.5}, r"0 < density <= 1"),
        ({"merged": ["rslora"]}, "There is no weight for merging rslora by concat: give `weights`"),
    ],
)
def test_a_wrong_name_or_number_is_refused_with_what_is_known(changes, message):
    with pytest.raises(ValueError, match=message):
        profile("scale", **changes)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match=r"Unknown profile 'big'\. Known: scale, smoke"):
        profile("big")


@pytest.mark.parametrize("name", ["scale", "smoke"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_trains_the_same_number_of_steps(name, domain):
    row = profile(name)
    config = data_config(row, domain, "train")
    num_steps = -(-config.num_rows // row.batch_size) * DOMAINS[domain].num_epochs
    assert abs(num_steps - row.num_steps) <= DOMAINS[domain].num_epochs


def test_alpha_is_twice_the_rank_as_in_the_paper():
    assert train_config(profile("scale", rank=32), "lori-d", "nlu", 0).alpha == 64


def test_one_weight_an_adapter():
    assert len(merge_config(profile("scale"), "lora", "concat", 0).weights) == len(profile("scale").domains)


def test_code_is_sampled_and_the_rest_is_greedy():
    sampled = {domain for domain in DOMAINS if eval_config(profile("scale"), domain).temperature > 0}
    assert sampled == {"code"}


def test_a_narrowed_profile_drops_what_it_cannot_make():
    only_math = profile("scale", domains=["math"], methods=["lora"])
    assert only_math.merged == ()
    assert only_math.continual_methods == ()


def test_the_papers_profile_has_all_rows_its_lengths_and_twenty_samples(tmp_path):
    paper = profile("paper", data_dir=str(real_data_dir(tmp_path)))
    assert (paper.rank, paper.batch_size, paper.sparsity) == (32, 32, 0.9)
    assert data_config(paper, "math", "train").num_rows is None
    assert data_config(paper, "math", "test").num_rows is None
    trained, scored = train_config(paper, "lori-s", "code", 0), eval_config(paper, "code")
    assert (trained.max_length, trained.max_prompt_length, trained.num_epochs) == (512, 256, 2)
    assert (trained.alpha, trained.learning_rate, trained.dtype) == (64, 5e-4, "bfloat16")
    assert (scored.num_samples, scored.temperature, scored.top_p, scored.max_new_tokens) == (20, 0.2, 0.95, 512)
    assert trained.base_model == "llama-3-8b@8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"


def test_the_authors_style_has_a_begin_token_before_humaneval_alone():
    authors = profile("paper", prompt_style="authors")
    assert not train_config(authors, "lori-d", "nlu", 0).add_bos
    assert {name: eval_config(authors, name).add_bos for name in DOMAINS} == {
        "nlu": False,
        "math": False,
        "code": True,
        "safety": False,
    }


def test_four_adapters_of_a_real_base_merge_at_the_released_weights():
    assert merge_config(profile("paper"), "lori-s", "linear", 0).weights == (0.3,) * 4
    assert merge_config(profile("paper", domains=["nlu", "math", "code"]), "lori-d", "concat", 0).weights == (0.5,) * 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("paper", {"base_model": "scale"}, "scale has no real rows to train on: use the profile scale"),
        ("paper", {"prompt_style": "chat"}, "Unknown prompt style 'chat'. Known: plain, authors"),
    ],
)
def test_what_a_profile_cannot_be_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        profile(name, **changes)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.control_of])
def test_a_control_differs_in_one_thing_and_takes_over_the_numbers(name):
    row, original = METHODS[name], METHODS[METHODS[name].control_of]
    changed = {field for field in asdict(row) if getattr(row, field) != getattr(original, field)} - {"control_of"}
    assert changed - {"mask_from"} in ({"random_mask"}, {"fresh_a"}, {"shared_a"}, {"a_from"}, {"disjoint"})
    if "mask_from" in changed:  # its mask is of the method that differs in the same thing
        source = METHODS[row.mask_from]
        assert source.control_of == original.mask_from
        assert (source.shared_a, source.a_from) == (row.shared_a, row.a_from)
    for base in ("scale", "llama-3-8b"):
        chosen = profile("paper" if base == "llama-3-8b" else "scale")
        config, other = (train_config(chosen, method, "math", 0) for method in (name, row.control_of))
        same = replace(config, method=other.method, shared_a=False, fresh_a=False)
        assert same == other
        assert merge_config(chosen, name, "concat", 0) == merge_config(chosen, row.control_of, "concat", 0)


def test_what_departs_from_the_recipe_is_named_so_that_it_is_taken_for_nothing_else():
    usual = profile("scale")
    assert not any(train_config(usual, name, "math", 0).variant for name in usual.methods)
    changed = profile("scale", sparsity=0.5, calibration_rows=48, learning_rates={"lora": 0.001, "lori-s": 0.04})
    named = {name: train_config(changed, name, "math", 0).variant for name in ("lora", "lori-d", "lori-s")}
    assert named == {"lora": "rate 0.001", "lori-d": "", "lori-s": "sparsity 0.5 calibration 48"}
    assert mask_config(changed, "lori-d", "math").variant == "sparsity 0.5 calibration 48"
    assert random_mask_config(changed, "lori-d", "math", 0).variant == "sparsity 0.5 calibration 48"
    assert train_config(usual, "lora", "math", 0, 96).variant == "96 rows"
    assert data_config(usual, "math", "train", 96).num_rows == 96
    weighted = profile("scale", weights=[0.5] * 4, match_norms=True)
    assert merge_config(weighted, "lora", "concat", 0).variant == "weights 0.5 norms matched"
    assert merge_config(profile("scale", weights=[0.5] * 4), "lori-d", "concat", 0).variant == ""  # they are its own
    assert merge_config(usual, "lora", "concat", 0).variant == ""
    uneven = profile("scale", weights=[1.0, 0.5, 1.0, 1.0], density=0.5)
    assert merge_config(uneven, "lora", "ties", 0).variant == "weights 1,0.5,1,1 density 0.5"
    assert train_config(profile("smoke"), "lori-s", "nlu", 0).variant == "4 steps"
    assert mask_config(profile("smoke"), "lori-d", "nlu").variant == "4 steps"
    assert train_config(profile("paper"), "lori-s", "nlu", 0).variant == ""


def test_other_rates_are_named_in_all_that_comes_of_them_and_a_control_may_have_its_own():
    changed = profile("scale", learning_rates={"lora": 0.001, "lori-d": 0.02, "lori-d-trained-a": 0.005})
    trained = {name: train_config(changed, name, "math", 0) for name in METHODS if name != "base"}
    rates = {name: config.learning_rate for name, config in trained.items()}
    assert (rates["lora"], rates["lori-d"], rates["lori-d-trained-a"]) == (0.001, 0.02, 0.005)
    assert rates["lori-d-shared-a"] == 0.02  # of what it controls
    assert trained["lori-d-shared-a"].variant == "rate 0.02"
    assert trained["lori-s"].variant == "lori-d rate 0.02"
    assert trained["lori-s-trained-a"].variant == "lori-d-trained-a rate 0.005 lora rate 0.001"
    assert mask_config(changed, "lori-d", "math").variant == "rate 0.02"
    assert merge_config(changed, "lori-s", "concat", 0).variant == "lori-d rate 0.02"
    authors = profile("paper", prompt_style="authors")
    assert train_config(authors, "lora", "math", 0).variant == "prompts authors"
    # the rate of nlu on this base, but of no other domain
    mistral = profile("paper", base_model="mistral-7b", learning_rates={"lori-d": 1e-5})
    assert train_config(mistral, "lori-d", "nlu", 0).variant == ""
    assert train_config(mistral, "lori-d", "nlu", 0, first="safety").variant == "rate 1e-05"


def test_a_scale_model_of_another_size_has_the_miniature_rows_and_the_rates_that_were_chosen_for_it(tmp_path):
    wide = write_base(tmp_path / "wide", config_of("llama"))
    (wide / "recipe.json").write_text('{"suite": "miniature"}')
    is_nothing_chosen = (
        r"choose_recipe.json is missing, or of other weights than those beside it: choose learning rates"
    )
    with pytest.raises(ValueError, match=is_nothing_chosen):
        profile("scale", base_model="wide", models_dir=str(tmp_path))
    weights = {f"{method} {merge}": 0.75 for method, merge in product(SCALE.merged, SCALE.merge_methods)}
    choice = {
        "base_model": base_model("wide", str(tmp_path)).identity,
        "learning_rates": {"lori-s": 0.5},
        "merge_weights": weights,
    }
    (wide / "choose_recipe.json").write_text(json.dumps(choice))
    changed = profile("scale", base_model="wide", models_dir=str(tmp_path))
    assert data_config(changed, "nlu", "test") == data_config(SCALE, "nlu", "test")
    for method in ("lori-s", "lori-s-random-mask"):
        assert train_config(changed, method, "nlu", seed=0).learning_rate == 0.5
        assert merge_config(changed, method, "ties", seed=0).weights == (0.75,) * 4
    assert train_config(changed, "lori-s", "nlu", seed=0).variant == "", "it is the recipe of this base"
    (wide / "choose_recipe.json").write_text(json.dumps({**choice, "base_model": "wide@0123456789ab"}))
    with pytest.raises(ValueError, match=is_nothing_chosen):
        train_config(changed, "lori-s", "nlu", seed=0)


def test_the_controls_are_all_of_them():
    asked = {name for names in CONTROLS.values() for name in names}
    assert asked == {name for name, row in METHODS.items() if row.control_of}
    for stage, names in CONTROLS.items():
        assert {METHODS[name].control_of for name in names} <= set(getattr(profile("scale"), stage))
