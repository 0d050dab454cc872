"""math in miniature: short stories with two or three changes, answered by one worked equation a step."""

import random
from dataclasses import dataclass

from lori.scale_model.world import Item, split_of, words

NAMES = words("Tom Ann Bob Sue Max Eva Leo Mia")
THINGS = words("apples books coins cards balls cakes eggs pens")
GAINS = ["buys", "finds", "gets"]
LOSSES = ["eats", "gives away", "loses", "sells"]
CAREFUL_THINGS = THINGS[:2]  # the careless phase works stories about these out to the end; others lose a step
Step = tuple[int, str, int]
FAMILIES = {2: "two_steps", 3: "three_steps"}


@dataclass(frozen=True)
class Numbers:
    """How large the numbers are: of the start, of a change, and of what may still be doubled."""

    start: tuple[int, int]
    change: tuple[int, int]
    doubled_up_to: int


SMALL = Numbers(start=(3, 12), change=(1, 9), doubled_up_to=10)
MEDIUM = Numbers(start=(4, 25), change=(1, 12), doubled_up_to=20)  # of the rows
LARGE = Numbers(start=(8, 60), change=(2, 24), doubled_up_to=40)
NO_GAINS_FROM = 76  # so that every count stays below 100


def draw_steps(rng: random.Random, num_steps: int, numbers: Numbers) -> list[Step]:
    """A chain of (count before, operation, number): the skeleton of a story."""
    count = rng.randint(*numbers.start)
    least, most = numbers.change
    steps = []
    for _ in range(num_steps):
        point = rng.random()
        if point < 0.15 and count <= numbers.doubled_up_to:
            steps.append((count, "*", 2))
        elif (point < 0.55 and count < NO_GAINS_FROM) or count < least + 2:
            steps.append((count, "+", rng.randint(least, most)))
        else:
            steps.append((count, "-", rng.randint(least, min(most, count - 1))))
        count = apply(steps[-1])
    return steps


def apply(step: Step) -> int:
    """The count after `step`."""
    count, operation, number = step
    return {"+": count + number, "-": count - number, "*": count * number}[operation]


def equation(step: Step) -> str:
    """A step as it is written out."""
    return f"{step[0]} {step[1]} {step[2]} = {apply(step)}"


def skeleton(steps: list[Step]) -> str:
    """The content key: the start and every operation with its number, whoever the story is about."""
    return str(steps[0][0]) + "".join(f"{operation}{number}" for _, operation, number in steps)


def draw_chain(rng: random.Random, split: str, num_steps: int, numbers: Numbers) -> list[Step]:
    """A chain that belongs to `split`."""
    while True:
        steps = draw_steps(rng, num_steps, numbers)
        if split_of(skeleton(steps)) == split:
            return steps


def sentences(rng: random.Random, steps: list[Step], name: str, thing: str) -> list[str]:
    """The story of `steps`, one sentence for the start and one for each change."""
    told = [f"{name} has {steps[0][0]} {thing}."]
    for _, operation, number in steps:
        if operation == "*":
            told.append(f"Then {name} doubles the {thing}.")
        else:
            told.append(f"Then {name} {rng.choice(GAINS if operation == '+' else LOSSES)} {number} {thing}.")
    return told


def solution(steps: list[Step]) -> str:
    """The worked reply to a story."""
    return "\n".join([*map(equation, steps), f"The final answer is: {apply(steps[-1])}"])


def draw(rng: random.Random, split: str, numbers: Numbers = MEDIUM) -> Item:
    """A story with its solution whose skeleton belongs to `split`."""
    steps = draw_chain(rng, split, rng.choice([2, 3]), numbers)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    story = " ".join(sentences(rng, steps, name, thing))
    prompt = f"{story} How many {thing} does {name} have now?\nAnswer the above question step by step.\n"
    return Item(FAMILIES[len(steps)], skeleton(steps), prompt, solution(steps), {"number": str(apply(steps[-1]))})
