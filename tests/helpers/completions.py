"""Completions of the scale model, as the tests of generation ask for them."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.config import EvalConfig
from lori.evaluation.generation import complete, prepare

SCALE = BASE_MODELS["scale"]

SAMPLED = {"temperature": 0.8, "top_p": 0.95}


def config_of(domain="math", **changes) -> EvalConfig:
    config = EvalConfig(domain, 1, 0.0, 1.0, 12, 64, max_length=160, max_prompt_length=112, seed=0)
    return replace(config, **changes)


def never(_example, _text) -> bool:
    return False


def complete_rows(model, tokenizer, examples, config, is_settled=never):
    return complete(model, tokenizer, prepare(model, tokenizer, examples, config), config, is_settled)


def scale() -> tuple[Any, PreTrainedTokenizerBase]:
    return load_base(SCALE), load_tokenizer(SCALE)


def text_of(tokenizer, tokens) -> str:
    (text,) = tokenizer.batch_decode([tokens], skip_special_tokens=True)
    return text
