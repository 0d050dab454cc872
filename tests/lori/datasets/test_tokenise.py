"""Rows to tokens: the begin token where the tokenizer wants one, the end token, and the paper's truncation."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lori.datasets.tokenise import IGNORED, cut_prompt, encode_prompts, tokenise
from lori.recipes.paper_numbers import paper_config

CONFIG = paper_config("lori-d", "law", "base", max_length=12, max_prompt_length=6)


def byte_tokenizer(*, template: str | None, eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """One token a byte; `template` is what the tokenizer itself puts around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "<s>", "</s>"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if template:
        special = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
        inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token=eos)


LLAMA_LIKE, GPT_LIKE = byte_tokenizer(template="<s> $A"), byte_tokenizer(template=None)
BOS, EOS = LLAMA_LIKE.bos_token_id, LLAMA_LIKE.eos_token_id


def test_a_begin_token_stands_where_the_tokenizer_puts_one_and_we_want_it():
    assert encode_prompts(["ab"], LLAMA_LIKE, add_bos=True)[0][0] == BOS
    assert BOS not in encode_prompts(["ab"], LLAMA_LIKE, add_bos=False)[0]
    assert BOS not in encode_prompts(["ab"], GPT_LIKE, add_bos=True)[0]


def test_an_end_token_that_the_tokenizer_puts_behind_a_prompt_is_left_out():
    prompt = encode_prompts(["ab"], byte_tokenizer(template="<s> $A </s>"), add_bos=True)[0]
    assert prompt == [BOS, *GPT_LIKE("ab")["input_ids"]]


def test_a_row_is_prompt_response_and_end_with_labels_on_the_last_two():
    (row,) = tokenise([("ab", "xyz")], LLAMA_LIKE, CONFIG)
    a, b, x, y, z = GPT_LIKE("abxyz")["input_ids"]
    assert row["input_ids"] == [BOS, a, b, x, y, z, EOS]
    assert row["labels"] == [IGNORED] * 3 + [x, y, z, EOS]


def test_a_long_prompt_is_cut_only_where_prompt_and_response_do_not_fit():
    """11 tokens and an end fit 12; with one more, the prompt keeps its first 6 (keep_start)."""
    whole, cut = tokenise([("abcdefgh", "xyz"), ("abcdefghi", "xyz")], GPT_LIKE, CONFIG)
    assert GPT_LIKE.decode(whole["input_ids"]) == "abcdefghxyz</s>"
    assert GPT_LIKE.decode(cut["input_ids"]) == "abcdefxyz</s>"


def test_a_response_that_is_longer_still_loses_its_end():
    (row,) = tokenise([("abcdefgh", "0123456789")], GPT_LIKE, CONFIG)
    assert GPT_LIKE.decode(row["input_ids"]) == "abcdef012345"
    assert row["labels"].count(IGNORED) == 6


def test_a_prompt_alone_is_cut_where_it_leaves_no_room():
    assert cut_prompt(list(range(12)), 0, CONFIG) == list(range(12))
    assert cut_prompt(list(range(13)), 0, CONFIG) == list(range(6))


def test_an_empty_response_teaches_the_end():
    (row,) = tokenise([("ab", "")], LLAMA_LIKE, CONFIG)
    assert row["labels"] == [IGNORED] * 3 + [EOS]


@pytest.mark.parametrize("text", ["naïve – 日本語 🙂", "a\r\nb", "é", "e\u0301"])
def test_text_survives_byte_for_byte(text):
    config = replace(CONFIG, max_length=100)
    (row,) = tokenise([(text, text)], GPT_LIKE, config)
    assert GPT_LIKE.decode(row["input_ids"], clean_up_tokenization_spaces=False) == text + text + "</s>"


def test_equal_prompts_are_two_rows():
    assert len(tokenise([("ab", "x"), ("ab", "y")], GPT_LIKE, CONFIG)) == 2


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(ValueError, match=r"has no end token: set tokenizer\.eos_token"):
        tokenise([("ab", "x")], byte_tokenizer(template=None, eos=None), CONFIG)
