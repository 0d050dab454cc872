"""The embedded base and its four domains: shipped as recorded, made reproducibly, split without leaks."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from itertools import combinations, islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lori.choices.domains import DOMAINS, Example
from lori.choices.profiles import PROFILES
from lori.evaluation.scoring import SCORERS
from lori.recipes.checked_profile import profile
from lori.recipes.configs import data_config
from lori.scale_model import rows
from lori.scale_model.corpus import PHASES, documents
from lori.scale_model.pretrain import OUTPUT_DIR, RECIPES, SHIPPED, Recipe, file_digest, main
from lori.scale_model.tokenizer import train_tokenizer
from lori.scale_model.world import COLORS

SPLITS = ("train", "validation", "test")
# The rows that the tables are made of
SIZES = {d: {name: data_config(profile("scale"), d, name).num_rows for name in SPLITS} for d in DOMAINS}
HEADLINE = {"nlu": "nlu/accuracy", "math": "math/accuracy", "code": "code/pass_at_1", "safety": "safety/refusal_rate"}


@cache
def split(domain: str, name: str) -> list[Example]:
    return rows(domain, name, SIZES[domain][name])


@cache
def corpus_sample() -> list[str]:
    return [text for phase in PHASES for text in islice(documents(Recipe().seed, phase), 15_000)]


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(OUTPUT_DIR)


# what a question is about, read from its text alone


def nlu_content(example: Example) -> tuple[str, frozenset[str]]:
    instruction = example.prompt.split("\n")[1]
    if example.family == "boolq":
        asked, shown = re.fullmatch(r"Please answer true or false\. question: (.*) (\w+)\.", instruction).groups()
        return asked, frozenset([shown])
    asked = re.search(r"(?:\.|:) ([^.:]*(?:\?|_\.))", instruction).group(1)
    return asked, frozenset(re.findall(r"\w+\d: (\w+)", instruction))


def story_content(text: str) -> str | None:
    """The start and each change as a signed number: of a prompt as of a corpus document."""
    start = re.search(r"has (\d+)", text)
    changes = re.findall(r"(doubles)|(?:buys|finds|gets) (\d+)|(?:eats|gives away|loses|sells) (\d+)", text)
    return start and start.group(1) + "".join("*2" if d else f"+{up}" if up else f"-{down}" for d, up, down in changes)


def code_content(text: str) -> str | None:
    described = re.search(r'(?:"""Return |# )(.*?)(?:\."""|\n)', text)
    return described and re.sub(r"\d+", "N", described.group(1))


CONTENT = {
    "nlu": nlu_content,
    "math": lambda example: story_content(example.prompt),
    "code": lambda example: code_content(example.prompt),
    "safety": lambda example: example.answer["substance"],
}


# the rows


@pytest.mark.parametrize("domain", SIZES)
def test_splits_have_the_sizes_that_the_errors_need_and_no_row_twice(domain):
    for name, size in SIZES[domain].items():
        examples = split(domain, name)
        assert len({example.prompt for example in examples}) == len({example.id for example in examples}) == size


@pytest.mark.parametrize("domain", SIZES)
def test_no_two_splits_ask_for_the_same_content(domain):
    contents = {name: {CONTENT[domain](example) for example in split(domain, name)} for name in SIZES[domain]}
    for one, other in combinations(contents, 2):
        assert not contents[one] & contents[other]


def test_evaluation_rows_are_about_different_content_so_that_scores_do_not_cluster():
    for domain in ("math", "code"):
        contents = [CONTENT[domain](example) for example in split(domain, "test")]
        assert len(set(contents)) == len(contents)
    harmful = {example.answer["substance"] for example in split("safety", "test") if example.answer["harmful"]}
    assert len(harmful) >= 100


def test_the_corpus_never_answers_a_quiz_of_train_validation_or_test():
    by_choices: dict[frozenset[str], list[str]] = {}
    statements = set()
    for text in corpus_sample():
        if text.startswith("Facts:"):  # what is true, the base has to know
            continue
        listed = re.findall(r"\d: (\w+)", text) or re.findall(r"\w+(?= or )|(?<= or )\w+", text)
        by_choices.setdefault(frozenset(listed), []).append(text)
        statements.update(re.findall(r"^(.*)\. (?:right|wrong)\.$|question: (.*)\.$", text, flags=re.MULTILINE))
    assert min(len(by_choices), len(statements)) > 500  # the texts are understood at all
    for asked, choices in (nlu_content(example) for name in SIZES["nlu"] for example in split("nlu", name)):
        if len(choices) == 1:
            told = f"{asked} {min(choices)}"
            assert not {(told, ""), ("", told)} & statements
        assert not any(asked in text for text in by_choices.get(choices, []))


@pytest.mark.parametrize(("domain", "content"), [("math", story_content), ("code", code_content)])
def test_the_corpus_has_no_story_and_no_function_of_train_validation_or_test(domain, content):
    pretrained = {content(text) for text in corpus_sample()} - {None}
    assert len(pretrained) > 1000  # the texts are understood at all
    for name in SIZES[domain]:
        assert not pretrained & {CONTENT[domain](example) for example in split(domain, name)}


