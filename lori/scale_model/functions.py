"""code in miniature: a signature and a docstring that composes simple parts; the body is to be written.

Whole *structures* are held out: two docstrings that differ in their numbers alone have the same content key, so a
test asks for a composition that was seen nowhere, made of parts that were.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from re import sub

from lori.scale_model.world import Item, split_of

NUM_TESTS = 6
ENTRY_POINTS = ["solve", "task", "run", "calc", "work"]
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
CONDITIONS = {
    "greater than {k}": "{v} > {k}",
    "less than {k}": "{v} < {k}",
    "equal to {k}": "{v} == {k}",
    "even": "{v} % 2 == 0",
    "odd": "{v} % 2 == 1",
    "negative": "{v} < 0",
    "divisible by {k}": "{v} % {k} == 0",
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
NUMBER_AGGREGATES = list(AGGREGATES)[:4]


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


def _part(rng: random.Random, table: dict[str, str], variable: str) -> tuple[str, str]:
    words = rng.choice(list(table))
    k = rng.randint(2, 9)
    return words.format(k=k), table[words].format(v=variable, k=k)


def _chain(rng: random.Random) -> Function:
    """x plus 3, then times 2."""
    num_parts = rng.choice([1, 2, 2, 3])
    operations = [_part(rng, OPERATIONS, "x") for _ in range(num_parts)]
    doc = "x " + ", then ".join(words for words, _ in operations)
    lines = [f"x = {expression}" for _, expression in operations[:-1]]
    body = [*lines, f"return {operations[-1][1]}"]
    return Function("chain", "x", doc, body, [f"return {operations[0][1]}"], num_parts)


def _branch(rng: random.Random) -> Function:
    """x squared if x is odd, else x minus 4."""
    condition_doc, condition = _part(rng, CONDITIONS, "x")
    then_doc, then = _part(rng, OPERATIONS, "x")
    other_doc, other = _part(rng, OPERATIONS, "x")
    doc = f"x {then_doc} if x is {condition_doc}, else x {other_doc}"
    body = [f"if {condition}:", f"    return {then}", f"return {other}"]
    return Function("branch", "x", doc, body, [f"return {then}"], 3)


def _items(rng: random.Random) -> tuple[str, str, str, int]:
    """A list made from xs: (its words, its expression, the expression without the condition, number of parts)."""
    operation_doc, operation = _part(rng, OPERATIONS, "v")
    condition_doc, condition = _part(rng, CONDITIONS, "v")
    form = rng.choice(["map", "filter", "both", "both"])
    if form == "map":
        return f"each item {operation_doc}", f"[{operation} for v in xs]", "xs", 1
    if form == "filter":
        return f"the items {condition_doc}", f"[v for v in xs if {condition}]", "xs", 1
    doc = f"each item {operation_doc} if {condition_doc}"
    return doc, f"[{operation} for v in xs if {condition}]", f"[{operation} for v in xs]", 2


def _aggregate(rng: random.Random) -> Function:
    """The sum of the items less than 4; or that list itself."""
    doc, expression, careless, num_parts = _items(rng)
    if rng.random() < 0.15:
        return Function("aggregate", "xs", doc, [f"return {expression}"], [f"return {careless}"], num_parts)
    words = rng.choice(list(AGGREGATES))
    body = [f"return {AGGREGATES[words].format(expression)}"]
    return Function("aggregate", "xs", f"{words} {doc}", body, [f"return {expression}"], num_parts + 1)


def _finish(rng: random.Random) -> Function:
    """The sum of the items less than 4, then times 2."""
    words = rng.choice(NUMBER_AGGREGATES)
    doc, expression, _, num_parts = _items(rng)
    last_doc, last = _part(rng, OPERATIONS, "x")
    first = AGGREGATES[words].format(expression)
    body = [f"x = {first}", f"return {last}"]
    return Function("finish", "xs", f"{words} {doc}, then {last_doc}", body, [f"return {first}"], num_parts + 2)


FAMILIES: dict[str, Callable[[random.Random], Function]] = {
    "chain": _chain,
    "branch": _branch,
    "aggregate": _aggregate,
    "finish": _finish,
}


def draw_function(rng: random.Random, split: str, family: str) -> Function:
    """A function whose structure belongs to `split`; a single part is no composition and only ever pretrains."""
    while True:
        function = FAMILIES[family](rng)
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
        function = draw_function(rng, split, family)
        entry_point = rng.choice(ENTRY_POINTS)
        prompt, response = header(entry_point, function), indented(function.body)
        namespace: dict = {}
        exec(prompt + response, namespace)
        tests = _make_tests(rng, namespace[entry_point], function.argument)
        if len({str(expected) for _, expected in tests}) > 1:
            answer = {"entry_point": entry_point, "tests": tests}
            return Item(family, function.key, prompt, response, answer)
