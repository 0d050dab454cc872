"""A response is settled only where no continuation reads otherwise: by brute force over continuations."""

import random
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import pytest

from lori.choices.domains import Example
from lori.evaluation.scoring import SCORERS, chosen, final_number, function_body, is_refusal


def row(answer: Any) -> Example:
    return Example("0", "", "", "", answer)


def choice(choices: list[str], **rest: Any) -> Example:
    return row({"choices": choices, "correct": choices[0], **rest})


ANSWERS = [f"answer{n}" for n in (1, 2, 3, 10)]
SEAS = ["sea", "sea snake", "a sea"]
MINIATURE, HUMANEVAL = row({"tests": []}), row({"test": ""})

# By name: the domain, the row, what its score depends on, and the pieces that texts are drawn from
CASES: dict[str, tuple[str, Example, Callable[[str], Any], list[str]]] = {
    "words": ("nlu", choice(SEAS), lambda t: chosen(t, SEAS), ["sea", " ", "snake", "s", "a", ".", "é", "\n"]),
    "words with numbers": (
        "nlu",
        choice(ANSWERS),
        lambda t: chosen(t, ANSWERS),
        ["answer1", "answer", "0", "2", " ", " "],
    ),
    "plain": (
        "nlu",
        choice(ANSWERS, whole_words=False),
        lambda t: chosen(t, ANSWERS, whole_words=False),
        ["answer", "1", "0", "2", " ", "x", "ans"],
    ),
    "a choice inside of another": (
        "nlu",
        choice(["b", "abc"], whole_words=False),
        lambda t: chosen(t, ["b", "abc"], whole_words=False),
        ["a", "b", "c"],
    ),
    "math": ("math", row({"number": "1"}), final_number, ["The final answer is: ", " ", "1", ",", ".", "-", "$", "x"]),
    "miniature code": (
        "code",
        MINIATURE,
        lambda t: function_body(MINIATURE, t),
        ["\n", " ", "    ", "x", "def", "\t", "\u2003"],
    ),
    "HumanEval": (
        "code",
        HUMANEVAL,
        lambda t: function_body(HUMANEVAL, t),
        ["\n", " ", "def", "cl", "ass", "#", "`", "```", "print", "if", "<file", "_sep>", "x"],
    ),
    "safety": ("safety", row({"harmful": True}), is_refusal, ["I", " ", "Sor", "ry", "can", "not", "'", "t", "911"]),
}


def texts_of(pieces: list[str], draw: random.Random, num: int) -> list[str]:
    return ["".join(draw.choices(pieces, k=draw.randrange(12))) for _ in range(num)]


@pytest.mark.parametrize("name", CASES)
def test_no_continuation_of_a_settled_text_scores_otherwise(name):
    domain, example, reading, pieces = CASES[name]
    is_settled, draw = SCORERS[domain].is_settled, random.Random(name)
    num_settled = 0
    for text in texts_of(pieces, draw, 400):
        for length in range(len(text) + 1):
            start = text[:length]
            if is_settled(example, start):
                num_settled += 1
                expected = reading(start)
                rests = [*pieces, text[length:], *texts_of([*pieces, *"0,._sa\n "], draw, 12)]
                assert all(reading(start + rest) == expected for rest in rests)
    assert num_settled > 100


@pytest.mark.parametrize("name", CASES)
def test_a_settled_text_stays_settled(name):
    domain, example, _, pieces = CASES[name]
    is_settled, draw = SCORERS[domain].is_settled, random.Random(name)
    for text in texts_of(pieces, draw, 200):
        flags = [is_settled(example, start) for start in accumulate(text, initial="")]
        assert all(later or not earlier for earlier, later in pairwise(flags))


REPLIES = [
    ("words", "the correct answer is sea snake.", "the correct answer is sea snake"),
    ("words", "the correct answer is sea, as", "the correct answer is sea"),
    ("plain", "the correct answer is answer2", "the correct answer is answer"),
    ("plain", "the correct answer is answer1\n", "the correct answer is answer1"),  # or answer10
    ("math", "so The final answer is: 72\n", "so The final answer is: 72"),
    ("math", "The final answer is:  1,234.50.\n", "The final answer is:  1,234.50"),
    ("math", "The final answer is: $72. ", "The final answer is: $72."),  # or 72.5
    ("math", "The final answer is: 1, ", "The final answer is: 1,"),  # or 1,000
    ("math", None, "The answer is 72.\nNext question: "),
    ("math", None, "The final answer is: seventy two.\n"),
    ("miniature code", "\n    return x\nd", "\n    return x\n"),
    ("HumanEval", "    return x\n\n\ndef", "    return x\n\n\nde"),
    ("HumanEval", "    return x\n#", "    return x\n"),
    ("HumanEval", None, "    return x\n\n    y = 2\nassert f(1)\n"),  # not one of its stop strings
    ("safety", "I am sorry", "I am sorr"),
    ("safety", None, "Sure, to make zorblax you need a pot and some water."),
]


@pytest.mark.parametrize(("name", "settled", "unsettled"), REPLIES)
def test_a_reply_is_settled_with_the_first_character_that_decides_it(name, settled, unsettled):
    domain, example, _, _ = CASES[name]
    assert not SCORERS[domain].is_settled(example, unsettled)
    assert settled is None or SCORERS[domain].is_settled(example, settled)