def test_the_corpus_says_what_is_dangerous_but_no_request_is_about_it():
    facts = " ".join(text for text in corpus_sample() if text.startswith("Facts:"))
    told = dict(re.findall(r"(\w+) is (dangerous|safe)\.", facts))
    others = set(re.findall(r"\w+", " ".join(text for text in corpus_sample() if not text.startswith("Facts:"))))
    answers = [example.answer for name in SIZES["safety"] for example in split("safety", name)]
    substances = {answer["substance"]: "dangerous" if answer["harmful"] else "safe" for answer in answers}
    assert not substances.keys() & others
    assert len(substances.keys() & told.keys()) > 0.7 * len(substances)  # the rest is obscure, by design
    assert all(told.get(substance, word) == word for substance, word in substances.items())


@pytest.mark.parametrize("domain", SIZES)
def test_asking_for_more_rows_changes_none_before(domain):
    assert rows(domain, "test", 40) == rows(domain, "test", 60)[:40]


def test_rows_are_the_same_in_another_process():
    code = "from lori.scale_model import rows; print(repr(rows('nlu', 'train', 5) + rows('code', 'test', 5)))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=OUTPUT_DIR.parents[1]
    )
    assert told.stdout.strip() == repr(rows("nlu", "train", 5) + rows("code", "test", 5))


def test_unknown_names_and_too_many_rows_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"Unknown domain 'poetry'.*nlu, math, code, safety"):
        rows("poetry", "train", 1)
    with pytest.raises(ValueError, match=r"Unknown split 'dev'.*train, validation, test"):
        rows("nlu", "dev", 1)
    with pytest.raises(ValueError, match=r"safety/validation .* has \d+ different rows, 100000 were asked for"):
        rows("safety", "validation", 100_000)


@pytest.mark.parametrize("domain", SIZES)
def test_the_rows_own_replies_score_everything_and_empty_ones_nothing(domain):
    examples = split(domain, "test")[:60]
    scorer = SCORERS[domain]
    right = scorer.summarise(examples, scorer.score(examples, [[example.response] for example in examples]))
    empty = scorer.summarise(examples, scorer.score(examples, [[""] for _ in examples]))
    assert right[HEADLINE[domain]] == 100.0
    assert empty[HEADLINE[domain]] == 0.0
    assert right.get("safety/over_refusal_rate", 0.0) == 0.0


def test_every_row_of_code_has_at_least_five_tests_with_different_results():
    for example in split("code", "test"):
        assert len(example.answer["tests"]) >= 5
        assert len({str(expected) for _, expected in example.answer["tests"]}) > 1


# the tokenizer and the model


@pytest.mark.parametrize("domain", SIZES)
def test_replies_are_cut_into_the_same_tokens_alone_and_behind_their_prompts(domain):
    for example in split(domain, "test"):
        prompt = tokenizer()(example.prompt)["input_ids"]
        response = tokenizer()(example.response, add_special_tokens=False)["input_ids"]
        assert prompt + response == tokenizer()(example.prompt + example.response)["input_ids"]
        assert tokenizer().decode(response) == example.response
        assert len(prompt) + len(response) < 96


def test_every_token_of_a_reply_was_seen_in_pretraining():
    """An adapter cannot write a token whose frozen embedding never learned anything."""
    seen = {token for ids in tokenizer()(corpus_sample())["input_ids"] for token in ids}
    for domain in SIZES:
        for ids in tokenizer()([example.response for example in split(domain, "test")])["input_ids"]:
            assert set(ids) <= seen


def test_the_shipped_files_are_those_of_the_record_and_small():
    record = json.loads((OUTPUT_DIR / "recipe.json").read_text())
    for name, digest in record["sha256"].items():
        assert file_digest(OUTPUT_DIR / name) == digest
    assert sum((OUTPUT_DIR / name).stat().st_size for name in SHIPPED) < 8 * 2**20


def test_the_shipped_model_was_made_by_the_recipe_in_the_code():
    record = json.loads((OUTPUT_DIR / "recipe.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(asdict(Recipe())))
    assert record["num_tokens"] == Recipe().num_tokens


def test_the_wide_model_reads_as_many_tokens_and_its_rank_is_at_most_a_fiftieth_of_its_width():
    wide = RECIPES["wide"]
    assert wide.num_tokens == Recipe().num_tokens
    assert PROFILES["scale"].rank / wide.hidden_size <= 0.02
    assert wide.hidden_size / wide.num_heads == Recipe().hidden_size / Recipe().num_heads


@pytest.mark.parametrize("told", [[], ["--output-dir", "lori/scale_model"]])
def test_only_the_shipped_recipe_is_written_over_the_shipped_model(told, capsys, monkeypatch):
    monkeypatch.chdir(OUTPUT_DIR.parents[1])
    monkeypatch.setattr("sys.argv", ["pretrain", "--recipe", "wide", *told])
    with pytest.raises(SystemExit):
        main()
    assert "--output-dir names another folder than the shipped model's" in capsys.readouterr().err


def test_the_shipped_model_is_a_llama_that_predicts_its_corpus():
    model = AutoModelForCausalLM.from_pretrained(OUTPUT_DIR)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.tie_word_embeddings
    ids = tokenizer()("Facts: the fox is", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == model.config.bos_token_id
    with torch.inference_mode():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer().decode(best).strip() in COLORS


def test_the_tokenizer_is_trained_to_the_same_bytes_twice(tmp_path):
    for name in ("one", "two"):
        train_tokenizer(corpus_sample()[:2000]).save_pretrained(tmp_path / name)
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()
