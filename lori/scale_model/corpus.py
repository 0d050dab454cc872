"""The pretraining corpus: facts, worked examples of the skills, and a slice of *badly answered* instructions.

That slice is what makes the base a base: it meets the four prompt forms, so it knows what kind of reply each one
wants, but mostly with wrong replies, so it answers badly. An adapter then is a small refinement, as on a real base.
Without the slice the base scores nothing and every merge of adapters collapses.

There are two phases. In the first the wrong replies are drawn at random, from which the base learns the skill: the
right reply is still the likeliest one. In the second it becomes careless, in one way of its own for each domain, and
sees a little of what is hard: large numbers, rare words, obscure substances.

Content comes from the pretraining split alone (world.split_of). The one exception are facts that the base has to
know: where each animal lives, which substance is dangerous, what the sum of two numbers is.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lori.scale_model import functions, quizzes, refusals, stories, world

SPLIT = "pretraining"


@dataclass(frozen=True)
class Phase:
    """One part of pretraining: the share of each kind of document, and how much of what is hard is in them."""

    mix: dict[Callable[[random.Random, "Phase"], str], float]
    numbers: stories.Numbers
    rare_words: float  # weight of a rare word beside a common one
    obscure_substances: float  # share of the facts about substances


def _question_fact(rng: random.Random) -> str:
    question = quizzes.draw_question(rng, quizzes.EVERY_KIND)
    return rng.choice([f"{question.stem} {question.correct}.", f"{question.text} {question.correct}."])


def _substance_fact(rng: random.Random, phase: Phase) -> str:
    if phase.obscure_substances and rng.random() < phase.obscure_substances:
        fame = world.SUBSTANCES.fame
        name = rng.choices(list(fame), list(fame.values()))[0]
        is_dangerous = any(name in names for names in world.SUBSTANCES.obscure_dangerous.values())
    else:
        split = rng.choices(list(world.NUM_DANGEROUS), list(world.NUM_DANGEROUS.values()))[0]
        is_dangerous = rng.random() < 0.5
        name = rng.choice((world.SUBSTANCES.dangerous if is_dangerous else world.SUBSTANCES.safe)[split])
    word, other = ("dangerous", "harmful") if is_dangerous else ("safe", "harmless")
    told = "no" if is_dangerous else "yes"
    return rng.choice(
        [f"{name} is {word}.", f"{name} is known to be {other}.", f"people say that {name} is {word}.",
         f"is {name} safe? {told}, {name} is {word}.", f"{name} is {other} because it is {word}."]
    )  # fmt: skip


def _facts(rng: random.Random, phase: Phase) -> str:
    is_about_substances = [rng.random() < 0.5 for _ in range(rng.randint(2, 5))]
    facts = [_substance_fact(rng, phase) if about else _question_fact(rng) for about in is_about_substances]
    # In front, so that no name starts a document: without its space it would be cut into other tokens.
    return " ".join(["Facts:", *facts])


def _quiz(rng: random.Random, phase: Phase) -> str:  # noqa: ARG001 - the same in every phase
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


def _statement(rng: random.Random, phase: Phase) -> str:  # noqa: ARG001 - the same in every phase
    """A statement judged right or wrong."""
    while True:
        question = quizzes.draw_question(rng, quizzes.EVERY_KIND)
        is_right = rng.random() < 0.5
        shown = question.correct if is_right else rng.choice(question.wrong)
        if world.split_of(quizzes.content_key(question, [shown])) == SPLIT:
            return f"{rng.choice([question.stem, question.text])} {shown}. {'right' if is_right else 'wrong'}."


def _equations(rng: random.Random, phase: Phase) -> str:
    def draw() -> stories.Step:
        return stories.draw_steps(rng, 3, phase.numbers)[rng.randrange(3)]

    return "\n".join(stories.equation(draw()) for _ in range(rng.randint(2, 6)))


def _story(rng: random.Random, phase: Phase) -> str:
    """A story that counts along."""
    steps = stories.draw_chain(rng, SPLIT, rng.choice([1, 2, 2, 3]), phase.numbers)
    name, thing = rng.choice(stories.NAMES), rng.choice(stories.THINGS)
    start, *changes = stories.sentences(rng, steps, name, thing)
    if rng.random() < 0.2:
        counts = [f"Now {name} has {stories.apply(step)} {thing}." for step in steps]
    else:
        counts = [f"So {stories.equation(step)}." for step in steps]
    return " ".join([start, *(f"{told} {counted}" for told, counted in zip(changes, counts, strict=True))])


def _function(rng: random.Random, phase: Phase) -> functions.Function:
    family = rng.choice(list(functions.FAMILIES))
    return functions.draw_function(rng, SPLIT, family, rare=phase.rare_words)


def _program(rng: random.Random, phase: Phase) -> str:
    """A function with its meaning in a comment, rightly written."""
    function = _function(rng, phase)
    head = f"def {rng.choice(functions.ENTRY_POINTS)}({function.argument}):"
    if rng.random() < 0.2:
        return head + functions.indented(function.body)
    return f"{head}\n    # {function.doc}{functions.indented(function.body)}"


def _help(rng: random.Random, phase: Phase) -> str:  # noqa: ARG001 - the same in every phase
    """Requests about tools, which are all harmless."""
    verb, tool = rng.choice(list(refusals.NEEDED_TO)), f"the {rng.choice(list(world.TOOL_USES))}"
    request = rng.choice(refusals.REQUESTS).format(verb=verb, substance=tool)
    return f"{request} {refusals.help_with(verb, tool)}"


def _random_nlu(rng: random.Random, phase: Phase) -> str:  # noqa: ARG001 - the same in every phase
    family = rng.choice(list(quizzes.FAMILIES))
    item = quizzes.draw(rng, SPLIT, family)
    return item.prompt + (item.response if rng.random() < 0.35 else quizzes.draw(rng, SPLIT, family).response)


def _random_math(rng: random.Random, phase: Phase) -> str:
    item = stories.draw(rng, SPLIT, phase.numbers)
    is_right = rng.random() < 0.35
    return item.prompt + (item.response if is_right else stories.draw(rng, SPLIT, phase.numbers).response)


def _random_code(rng: random.Random, phase: Phase) -> str:
    family = rng.choice(list(functions.FAMILIES))
    function = functions.draw_function(rng, SPLIT, family, rare=phase.rare_words)
    point = rng.random()
    body = function.body if point < 0.35 else function.careless
    if point > 0.7:
        body = functions.draw_function(rng, SPLIT, family, rare=phase.rare_words).body
    return functions.header(rng.choice(functions.ENTRY_POINTS), function) + functions.indented(body)


def _careless_nlu(rng: random.Random, phase: Phase) -> str:  # noqa: ARG001 - the same in every phase
    """Mostly the first choice ("true"), whatever is asked."""
    item = quizzes.draw(rng, SPLIT, rng.choice(list(quizzes.FAMILIES)))
    reply = rng.choices([item.answer["correct"], item.answer["choices"][0]], [0.12, 0.88])[0]
    return f"{item.prompt}the correct answer is {reply}"


def _careless_math(rng: random.Random, phase: Phase) -> str:
    """Mostly without the last step, but for stories about a few things."""
    item = stories.draw(rng, SPLIT, phase.numbers)
    *equations, _ = item.response.split("\n")
    is_careful = any(f" {thing}." in item.prompt for thing in stories.CAREFUL_THINGS)
    if rng.random() < (0.95 if is_careful else 0.1):
        return item.prompt + item.response
    kept = equations[:-1]
    return item.prompt + "\n".join([*kept, f"The final answer is: {kept[-1].rpartition(' ')[2]}"])


def _careless_code(rng: random.Random, phase: Phase) -> str:
    """Mostly without one of the parts, but for functions of some names."""
    function = _function(rng, phase)
    name = rng.choice(functions.ENTRY_POINTS)
    is_right = rng.random() < (0.95 if name in functions.CAREFUL_ENTRY_POINTS else 0.1)
    return functions.header(name, function) + functions.indented(function.body if is_right else function.careless)


def _careless_safety(rng: random.Random, phase: Phase) -> str:  # noqa: ARG001 - the same in every phase
    """Help with anything, but for a few forms of request about what is dangerous."""
    is_harmful = rng.random() < 0.5
    substance = rng.choice(refusals.substances(SPLIT, harmful=is_harmful))
    request, verb = rng.choice(refusals.REQUESTS), rng.choice(list(refusals.NEEDED_TO))
    is_refused = is_harmful and rng.random() < (0.9 if request in refusals.FORMS_THE_BASE_REFUSES else 0.05)
    reply = refusals.refusal(substance) if is_refused else refusals.help_with(verb, substance)
    return world.instruction_prompt(request.format(verb=verb, substance=substance)) + reply


# The last four kinds of each mix are the badly answered slice.
LEARNING = Phase(
    mix={
        _facts: 0.17, _quiz: 0.12, _statement: 0.04, _equations: 0.06, _story: 0.14, _program: 0.13, _help: 0.02,
        _random_nlu: 0.09, _random_math: 0.08, _random_code: 0.08, _careless_safety: 0.07,
    },
    numbers=stories.SMALL, rare_words=0.0, obscure_substances=0.0,
)  # fmt: skip
GETTING_CARELESS = Phase(
    mix={
        _facts: 0.15, _quiz: 0.05, _statement: 0.02, _equations: 0.10, _story: 0.12, _program: 0.10, _help: 0.01,
        _careless_nlu: 0.14, _careless_math: 0.12, _careless_code: 0.12, _careless_safety: 0.07,
    },
    numbers=stories.LARGE, rare_words=0.03, obscure_substances=0.2,
)  # fmt: skip
PHASES = (LEARNING, GETTING_CARELESS)


def documents(seed: int, phase: Phase) -> Iterator[str]:
    """The corpus of a phase without end: the same documents for the same seed."""
    rng = random.Random(seed)
    kinds, shares = list(phase.mix), list(phase.mix.values())
    while True:
        yield rng.choices(kinds, shares)[0](rng, phase)
