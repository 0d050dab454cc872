"""Completions depend neither on their neighbours in a batch nor on when they stop; a row's tokens are what trains."""

import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.choices.domains import Example
from lori.config import EvalConfig
from lori.datasets.rows import load_rows, make_rows, save_rows
from lori.datasets.tokenise import IGNORED, tokenise
from lori.evaluation.answers import evaluate, rescore
from lori.evaluation.generation import check_lengths, complete, nucleus, prepare, random_numbers
from lori.evaluation.scoring import SCORERS
from lori.recipes.checked_profile import profile
from lori.recipes.configs import data_config, train_config
from lori.recipes.paper_numbers import paper_config
from lori.scale_model import rows
from lori.training.batches import collate

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


# sampling


def test_every_prompt_gets_its_samples_and_the_seed_repeats_them():
    model, tokenizer = scale()
    examples = rows("code", "test", 5)
    config = config_of("code", num_samples=3, max_new_tokens=8, temperature=1.0)
    first, again = (complete_rows(model, tokenizer, examples, config) for _ in range(2))
    other = complete_rows(model, tokenizer, examples, replace(config, seed=1))
    assert [len(samples) for samples in first] == [3] * 5
    assert first == again
    assert first != other


def test_samples_depend_neither_on_the_order_of_the_rows_nor_on_the_size_of_a_batch():
    model, tokenizer = scale()
    examples = rows("code", "test", 8)
    config = config_of("code", num_samples=3, max_new_tokens=16, **SAMPLED)
    shuffled = random.Random(0).sample(examples, len(examples))
    expected = dict(zip([row.id for row in examples], complete_rows(model, tokenizer, examples, config), strict=True))
    assert len({text for texts in expected.values() for text in texts}) > len(examples)
    for batch_size in (1, 7, 1000):
        completions = complete_rows(model, tokenizer, shuffled, replace(config, batch_size=batch_size))
        assert dict(zip([row.id for row in shuffled], completions, strict=True)) == expected


def test_more_samples_of_a_prompt_change_none_before():
    model, tokenizer = scale()
    examples = rows("code", "test", 3)
    config = config_of("code", num_samples=6, max_new_tokens=16, **SAMPLED)
    six = complete_rows(model, tokenizer, examples, config)
    two = complete_rows(model, tokenizer, examples, replace(config, num_samples=2))
    assert [texts[:2] for texts in six] == two


def test_random_numbers_are_uniform_and_each_samples_own():
    config = config_of(num_samples=40, max_new_tokens=500)
    numbers = random_numbers(config, "a")
    assert 0 < numbers.min() < numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert ((counts - 2000) ** 2 / 2000).sum() < 30  # χ² with 9 degrees of freedom: p < 0.001
    assert len(set(numbers.flat)) > 19_990
    assert not np.isin(numbers, random_numbers(config, "b")).mean() > 0.01
    assert np.array_equal(numbers[:3, :7], random_numbers(replace(config, num_samples=3, max_new_tokens=7), "a"))


def test_samples_that_share_a_prefix_have_the_distribution_of_independent_samples():
    model, tokenizer = scale()
    (example,) = rows("code", "test", 1)
    config = config_of("code", num_samples=4000, max_new_tokens=2, temperature=1.5)
    (samples,) = complete_rows(model, tokenizer, [example], config)
    tokens = tokenizer([example.prompt], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first = (model(tokens).logits[0, -1] / 1.5).softmax(-1)
        likely = first.topk(3).indices
        second = (model(torch.cat([tokens.expand(3, -1), likely[:, None]], dim=1)).logits[:, -1] / 1.5).softmax(-1)
    for row, token in enumerate(likely):
        follower = second[row].argmax()
        text = text_of(tokenizer, [token, follower])
        # two token pairs may read alike, so the share is at least the pair's probability, less 4 standard errors
        probability = (first[token] * second[row, follower]).item()
        assert samples.count(text) / 4000 >= probability - 4 * (probability * (1 - probability) / 4000) ** 0.5
    (ones,) = complete_rows(model, tokenizer, [example], replace(config, max_new_tokens=1))
    text = text_of(tokenizer, [likely[0]])
    probability = first[likely[0]].item()
    assert abs(ones.count(text) / 4000 - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5


def test_only_tokens_of_the_nucleus_are_drawn_in_their_proportions():
    model, tokenizer = scale()
    (example,) = rows("code", "test", 1)
    config = config_of("code", num_samples=2000, max_new_tokens=1, temperature=5.0, top_p=0.8)
    (samples,) = complete_rows(model, tokenizer, [example], config)
    tokens = tokenizer([example.prompt], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        probabilities = (model(tokens).logits[0, -1] / 5.0).softmax(-1).sort(descending=True)
    size = int((probabilities.values.cumsum(0) < 0.8).sum()) + 1
    kept = probabilities.values[:size] / probabilities.values[:size].sum()
    expected: Counter[str] = Counter()
    for token, share in zip(probabilities.indices[:size], kept, strict=True):
        expected[text_of(tokenizer, [token])] += share.item()
    assert len(expected) > 1
    for text, count in Counter(samples).items():
        share = expected[text]
        assert abs(count / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {top_p: (nucleus(logits, top_p) > 0).sum().item() for top_p in (0.4, 0.7, 0.85, 1.0)}
    assert kept == {0.4: 1, 0.7: 2, 0.85: 3, 1.0: 4}


@pytest.mark.parametrize(("batch_size", "num_samples", "most_prompts"), [(6, 1, 6), (6, 3, 2), (2, 3, 1)])
def test_a_batch_is_as_many_sequences_as_asked_for_or_one_prompts_samples(batch_size, num_samples, most_prompts):
    model, tokenizer = scale()
    examples = rows("code", "test", 7)
    sizes = []
    model.register_forward_pre_hook(lambda _, __, inputs: sizes.append(inputs["input_ids"].shape), with_kwargs=True)
    config = config_of("code", num_samples=num_samples, batch_size=batch_size, max_new_tokens=4, temperature=1.0)
    complete_rows(model, tokenizer, examples, config)
    starts = [num_rows for num_rows, length in sizes if length > 1]
    assert starts == [most_prompts] * (7 // most_prompts) + [7 % most_prompts] * (7 % most_prompts > 0)
    assert max(num_rows for num_rows, _ in sizes) <= max(batch_size, num_samples)


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


# rows that train


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
