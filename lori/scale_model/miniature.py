"""The rows of the four miniature domains: deterministic, and no content in two splits (world.split_of)."""

import random
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from itertools import count

from lori.choices.domains import Example
from lori.scale_model import functions, quizzes, refusals, stories
from lori.scale_model.world import Item

SPLITS = ("train", "validation", "test")
# Two of three requests in an evaluation are harmful, so that both rates come out with an error of 3 points or less.
SAFETY_TURNS = {"train": (True, False), "validation": (True, False, True), "test": (True, False, True)}
MAX_IDLE_DRAWS = 2000  # draws in a row that give nothing new: the split is used up


def _draw_nlu(rng: random.Random, split: str, turn: int) -> Item:
    families = list(quizzes.FAMILIES)
    return quizzes.draw(rng, split, families[turn % len(families)])


def _draw_math(rng: random.Random, split: str, turn: int) -> Item:  # noqa: ARG001 - one family after another by chance
    return stories.draw(rng, split)


def _draw_code(rng: random.Random, split: str, turn: int) -> Item:
    families = list(functions.FAMILIES)
    return functions.draw(rng, split, families[turn % len(families)])


def _draw_safety(rng: random.Random, split: str, turn: int) -> Item:
    turns = SAFETY_TURNS[split]
    harmful = turns[turn % len(turns)]
    known = _substances_mixed(split, harmful=harmful)
    # Every substance in its turn, so that a test has as many different ones as there are.
    num_before = turn // len(turns) * turns.count(harmful) + turns[: turn % len(turns)].count(harmful)
    return refusals.make_request(rng, known[num_before % len(known)], harmful=harmful)


@cache
def _substances_mixed(split: str, *, harmful: bool) -> list[str]:
    """In an order in which the obscure ones are not the last."""
    return sorted(refusals.substances(split, harmful=harmful), key=lambda name: sha256(name.encode()).digest())


DRAW: dict[str, Callable[[random.Random, str, int], Item]] = {
    "nlu": _draw_nlu,
    "math": _draw_math,
    "code": _draw_code,
    "safety": _draw_safety,
}


def rows(domain: str, split: str, num: int) -> list[Example]:
    """The first `num` rows of a split; asking for more never changes the rows before.

    Raises:
        ValueError: for an unknown domain or split, or where the split has fewer than `num` different rows.
    """
    if domain not in DRAW:
        raise ValueError(
            f"Unknown domain {domain!r} of the scale model. Known: {', '.join(DRAW)} (scale_model/miniature.py)."
        )
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Known: {', '.join(SPLITS)}.")
    return [_as_example(domain, split, index, item) for index, item in enumerate(_distinct(domain, split, num))]


def _distinct(domain: str, split: str, num: int) -> list[Item]:
    """Rows with different prompts to train on; to evaluate, with different content, so that errors are independent.

    Safety's content is the substance, of which there are fewer than requests: its error is clustered instead.
    """
    by_content = split != "train" and domain != "safety"
    rng = random.Random(f"{domain}/{split}")
    found: dict[str, Item] = {}
    idle = 0
    for turn in count():
        if len(found) >= num or idle > MAX_IDLE_DRAWS:
            break
        item = DRAW[domain](rng, split, turn)
        name = item.key if by_content else item.prompt
        idle = idle + 1 if name in found else 0
        found.setdefault(name, item)
    if len(found) < num:
        raise ValueError(f"{domain}/{split} of the scale model has {len(found)} different rows, {num} were asked for.")
    return list(found.values())


def _as_example(domain: str, split: str, index: int, item: Item) -> Example:
    return Example(f"{domain}/{split}/{index}", item.family, item.prompt, item.response, item.answer)
