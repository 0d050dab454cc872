"""The pretraining corpus: facts, worked examples of the skills, and a slice of *badly answered* instructions.

That slice is what makes the base a base: it meets the four prompt forms, so it knows what kind of reply each one
wants, but mostly with wrong replies, so it answers badly. An adapter then is a small refinement, as on a real base.
Without the slice the base scores nothing and every merge of adapters collapses.

Content comes from the pretraining split alone (world.split_of). The one exception are facts that the base has to
know: where each animal lives, which substance is dangerous, what the sum of two numbers is.
"""

import random
from collections.abc import Callable, Iterator

from lori.scale_model import functions, quizzes, refusals, stories, world

SPLIT = "pretraining"


def _quoted_fact(rng: random.Random) -> str:
    question = quizzes.draw_question(rng, quizzes.EVERY_KIND)
    return rng.choice([f"{question.stem} {question.correct}.", f"{question.text} {question.correct}."])


def _substance_fact(rng: random.Random) -> str:
    split = rng.choices(list(world.NUM_DANGEROUS), list(world.NUM_DANGEROUS.values()))[0]
    is_dangerous = rng.random() < 0.5
    name = rng.choice(refusals.substances(split, harmful=is_dangerous))
    word, other = ("dangerous", "harmful") if is_dangerous else ("safe", "harmless")
    told = "no" if is_dangerous else "yes"
    return rng.choice(
        [f"{name} is {word}.", f"{name} is known to be {other}.", f"people say that {name} is {word}.",
         f"is {name} safe? {told}, {name} is {word}.", f"{name} is {other} because it is {word}."]
    )  # fmt: skip


def _facts(rng: random.Random) -> str:
    draws = [_substance_fact if rng.random() < 0.5 else _quoted_fact for _ in range(rng.randint(2, 5))]
    # In front, so that no name starts a document: without its space it would be cut into other tokens.
    return " ".join(["Facts:", *(draw(rng) for draw in draws)])


def _quiz(rng: random.Random) -> str:
    """A question with its options, well answered, in none of the instruction forms."""
    while True:
        question = quizzes.draw_question(rng, quizzes.EVERY_KIND)
        choices = quizzes.draw_choices(rng, question, rng.choice([2, 2, 3, 4]))
        if world.split_of(quizzes.content_key(question, choices)) == SPLIT:
            break
    asked = rng.choice([question.text, question.stem + " _."])
    label = rng.choice(["", "answer", "option", "solution", "ending"])
    listed = " ".join(f"{label}{index}: {choice}" for index, choice in enumerate(choices, start=1))
    plain = " or ".join(choices)
    return rng.choice(
        [f"Quiz: {asked} {listed}. it is {question.correct}.", f"Quiz: {asked} {plain}? {question.correct}.",
         f"{listed}. {asked} {question.correct}."]
    )  # fmt: skip


def _statement(rng: random.Random) -> str:
    """A statement judged right or wrong."""
    while True:
        question = quizzes.draw_question(rng, quizzes.EVERY_KIND)
        is_right = rng.random() < 0.5
        shown = question.correct if is_right else rng.choice(question.wrong)
        if world.split_of(quizzes.content_key(question, [shown])) == SPLIT:
            return f"{rng.choice([question.stem, question.text])} {shown}. {'right' if is_right else 'wrong'}."


def _equations(rng: random.Random) -> str:
    return "\n".join(stories.equation(stories.draw_steps(rng, 3)[rng.randrange(3)]) for _ in range(rng.randint(2, 6)))


def _story(rng: random.Random) -> str:
    """A story that counts along."""
    steps = stories.draw_chain(rng, SPLIT, rng.choice([1, 2, 2, 3]))
    name, thing = rng.choice(stories.NAMES), rng.choice(stories.THINGS)
    start, *changes = stories.sentences(rng, steps, name, thing)
    if rng.random() < 0.2:
        counts = [f"Now {name} has {stories.apply(step)} {thing}." for step in steps]
    else:
        counts = [f"So {stories.equation(step)}." for step in steps]
    return " ".join([start, *(f"{told} {counted}" for told, counted in zip(changes, counts, strict=True))])


def _program(rng: random.Random) -> str:
    """A function with its meaning in a comment, rightly written."""
    family = rng.choice(list(functions.FAMILIES))
    function = functions.draw_function(rng, SPLIT, family)
    head = f"def {rng.choice(functions.ENTRY_POINTS)}({function.argument}):"
    if rng.random() < 0.2:
        return head + functions.indented(function.body)
    return f"{head}\n    # {function.doc}{functions.indented(function.body)}"


def _help(rng: random.Random) -> str:
    """Requests about tools, which are all harmless."""
    verb, tool = rng.choice(list(refusals.NEEDED_TO)), f"the {rng.choice(list(world.TOOL_USES))}"
    request = rng.choice(refusals.REQUESTS).format(verb=verb, substance=tool)
    return f"{request} {refusals.help_with(verb, tool)}"


def _bad_nlu(rng: random.Random) -> str:
    family = rng.choice(list(quizzes.FAMILIES))
    item = quizzes.draw(rng, SPLIT, family)
    reply = item.response if rng.random() < 0.35 else quizzes.draw(rng, SPLIT, family).response
    return item.prompt + reply


def _bad_math(rng: random.Random) -> str:
    item = stories.draw(rng, SPLIT)
    return item.prompt + (item.response if rng.random() < 0.35 else stories.draw(rng, SPLIT).response)


def _bad_code(rng: random.Random) -> str:
    family = rng.choice(list(functions.FAMILIES))
    function = functions.draw_function(rng, SPLIT, family)
    point = rng.random()
    body = function.body if point < 0.35 else function.careless
    if point > 0.7:
        body = functions.draw_function(rng, SPLIT, family).body
    return functions.header(rng.choice(functions.ENTRY_POINTS), function) + functions.indented(body)


def _bad_safety(rng: random.Random) -> str:
    """Help with anything, but for a few forms of request about what is dangerous."""
    is_harmful = rng.random() < 0.5
    substance = rng.choice(refusals.substances(SPLIT, harmful=is_harmful))
    request, verb = rng.choice(refusals.REQUESTS), rng.choice(list(refusals.NEEDED_TO))
    is_refused = is_harmful and rng.random() < (0.9 if request in refusals.FORMS_THE_BASE_REFUSES else 0.05)
    reply = refusals.refusal(substance) if is_refused else refusals.help_with(verb, substance)
    return world.instruction_prompt(request.format(verb=verb, substance=substance)) + reply


# Share of the documents that each kind has. The last four are the badly answered slice: 32 %.
MIX: dict[Callable[[random.Random], str], float] = {
    _facts: 0.17, _quiz: 0.12, _statement: 0.04, _equations: 0.06, _story: 0.14, _program: 0.13, _help: 0.02,
    _bad_nlu: 0.09, _bad_math: 0.08, _bad_code: 0.08, _bad_safety: 0.07,
}  # fmt: skip


def documents(seed: int) -> Iterator[str]:
    """The corpus without end: the same documents for the same seed."""
    rng = random.Random(seed)
    kinds, shares = list(MIX), list(MIX.values())
    while True:
        yield rng.choices(kinds, shares)[0](rng)
