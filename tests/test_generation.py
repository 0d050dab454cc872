"""Completions do not depend on their neighbours in a batch, and a row's tokens are what trains."""

from dataclasses import replace

import torch

from lori.data import IGNORED, collate, load_rows, make_rows, save_rows, tokenise
from lori.generation import complete, nucleus
from lori.models import load_base, load_tokenizer
from lori.recipes import data_config, eval_config, profile, train_config

SMOKE = profile("smoke")


def examples_of(domain, split="test"):
    return make_rows(data_config(SMOKE, domain, split))


def test_a_greedy_completion_is_the_argmax_chain_whatever_else_is_in_the_batch():
    model, tokenizer = load_base("scale"), load_tokenizer("scale")
    prompts = [example.prompt for example in examples_of("nlu")]
    config = replace(eval_config(SMOKE, "nlu"), max_new_tokens=6)
    for prompt, (completion,) in zip(prompts[:4], complete(model, tokenizer, prompts, config)[:4], strict=True):
        tokens = tokenizer([prompt], return_tensors="pt")["input_ids"]
        length = tokens.shape[1]
        with torch.no_grad():
            while tokens.shape[1] < length + 6 and tokens[0, -1] != tokenizer.eos_token_id:
                tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
        assert completion == tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


def test_every_prompt_gets_its_samples_and_the_seed_repeats_them():
    model, tokenizer = load_base("scale"), load_tokenizer("scale")
    prompts = [example.prompt for example in examples_of("code")[:5]]
    config = replace(eval_config(SMOKE, "code"), num_samples=3, batch_size=2, max_new_tokens=8, temperature=1.0)
    first, again = (complete(model, tokenizer, prompts, config) for _ in range(2))
    other = complete(model, tokenizer, prompts, replace(config, seed=1))
    assert [len(samples) for samples in first] == [3] * 5
    assert first == again
    assert first != other


def test_only_response_and_end_are_scored():
    tokenizer = load_tokenizer("scale")
    (example, *_) = examples_of("math", "train")
    (row,) = tokenise([example.pair], tokenizer, train_config(SMOKE, "lora", "math", seed=0))
    scored = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert scored[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(scored[:-1]) == example.response
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == example.prompt + example.response


def test_training_sees_a_prompt_as_generation_does():
    tokenizer = load_tokenizer("scale")
    for domain in SMOKE.domains:
        (example, *_) = examples_of(domain, "train")
        (row,) = tokenise([example.pair], tokenizer, train_config(SMOKE, "lora", domain, seed=0))
        prompt = tokenizer([example.prompt])["input_ids"][0]
        assert row["input_ids"][: len(prompt)] == prompt


def test_a_long_row_keeps_its_start():
    tokenizer = load_tokenizer("scale")
    (example, *_) = examples_of("math", "train")
    config = replace(train_config(SMOKE, "lora", "math", seed=0), max_prompt_length=7, max_length=12)
    (row,) = tokenise([example.pair], tokenizer, config)
    assert row["input_ids"][:7] == tokenizer([example.prompt])["input_ids"][0][:7]
    assert row["labels"][:7] == [IGNORED] * 7
    assert len(row["input_ids"]) == len(row["labels"]) == 12


def test_padding_is_neither_attended_to_nor_scored():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = collate(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_survive_their_file(tmp_path):
    examples = examples_of("code")
    save_rows(examples, tmp_path / "test.jsonl")
    assert load_rows(tmp_path / "test.jsonl") == examples


def test_no_row_of_the_scale_profile_is_cut():
    scale, tokenizer = profile("scale"), load_tokenizer("scale")
    for domain in scale.domains:
        config = train_config(scale, "lora", domain, seed=0)
        longest = replace(config, max_length=10_000, max_prompt_length=10_000)
        rows = make_rows(data_config(scale, domain, "train"))
        pairs = [row.pair for row in rows]
        assert tokenise(pairs, tokenizer, config) == tokenise(pairs, tokenizer, longest)


def test_greedy_is_transformers_greedy():
    model, tokenizer = load_base("scale"), load_tokenizer("scale")
    prompts = [example.prompt for example in examples_of("safety")]
    config = replace(eval_config(SMOKE, "safety"), batch_size=len(prompts), max_new_tokens=12)
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    tokens = model.generate(**batch, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)
    expected = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [texts[0] for texts in complete(model, tokenizer, prompts, config)] == expected


def test_samples_that_share_a_prefix_have_the_distribution_of_independent_samples():
    model, tokenizer = load_base("scale"), load_tokenizer("scale")
    prompt = examples_of("code")[0].prompt
    config = replace(eval_config(SMOKE, "code"), num_samples=4000, max_new_tokens=2, temperature=1.5, top_p=1.0)
    (samples,) = complete(model, tokenizer, [prompt], config)
    tokens = tokenizer([prompt], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first = (model(tokens).logits[0, -1] / 1.5).softmax(-1)
        likely = first.topk(3).indices
        second = (model(torch.cat([tokens.expand(3, -1), likely[:, None]], dim=1)).logits[:, -1] / 1.5).softmax(-1)
    for row, token in enumerate(likely):
        follower = second[row].argmax()
        text = tokenizer.decode([token, follower], skip_special_tokens=True)
        # two token pairs may read alike, so the share is at least the pair's probability, less 4 standard errors
        probability = (first[token] * second[row, follower]).item()
        assert samples.count(text) / 4000 >= probability - 4 * (probability * (1 - probability) / 4000) ** 0.5
    (ones,) = complete(model, tokenizer, [prompt], replace(config, max_new_tokens=1))
    text = tokenizer.decode([likely[0]], skip_special_tokens=True)
    probability = first[likely[0]].item()
    assert abs(ones.count(text) / 4000 - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {top_p: (nucleus(logits, top_p) > 0).sum().item() for top_p in (0.4, 0.7, 0.85, 1.0)}
    assert kept == {0.4: 1, 0.7: 2, 0.85: 3, 1.0: 4}
