"""nlu in miniature: eight families of true/false and multiple choice, named after the paper's eight benchmarks.

Difference from the paper: the reply repeats the option's *text* ("the correct answer is forest") where the paper's
repeats its label ("answer2"). A model of this size does not learn to look labels up; it does learn to pick a text.
"""

import random
from dataclasses import dataclass

from lori.scale_model import world
from lori.scale_model.world import Item, instruction_prompt, split_of


@dataclass(frozen=True)
class Question:
    """One fact asked for: as a question and as a sentence that the answer completes."""

    kind: str
    entity: str
    text: str
    stem: str
    correct: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """The form of a benchmark: what it asks for, how it labels the choices, and of which facts."""

    instruction: str
    label: str
    num_choices: int
    asks_with_stem: bool
    kinds: tuple[str, ...]


# kind → (question, sentence, the fact, every possible answer)
DIRECT = {
    "home": ("where does the {} live?", "the {} lives in the", world.HOME_OF, world.HOMES),
    "food": ("what does the {} eat?", "the {} eats", world.FOOD_OF, world.FOODS),
    "color": ("what color is the {}?", "the {} is", world.COLOR_OF, world.COLORS),
    "use": ("what is the {} used for?", "the {} is used to", world.TOOL_USES, list(world.TOOL_USES.values())),
    "place": ("where is the {}?", "the {} is in the", world.PLACE_OF, world.PLACES),
    "material": ("what is the {} made of?", "the {} is made of", world.MATERIAL_OF, world.MATERIALS),
}
REVERSE = {
    "animal_at": ("which animal lives in the {}?", "in the {} lives the", world.HOME_OF),
    "animal_eating": ("which animal eats {}?", "{} is eaten by the", world.FOOD_OF),
    "tool_for": ("which tool is used to {}?", "to {} you need the", world.TOOL_USES),
}
DIRECT_OF = {"animal_at": "home", "animal_eating": "food", "tool_for": "use"}
EVERY_KIND = (*DIRECT, *REVERSE)
FAMILIES = {
    "boolq": Family("Please answer true or false. question:", "", 1, True, EVERY_KIND),
    "piqa": Family("Please choose the solution. goal:", "solution", 2, False, ("use", "tool_for", "material")),
    "siqa": Family("Please choose the answer. context:", "answer", 3, False, ("home", "food", "color")),
    "arc_c": Family("Please choose the answer. hard question:", "answer", 4, False, tuple(REVERSE)),
    "arc_e": Family("Please choose the answer. question:", "answer", 4, False, ("home", "food", "use", "place")),
    "obqa": Family("Please choose the answer. open book:", "answer", 4, False, ("place", "material", "color")),
    "hellaswag": Family("Please choose the ending.", "ending", 4, True, EVERY_KIND),
    "winogrande": Family("Please fill the blank.", "option", 2, True, EVERY_KIND),
}


def draw_question(rng: random.Random, kinds: tuple[str, ...]) -> Question:
    """A fact of one of `kinds`; the wrong answers are wrong for certain."""
    kind = rng.choice(kinds)
    if kind in DIRECT:
        text, stem, fact, values = DIRECT[kind]
        entity = rng.choice(list(fact))
        correct = fact[entity]
        wrong = tuple(value for value in values if value != correct)
    else:
        text, stem, fact = REVERSE[kind]
        correct = rng.choice(list(fact))
        entity = fact[correct]
        wrong = tuple(other for other in fact if fact[other] != entity)
    return Question(kind, entity, text.format(entity), stem.format(entity), correct, wrong)


def content_key(question: Question, choices: list[str]) -> str:
    """The question and its candidates: neither the family, the wording nor the order makes another key.

    With one candidate (true or false), a statement and its reverse are the same content too.
    """
    if len(choices) == 1 and question.kind in REVERSE:
        return f"{DIRECT_OF[question.kind]}:{choices[0]}|{question.entity}"
    return f"{question.kind}:{question.entity}|{','.join(sorted(choices))}"


def draw_choices(rng: random.Random, question: Question, num: int) -> list[str]:
    """The correct answer among `num`, in random order."""
    choices = [*rng.sample(question.wrong, num - 1), question.correct]
    rng.shuffle(choices)
    return choices


def _true_or_false(rng: random.Random, question: Question) -> Item:
    is_true = rng.random() < 0.5
    shown = question.correct if is_true else rng.choice(question.wrong)
    asked = question.stem if rng.random() < 0.5 else question.text
    reply = "true" if is_true else "false"
    prompt = instruction_prompt(f"{FAMILIES['boolq'].instruction} {asked} {shown}.")
    answer = {"correct": reply, "choices": ["true", "false"]}
    return Item("boolq", content_key(question, [shown]), prompt, f"the correct answer is {reply}", answer)


def _multiple_choice(rng: random.Random, name: str, question: Question) -> Item:
    family = FAMILIES[name]
    choices = draw_choices(rng, question, family.num_choices)
    asked = f"{question.stem} _." if family.asks_with_stem else question.text
    listed = " ".join(f"{family.label}{index}: {choice}" for index, choice in enumerate(choices, start=1))
    answer = {"correct": question.correct, "choices": choices}
    prompt = instruction_prompt(f"{family.instruction} {asked} {listed}")
    key = content_key(question, choices)
    return Item(name, key, prompt, f"the correct answer is {question.correct}", answer)


def draw(rng: random.Random, split: str, family: str) -> Item:
    """A question of `family` whose content belongs to `split`."""
    while True:
        question = draw_question(rng, FAMILIES[family].kinds)
        item = _true_or_false(rng, question) if family == "boolq" else _multiple_choice(rng, family, question)
        if split_of(item.key) == split:
            return item
