"""Completions depend neither on their neighbours in a batch nor on when they stop."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.completions import SAMPLED, complete_rows, config_of, scale, text_of
from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.choices.domains import Example
from lori.evaluation.answers import evaluate, rescore
from lori.evaluation.generation import check_lengths, prepare
from lori.evaluation.scoring import SCORERS
from lori.scale_model import rows

SCALE = BASE_MODELS["scale"]


def endless(model):
    """The same model, which never ends a response."""
    eos = torch.tensor([load_tokenizer(SCALE).eos_token_id])
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, eos, -1e9))
    return model


# greedy


def test_a_greedy_completion_is_the_argmax_chain_whatever_else_is_in_the_batch():
    model, tokenizer = scale()
    examples = rows("nlu", "test", 12)
    completions = complete_rows(model, tokenizer, examples, config_of("nlu", max_new_tokens=6))
    for example, (completion,) in zip(examples[:4], completions[:4], strict=True):
        tokens = tokenizer([example.prompt], return_tensors="pt")["input_ids"]
        length = tokens.shape[1]
        with torch.no_grad():
            while tokens.shape[1] < length + 6 and tokens[0, -1] != tokenizer.eos_token_id:
                tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
        assert completion == text_of(tokenizer, tokens[0, length:])


def test_greedy_is_transformers_greedy():
    model, tokenizer = scale()
    examples = rows("safety", "test", 12)
    batch = tokenizer([example.prompt for example in examples], padding=True, return_tensors="pt")
    tokens = model.generate(**batch, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)
    expected = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [texts[0] for texts in complete_rows(model, tokenizer, examples, config_of("safety"))] == expected


# early stop


@pytest.mark.parametrize("domain", SCORERS)
def test_stopping_early_cuts_completions_and_changes_no_score(domain):
    model, tokenizer = endless(load_base(SCALE)), load_tokenizer(SCALE)
    examples = rows(domain, "test", 9)
    samples = {"num_samples": 3, **SAMPLED} if domain == "code" else {}
    config = config_of(domain, max_new_tokens=64, **samples)
    scorer = SCORERS[domain]
    whole = complete_rows(model, tokenizer, examples, config)
    stopped = complete_rows(model, tokenizer, examples, config, scorer.is_settled)
    pairs = [pair for texts in zip(whole, stopped, strict=True) for pair in zip(*texts, strict=True)]
    assert all(full.startswith(start.rstrip("\ufffd")) for full, start in pairs)
    assert sum(len(start) < len(full) for full, start in pairs) >= 2
    assert scorer.score(examples, stopped) == scorer.score(examples, whole)


def test_a_completion_ends_with_the_first_look_that_finds_it_settled():
    model, tokenizer = endless(load_base(SCALE)), load_tokenizer(SCALE)
    (example,) = rows("nlu", "test", 1)
    widths = []
    model.register_forward_pre_hook(lambda _, __, inputs: widths.append(len(inputs["input_ids"])), with_kwargs=True)
    complete_rows(model, tokenizer, [example], config_of("nlu", max_new_tokens=64), lambda _, text: "correct" in text)
    assert tokenizer("the correct", add_special_tokens=False)["input_ids"][3:] == []  # within the first four tokens
    assert len(widths) == 4


def test_looks_are_a_few_tokens_or_an_eighth_of_the_length_apart():
    lengths = sorted(check_lengths(512))
    assert lengths[:3] == [4, 8, 12]
    assert all(
        later - length <= max(4, length / 8) for length, later in zip(lengths, [*lengths[1:], 512], strict=True)
    )
    assert sum(lengths) < 10 * 512  # in tokens, what looking at a whole completion of 512 costs
    assert check_lengths(4) == frozenset()


# texts that grow


def tiny_model(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def byte_level() -> PreTrainedTokenizerFast:
    """One token a byte, as most of Llama-3's tokens for rare characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "</s>"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Mistral's: words start with ▁, and what is no word is bytes."""
    words = ["▁", "▁a", "▁answer", "b", "1", "▁,"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {symbol: index for index, symbol in enumerate(["<unk>", "<s>", "</s>", *bytes_, *words])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def likelier(model, tokens: list[int], by: float):
    bonus = torch.zeros(model.config.vocab_size).index_fill(0, torch.tensor(tokens), by)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + bonus)
    return model


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_what_is_judged_on_the_way_is_the_start_of_what_is_completed(make):
    """Random bytes: most are no characters, some are the start of one, or become one."""
    tokenizer = make()
    model = likelier(tiny_model(tokenizer), tokenizer.encode("éb", add_special_tokens=False), by=6.0)
    judged: dict[str, list[str]] = {str(number): [""] for number in range(200)}

    def look(example, text):
        judged[example.id].append(text)
        return False

    examples = [Example(number, "", "b", "", None) for number in judged]
    config = config_of(max_new_tokens=24, temperature=1.0, batch_size=50)
    completions = complete_rows(model, tokenizer, examples, config, look)
    for example, (text,) in zip(examples, completions, strict=True):
        assert all(text.startswith(start) for start in judged[example.id])
    texts = [text for texts in completions for text in texts]
    assert sum("é" in text for text in texts) > 20
    assert sum("\ufffd" in text for text in texts) > 20
    assert sum(len(judged[example.id][-1]) > 5 for example in examples) > 50


def test_a_completion_keeps_the_space_that_it_starts_with():
    """Of a text's first word sentencepiece drops the space: a function's body would lose a column."""
    tokenizer = sentencepiece()
    answer = tokenizer.get_vocab()["▁answer"]
    model = likelier(tiny_model(tokenizer), [answer], by=100.0)
    (texts,) = complete_rows(model, tokenizer, [Example("0", "", "b1", "", None)], config_of(max_new_tokens=2))
    assert texts == [" answer answer"]
    assert tokenizer.decode([answer, answer]) == "answer answer"


# prompts, metrics and records


def test_a_prompt_beyond_max_length_keeps_its_start_and_is_counted():
    model, tokenizer = scale()
    examples = rows("math", "test", 6)
    lengths = [len(tokenizer(row.prompt)["input_ids"]) for row in examples]
    limit = sorted(lengths)[3]
    too_long = [row for row, length in zip(examples, lengths, strict=True) if length > limit]
    assert too_long
    config = config_of(max_length=limit, max_prompt_length=5)
    cut = [prompt.tokens for prompt in prepare(model, tokenizer, examples, config) if prompt.is_cut]
    assert cut == [tokenizer(row.prompt)["input_ids"][:5] for row in too_long]
    metrics, records = evaluate(model, tokenizer, examples, config)
    assert metrics["math/num_cut_prompts"] == len(too_long)
    assert metrics["math/num_examples"] == len(examples)
    assert [record["id"] for record in records if record["prompt_is_cut"]] == [row.id for row in too_long]


def test_a_prompt_has_the_begin_token_that_its_config_asks_for():
    model, tokenizer = scale()
    examples = rows("math", "test", 1)
    (with_bos,), (without,) = (
        prepare(model, tokenizer, examples, config_of(add_bos=add_bos)) for add_bos in (True, False)
    )
    assert with_bos.tokens == [tokenizer.bos_token_id, *without.tokens]


def test_a_prompt_without_room_in_the_models_context_is_refused_before_anything_is_computed():
    model, tokenizer = scale()
    examples = rows("math", "test", 6)
    longest = max(examples, key=lambda row: len(tokenizer(row.prompt)["input_ids"]))
    length = len(tokenizer(longest.prompt)["input_ids"])
    model.register_forward_pre_hook(lambda *_: pytest.fail("computed"))
    prepare(model, tokenizer, examples, config_of(max_new_tokens=512 - length))
    with pytest.raises(ValueError, match=f"Row {longest.id} has a prompt of {length} tokens.*context of 512. Lower"):
        evaluate(model, tokenizer, examples, config_of(max_new_tokens=513 - length))


@pytest.mark.parametrize("domain", SCORERS)
def test_records_alone_give_the_same_metrics_again(domain):
    model, tokenizer = scale()
    examples = rows(domain, "test", 6)
    config = config_of(domain, max_length=70, **({"num_samples": 2, **SAMPLED} if domain == "code" else {}))
    metrics, records = evaluate(model, tokenizer, examples, config)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    read = [json.loads(line) for line in lines.splitlines()]
    assert len(records) == 6
    assert rescore(examples, read, domain) == (metrics, records)
    stale = [{**record, "correct": None, "refused": None, "num_correct": None} for record in read]
    assert rescore(examples, stale, domain) == (metrics, records)


def test_records_of_other_rows_are_refused():
    model, tokenizer = scale()
    examples = rows("math", "test", 3)
    _, records = evaluate(model, tokenizer, examples, config_of())
    for others in (examples[::-1], examples[:2], rows("math", "validation", 3)):
        with pytest.raises(ValueError, match="of other rows"):
            rescore(others, records, "math")
