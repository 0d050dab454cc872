"""Samples: repeated by their seed, independent of batches, and of the nucleus's distribution."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.completions import SAMPLED, complete_rows, config_of, scale, text_of
from lori.evaluation.generation import nucleus, random_numbers
from lori.scale_model import rows


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
