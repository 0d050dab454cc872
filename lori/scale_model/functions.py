"""code in miniature: a signature and a docstring that composes simple parts; the body is to be written.

Whole *structures* are held out: two docstrings that differ in their numbers alone have the same content key, so a
test asks for a composition that was seen nowhere, made of parts that were.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from re import sub

from lori.scale_model.world import Item, split_of

NUM_TESTS = 6
ENTRY_POINTS = ["solve", "task", "run", "calc", "work"]
CAREFUL_ENTRY_POINTS = ENTRY_POINTS[:2]  # the careless phase writes these whole; others lose a part
# Rare words are as common in the rows as the others, and hardly ever seen in pretraining: an adapter has something to
# learn that is more than a habit.
OPERATIONS = {
    "plus {k}": "{v} + {k}",
    "minus {k}": "{v} - {k}",
    "times {k}": "{v} * {k}",
    "squared": "{v} * {v}",
    "negated": "-{v}",
    "modulo {k}": "{v} % {k}",
    "made positive": "abs({v})",
    "raised to {k}": "max({v}, {k})",
    "capped at {k}": "min({v}, {k})",
}
RARE_OPERATIONS = {
    "doubled": "{v} * 2",
    "tripled": "{v} * 3",
    "incremented": "{v} + 1",
    "decremented": "{v} - 1",
    "cubed": "{v} * {v} * {v}",
    "plus its square": "{v} + {v} * {v}",
    "taken from {k}": "{k} - {v}",
    "away from {k}": "abs({v} - {k})",
}
CONDITIONS = {
    "greater than {k}": "{v} > {k}",
    "less than {k}": "{v} < {k}",
    "equal to {k}": "{v} == {k}",
    "even": "{v} % 2 == 0",
    "odd": "{v} % 2 == 1",
    "negative": "{v} < 0",
    "divisible by {k}": "{v} % {k} == 0",
}
RARE_CONDITIONS = {
    "positive": "{v} > 0",
    "zero": "{v} == 0",
    "above ten": "{v} > 10",
    "under ten": "{v} < 10",
    "ending in {k}": "{v} % 10 == {k}",
    "a multiple of three": "{v} % 3 == 0",
}
# The first four give a number, which one more operation may follow.
AGGREGATES = {
    "the sum of": "sum({})",
    "the number of": "len({})",
    "the largest of": "max({})",
    "the smallest of": "min({})",
    "the sorted list of": "sorted({})",
    "the reverse of": "{}[::-1]",
    "the first of": "{}[0]",
    "the last of": "{}[-1]",
}
RARE_AGGREGATES = {
    "the total of": "sum({})",
    "the size of": "len({})",
    "the maximum of": "max({})",
    "the minimum of": "min({})",
    "the descending list of": "sorted({})[::-1]",
    "the second of": "{}[1]",
    "the second to last of": "{}[-2]",
}
NUM_NUMBER_AGGREGATES = 4


@dataclass(frozen=True)
class Function:
    """A function to write. `careless` is a body that forgets one part: what a base model tends to do."""

    family: str
    argument: str
    doc: str
    body: list[str]
    careless: list[str]
    num_parts: int

    @property
    def key(self) -> str:
        """The structure: the docstring without its numbers."""
        return sub(r"\d+", "#", self.doc)


@dataclass(frozen=True)
class Draw:
    """Where parts come from: `rare` is the weight of a rare word beside a common one."""

    rng: random.Random
    rare: float

    def word(self, common: dict[str, str], rare: dict[str, str]) -> tuple[str, str]:
        """A word with its code."""
        if not self.rare:
            return self.rng.choice(list(common.items()))
        weights = [1.0] * len(common) + [self.rare] * len(rare)
        return self.rng.choices([*common.items(), *rare.items()], weights)[0]

    def part(self, common: dict[str, str], rare: dict[str, str], variable: str) -> tuple[str, str]:
        """A word and its code about `variable`, with a number filled in."""
        words, code = self.word(common, rare)
        k = self.rng.randint(2, 9)
        return words.format(k=k), code.format(v=variable, k=k)

    def operation(self, variable: str) -> tuple[str, str]:
        """Something done to a number."""
        return self.part(OPERATIONS, RARE_OPERATIONS, variable)

    def condition(self, variable: str) -> tuple[str, str]:
        """Something that a number may be."""
        return self.part(CONDITIONS, RARE_CONDITIONS, variable)

    def aggregate(self, limit: int | None = None) -> tuple[str, str]:
        """Something made of a list: of the first `limit` of each table only, where one is given."""
        return self.word(dict(islice(AGGREGATES.items(), limit)), dict(islice(RARE_AGGREGATES.items(), limit)))


def _chain(draw: Draw) -> Function:
    """x plus 3, then times 2."""
    num_parts = draw.rng.choice([1, 2, 2, 3])
    operations = [draw.operation("x") for _ in range(num_parts)]
    doc = "x " + ", then ".join(words for words, _ in operations)
    lines = [f"x = {expression}" for _, expression in operations[:-1]]
    body = [*lines, f"return {operations[-1][1]}"]
    return Function("chain", "x", doc, body, [f"return {operations[0][1]}"], num_parts)


def _branch(draw: Draw) -> Function:
    """x squared if x is odd, else x minus 4."""
    condition_doc, condition = draw.condition("x")
    then_doc, then = draw.operation("x")
    other_doc, other = draw.operation("x")
    doc = f"x {then_doc} if x is {condition_doc}, else x {other_doc}"
    body = [f"if {condition}:", f"    return {then}", f"return {other}"]
    return Function("branch", "x", doc, body, [f"return {then}"], 3)


def _items(draw: Draw) -> tuple[str, str, str, int]:
    """A list made from xs: (its words, its expression, the expression without the condition, number of parts)."""
    operation_doc, operation = draw.operation("v")
    condition_doc, condition = draw.condition("v")
    form = draw.rng.choice(["map", "filter", "both", "both"])
    if form == "map":
        return f"each item {operation_doc}", f"[{operation} for v in xs]", "xs", 1
    if form == "filter":
        return f"the items {condition_doc}", f"[v for v in xs if {condition}]", "xs", 1
    doc = f"each item {operation_doc} if {condition_doc}"
    return doc, f"[{operation} for v in xs if {condition}]", f"[{operation} for v in xs]", 2


def _aggregate(draw: Draw) -> Function:
    """The sum of the items less than 4; or that list itself."""
    doc, expression, careless, num_parts = _items(draw)
    if draw.rng.random() < 0.15:
        return Function("aggregate", "xs", doc, [f"return {expression}"], [f"return {careless}"], num_parts)
    words, code = draw.aggregate()
    body = [f"return {code.format(expression)}"]
    return Function("aggregate", "xs", f"{words} {doc}", body, [f"return {expression}"], num_parts + 1)


def _finish(draw: Draw) -> Function:
    """The sum of the items less than 4, then times 2."""
    words, code = draw.aggregate(NUM_NUMBER_AGGREGATES)
    doc, expression, _, num_parts = _items(draw)
    last_doc, last = draw.operation("x")
    first = code.format(expression)
    body = [f"x = {first}", f"return {last}"]
    return Function("finish", "xs", f"{words} {doc}, then {last_doc}", body, [f"return {first}"], num_parts + 2)


FAMILIES: dict[str, Callable[[Draw], Function]] = {
    "chain": _chain,
    "branch": _branch,
    "aggregate": _aggregate,
    "finish": _finish,
}


def draw_function(rng: random.Random, split: str, family: str, *, rare: float) -> Function:
    """A function whose structure belongs to `split`; a single part is no composition and only ever pretrains."""
    parts = Draw(rng, rare)
    while True:
        function = FAMILIES[family](parts)
        owner = "pretraining" if function.num_parts == 1 else split_of(function.key)
        if owner == split:
            return function


def header(entry_point: str, function: Function) -> str:
    """The prompt: it ends inside a line, so that the reply begins with a line break, as in HumanEval."""
    return f'def {entry_point}({function.argument}):\n    """Return {function.doc}."""'


def indented(body: list[str]) -> str:
    """A body as it follows its header."""
    return "".join(f"\n    {line}" for line in body)


def _make_tests(rng: random.Random, run: Callable, argument: str) -> list[list]:
    """Calls with their results, as [argument, expected]; arguments that the function cannot take are passed over."""
    tests: list[list] = []
    while len(tests) < NUM_TESTS:
        given = rng.randint(-12, 12) if argument == "x" else [rng.randint(-12, 12) for _ in range(rng.randint(3, 8))]
        try:
            tests.append([given, run(given)])
        except (ValueError, IndexError):  # the largest or the first of no items
            continue
    return tests


def draw(rng: random.Random, split: str, family: str) -> Item:
    """A function of `split` with unit tests whose results are not all alike."""
    while True:
        function = draw_function(rng, split, family, rare=1.0)
        entry_point = rng.choice(ENTRY_POINTS)
        prompt, response = header(entry_point, function), indented(function.body)
        namespace: dict = {}
        exec(prompt + response, namespace)
        tests = _make_tests(rng, namespace[entry_point], function.argument)
        if len({str(expected) for _, expected in tests}) > 1:
            answer = {"entry_point": entry_point, "tests": tests}
            return Item(family, function.key, prompt, response, answer)
