"""The paper's recipes are the paper's: every row of its table, the rule for all others, and the released merges."""

import pytest

from lori.recipes.paper_numbers import merge_weight, paper_config, recipe

LLAMA, MISTRAL = "meta-llama/Meta-Llama-3-8B", "mistralai/Mistral-7B-v0.1"
# domain, base, rank, LoRI-D's rate and α, LoRI-S's rate and α (paper, appendix, hyper-parameters)
TABLE = [
    ("nlu", LLAMA, 32, 5e-5, 64, 5e-4, 64),
    ("nlu", LLAMA, 64, 5e-5, 128, 1e-4, 128),
    ("nlu", MISTRAL, 32, 1e-5, 64, 1e-4, 64),
    ("nlu", MISTRAL, 64, 1e-5, 128, 1e-4, 128),
    ("math", LLAMA, 32, 5e-5, 64, 5e-4, 64),
    ("math", LLAMA, 64, 5e-5, 128, 1e-3, 128),
    ("math", MISTRAL, 32, 5e-5, 64, 5e-4, 64),
    ("math", MISTRAL, 64, 1e-4, 32, 5e-4, 64),
    *[(domain, base, 32, 5e-5, 64, 5e-4, 64) for domain in ("code", "safety") for base in (LLAMA, MISTRAL)],
    *[(domain, base, 64, 1e-5, 128, 1e-4, 128) for domain in ("code", "safety") for base in (LLAMA, MISTRAL)],
]


@pytest.mark.parametrize(("domain", "base", "rank", "dense_rate", "dense_alpha", "sparse_rate", "sparse_alpha"), TABLE)
def test_every_row_of_the_papers_table(domain, base, rank, dense_rate, dense_alpha, sparse_rate, sparse_alpha):
    dense, sparse = (recipe(base, rank, domain, name) for name in ("lori-d", "lori-s"))
    assert (dense.learning_rate, dense.alpha) == (dense_rate, dense_alpha)
    assert (sparse.learning_rate, sparse.alpha) == (sparse_rate, sparse_alpha)


@pytest.mark.parametrize("base", ["mistral-7b", "mistral-7b@27d67f1b", f"{MISTRAL}@27d67f1b"])
def test_a_base_by_its_short_name_or_revision_has_its_recipe(base):
    assert paper_config("lori-d", "nlu", base).learning_rate == 1e-5


def test_vera_has_the_rank_of_its_own_paper():
    assert paper_config("vera", "nlu", LLAMA).rank == 256


def test_a_copy_in_a_folder_has_the_recipe_of_the_hubs():
    assert recipe("/data/Mistral-7B-v0.1", 32, "nlu", "lori-d").learning_rate == 1e-5


def test_another_base_or_rank_follows_the_rule():
    for base, rank in (("Qwen/Qwen3-8B", 32), (LLAMA, 16)):
        dense, sparse = (recipe(base, rank, "nlu", name) for name in ("lori-d", "lori-s"))
        assert (dense.learning_rate, sparse.learning_rate) == (5e-5, 5e-4)
        assert dense.alpha == sparse.alpha == 2 * rank


def test_the_paper_gives_one_scaling_to_both_methods_but_in_one_row():
    assert recipe(MISTRAL, 64, "math", "lori-d").alpha / 64 == 0.5
    assert recipe(MISTRAL, 64, "math", "lori-s").alpha / 64 == 1.0


def test_the_released_merges_weigh_four_and_three_adapters_like_this():
    assert (merge_weight("lori-d", 4), merge_weight("lori-s", 4)) == (0.4, 0.3)
    assert (merge_weight("lori-d", 3), merge_weight("lori-s", 3)) == (0.5, 0.4)
    assert merge_weight("lori-s", 2) == 0.5


def test_an_own_domain_trains_one_epoch_and_any_field_can_be_given():
    config = paper_config("lori-s", "law", "some/base", rank=8, seed=3)
    assert (config.domain, config.num_epochs, config.alpha, config.seed) == ("law", 1, 16, 3)
    assert (config.max_length, config.max_prompt_length, config.batch_size) == (512, 256, 32)
