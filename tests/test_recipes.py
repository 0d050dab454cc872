"""The tables hold together, and a wrong name is answered with the right ones."""

import pytest

from lori.domains import DOMAINS
from lori.recipes import PROFILES, data_config, eval_config, merge_config, profile, train_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": "gpt"}, r"Unknown base model 'gpt'\. Known: scale"),
        ({"domains": ["nlu", "law"]}, r"Unknown domain 'law'\. Known: nlu, math, code, safety"),
        ({"methods": ["ia3"]}, r"Unknown method 'ia3'\. Known: base, full"),
        ({"merge_methods": ["mean"]}, r"Unknown merge method 'mean'\. Known: concat"),
        ({"scope": "row"}, r"Unknown scope 'row'"),
        ({"sparsity": 1.5}, r"0 <= sparsity < 1"),
        ({"rank": 0}, r"rank is at least 1"),
        ({"seeds": []}, r"seeds is \[\]: name at least one, each once"),
        ({"domains": ["nlu", "nlu"]}, r"each once"),
        ({"weights": [0.5, 0.5]}, r"4 adapters need 4 weights, not 2"),
        ({"weights": [0.5, 0.5, 0.5, float("nan")]}, r"finite"),
        ({"density": 1.5}, r"0 < density <= 1"),
        ({"merged": ["base"]}, r"No merge weight for \('base', 'concat'\)"),
    ],
)
def test_a_wrong_name_or_number_is_refused_with_what_is_known(changes, message):
    with pytest.raises(ValueError, match=message):
        profile("scale", **changes)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match=r"Unknown profile 'big'\. Known: scale, smoke"):
        profile("big")


@pytest.mark.parametrize("name", PROFILES)
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
