"""A row's tokens are what trains: response and end alone are scored, and no row is cut."""

from dataclasses import replace

import pytest

from helpers.completions import config_of, scale
from lori.base_models.loading import load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.datasets.rows import load_rows, make_rows, save_rows
from lori.datasets.tokenise import IGNORED, tokenise
from lori.evaluation.generation import prepare
from lori.evaluation.scoring import SCORERS
from lori.recipes.checked_profile import profile
from lori.recipes.configs import data_config, train_config
from lori.recipes.paper_numbers import paper_config
from lori.scale_model import rows
from lori.training.batches import collate

SCALE = BASE_MODELS["scale"]


def scale_config(domain: str):
    return paper_config("lora", domain, "scale", max_length=160, max_prompt_length=112)


def test_only_response_and_end_are_scored():
    tokenizer = load_tokenizer(SCALE)
    (example,) = rows("math", "train", 1)
    (row,) = tokenise([example.pair], tokenizer, scale_config("math"))
    scored = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert scored[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(scored[:-1]) == example.response
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == example.prompt + example.response


@pytest.mark.parametrize("add_bos", [True, False])
def test_training_sees_a_prompt_as_generation_does(add_bos):
    model, tokenizer = scale()
    for domain in SCORERS:
        (example,) = rows(domain, "train", 1)
        (row,) = tokenise([example.pair], tokenizer, replace(scale_config(domain), add_bos=add_bos))
        (prompt,) = prepare(model, tokenizer, [example], config_of(domain, add_bos=add_bos))
        assert row["input_ids"][: len(prompt.tokens)] == prompt.tokens
        assert row["labels"][: len(prompt.tokens)] == [IGNORED] * len(prompt.tokens)


def test_padding_is_neither_attended_to_nor_scored():
    batch = collate(
        [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}], pad_token_id=0
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_survive_their_file(tmp_path):
    examples = rows("code", "test", 12)
    save_rows(examples, tmp_path / "test.jsonl")
    assert load_rows(tmp_path / "test.jsonl") == examples


def test_no_row_of_the_scale_profile_is_cut():
    scale, tokenizer = profile("scale"), load_tokenizer(SCALE)
    for domain in scale.domains:
        config = train_config(scale, "lora", domain, seed=0)
        longest = replace(config, max_length=10_000, max_prompt_length=10_000)
        pairs = [row.pair for row in make_rows(data_config(scale, domain, "train"))]
        assert tokenise(pairs, tokenizer, config) == tokenise(pairs, tokenizer, longest)
