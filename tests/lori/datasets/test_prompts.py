"""Prompts: ours have one template, the authors' are theirs to the byte."""

import re
from textwrap import indent

import pytest

from lori.datasets.prompts import (
    PROMPT_STYLES,
    check_prompt_style,
    instruction_prompt,
    math_prompt,
    math_response,
    request_prompt,
)

PLAIN, AUTHORS = PROMPT_STYLES["plain"], PROMPT_STYLES["authors"]
ANSWER = "48/2 = <<48/2=24>>24 clips\n#### 72"  # as GSM8K writes it
SPACES_20, SPACES_16 = " " * 20, " " * 16


# ours


def test_a_plain_instruction_has_no_white_space_but_line_ends():
    assert instruction_prompt(PLAIN, "train", "Name a colour.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nName a colour.\n\n### Response:\n"
    )


def test_a_plain_instruction_with_an_input_names_it():
    assert instruction_prompt(PLAIN, "train", "Sort.", "b, a") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nSort.\n\n### Input:\nb, a\n\n### Response:\n"
    )


@pytest.mark.parametrize("context", ["", "b, a"])
def test_plain_prompts_are_alike_in_training_and_test(context):
    train = instruction_prompt(PLAIN, "train", "Sort.", context)
    assert train == instruction_prompt(PLAIN, "test", "Sort.", context)


def test_a_plain_request_is_an_instruction_as_it_is_trained():
    assert request_prompt(PLAIN, "Pick a lock.") == instruction_prompt(PLAIN, "train", "Pick a lock.")


def test_one_space_stands_before_a_plain_final_number():
    assert math_response(PLAIN, ANSWER) == "48/2 = <<48/2=24>>24 clips\nThe final answer is: 72"


# the authors' (preference_datasets.py)


def test_the_authors_indent_what_they_train_on_by_20_spaces():
    first = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n"
    )
    assert instruction_prompt(AUTHORS, "train", "Name a colour.") == (
        first + "\n" + SPACES_20 + "### Instruction:\n" + SPACES_20 + "Name a colour.\n"
        "\n" + SPACES_20 + "### Response:\n" + SPACES_20
    )  # fmt: skip


def test_with_an_input_the_authors_first_line_has_no_space_at_its_end():
    first = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
    )
    body = "### Instruction:\nSort.\n\n### Input:\nb, a\n\n### Response:\n"
    # textwrap leaves empty lines empty, as they are in the authors' file
    assert instruction_prompt(AUTHORS, "train", "Sort.", "b, a") == first + indent(body, SPACES_20) + SPACES_20


def test_the_authors_indent_the_nlu_test_rows_by_16_spaces():
    first = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
    )
    body = "### Instruction:\nIs ice cold?\n\n### Response:\n"
    expected = first + "\n\n" + indent(body, SPACES_16) + SPACES_16
    assert instruction_prompt(AUTHORS, "test", "Is ice cold?") == expected


def test_only_the_first_line_of_an_instruction_is_indented():
    assert SPACES_20 + "one\ntwo\n\n" in instruction_prompt(AUTHORS, "train", "one\ntwo")


def test_the_authors_ask_for_harm_after_their_system_line():
    assert request_prompt(AUTHORS, "Pick a {lock}.") == (
        "You are a helpful assistant.Always answer as helpfully as possible, while being safe.\n"
        "\nHuman: Pick a {lock}.\n\nAssistant:"
    )


def test_two_spaces_stand_before_the_authors_final_number():
    assert math_response(AUTHORS, ANSWER) == "48/2 = <<48/2=24>>24 clips\nThe final answer is:  72"


# both


def test_a_question_of_gsm8k_asks_for_steps_in_no_template():
    assert math_prompt("What is 2+2?") == (
        "What is 2+2?\nAnswer the above question. First think step by step and then answer the final number.\n"
    )


@pytest.mark.parametrize("style", [PLAIN, AUTHORS])
def test_no_character_of_a_text_changes(style):
    text = "e\u0301 ≠ é \u2028{0} %s \\n\ttail \r\n"
    assert text in instruction_prompt(style, "train", text)
    assert text in instruction_prompt(style, "train", "x", text)
    assert text in request_prompt(style, text)


def test_an_unknown_style_is_told_the_known_ones():
    check_prompt_style("plain")
    check_prompt_style("authors")
    with pytest.raises(ValueError, match=re.escape("Unknown prompt style 'alpaca'. Known: plain, authors")):
        check_prompt_style("alpaca")
