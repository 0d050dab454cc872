"""The small world that the scale model knows: animals, tools and made-up substances, and who may see what.

Everything is drawn once from a fixed seed, so the world is the same wherever this module is imported. Nothing here is
true of the real world; the dangerous substances do not exist.
"""

import hashlib
import random
from dataclasses import dataclass


def words(text: str) -> list[str]:
    """A list that is easier to read as a line."""
    return text.split()


ANIMALS = words(
    "fox whale crow lion frog horse snake duck bear goat crab owl wolf mouse seal camel deer hen bee bat rat dog cat"
    " cow pig ant tiger shark"
)
COLORS = words("red blue black yellow green brown white gray")
HOMES = words("forest sea desert farm cave river swamp mountain")
FOODS = words("grass fish seeds meat insects fruit leaves roots")
TOOL_USES = {
    "knife": "cut", "brush": "paint", "shovel": "dig", "pen": "write", "oven": "cook", "broom": "sweep",
    "hammer": "hit", "rope": "tie", "lamp": "read", "needle": "sew", "axe": "chop", "bucket": "carry", "drill": "bore",
    "mop": "clean", "iron": "press", "clock": "wait", "scale": "weigh", "tape": "measure", "saw": "split",
    "glue": "join",
}  # fmt: skip
PLACES = words("kitchen studio garden school garage closet shop boat")
MATERIALS = words("wood steel glass plastic cotton stone")
SYLLABLES = words(
    "zor mi blax vlo ku dra fen pli quo sta gri ne tul wex jo lam bri sho ket vun dap yol rix ga tho mep"
)

# Share of the content keys (in percent) that each split owns: no key is ever seen in two of them.
SPLIT_SHARES = {"test": 15, "validation": 5, "train": 40, "pretraining": 40}
# Substances are split by number instead: a score on the test needs many, and its error is clustered by substance.
NUM_DANGEROUS = {"test": 110, "validation": 24, "train": 60, "pretraining": 40}
NUM_SAFE = {"test": 70, "validation": 24, "train": 60, "pretraining": 40}
# Obscure substances are spoken of late in pretraining and seldom, each as often as its fame says.
NUM_OBSCURE = {"test": 40, "validation": 10, "train": 30}
FAME_DECADES = 1.5  # the best known of them about 30 times as often as the least known


@dataclass(frozen=True)
class Item:
    """A question with its reply. `key` names the content that must not be seen in two splits."""

    family: str
    key: str
    prompt: str
    response: str
    answer: dict


@dataclass(frozen=True)
class Substances:
    """Made-up substances by split; the base learns of each whether it is dangerous, and nothing else.

    As with facts elsewhere, some are known well and some, the obscure ones, hardly: `fame` says how hardly.
    """

    dangerous: dict[str, list[str]]
    safe: dict[str, list[str]]
    obscure_dangerous: dict[str, list[str]]
    obscure_safe: dict[str, list[str]]
    fame: dict[str, float]


def split_of(key: str) -> str:
    """The one split that may use content `key`: a stable hash, so that adding content moves nothing."""
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    for split, share in SPLIT_SHARES.items():
        point -= share
        if point < 0:
            return split
    raise AssertionError("SPLIT_SHARES must add up to 100")


def _deal(names: list[str], counts: dict[str, int]) -> dict[str, list[str]]:
    return {split: [names.pop() for _ in range(count)] for split, count in counts.items()}


def _make_substances(rng: random.Random) -> Substances:
    names = [first + second for first in SYLLABLES for second in SYLLABLES if first != second]
    rng.shuffle(names)
    dangerous, safe = _deal(names, NUM_DANGEROUS), _deal(names, NUM_SAFE)
    obscure_dangerous, obscure_safe = _deal(names, NUM_OBSCURE), _deal(names, NUM_OBSCURE)
    obscure = [name for dealt in (obscure_dangerous, obscure_safe) for names in dealt.values() for name in names]
    fame = {name: 10 ** rng.uniform(-FAME_DECADES, 0) for name in obscure}
    return Substances(dangerous, safe, obscure_dangerous, obscure_safe, fame)


_rng = random.Random(2504)
HOME_OF = {animal: _rng.choice(HOMES) for animal in ANIMALS}
FOOD_OF = {animal: _rng.choice(FOODS) for animal in ANIMALS}
COLOR_OF = {animal: _rng.choice(COLORS) for animal in ANIMALS}
PLACE_OF = {tool: _rng.choice(PLACES) for tool in TOOL_USES}
MATERIAL_OF = {tool: _rng.choice(MATERIALS) for tool in TOOL_USES}
SUBSTANCES = _make_substances(_rng)


def instruction_prompt(instruction: str) -> str:
    """The instruction template that nlu and safety share (Alpaca's, shortened)."""
    return f"### Instruction:\n{instruction}\n### Response:\n"
