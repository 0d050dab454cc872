"""The scale model's learning rates, merge weights and lengths."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lori.base_models.hub_files import fingerprint
from lori.base_models.records import BaseModel
from lori.base_models.resolve import BASE_MODELS
from lori.choices.domains import DOMAINS

# The scale model's: chosen on the validation split, from as many candidates for every method (choose_recipe.py)
LEARNING_RATES = {"base": 0.0, "full": 0.00025, "lora": 0.002, "dora": 0.002, "lori-d": 0.01, "lori-s": 0.04}
# Not searched: by analogy to these, and to each method's own rate beside LoRA's
GUESSED_RATES = {"rslora": 0.001, "pissa": 0.0005, "lora-fa": 0.01, "shira": 0.002, "ia3": 0.02, "vera": 0.02}
# Likewise, for each method and merge method one weight for all adapters
MERGE_WEIGHTS = {
    ("full", "concat"): 1.0,
    ("full", "linear"): 1.0,
    ("full", "magnitude"): 1.0,
    ("full", "ties"): 1.0,
    ("full", "dare"): 1.0,
    ("lora", "concat"): 1.0,
    ("lora", "linear"): 0.5,
    ("lora", "magnitude"): 0.5,
    ("lora", "ties"): 2.0,
    ("lora", "dare"): 0.5,
    ("dora", "concat"): 1.0,
    ("dora", "linear"): 1.0,
    ("dora", "magnitude"): 1.0,
    ("dora", "ties"): 1.0,
    ("dora", "dare"): 1.0,
    ("lori-d", "concat"): 0.5,
    ("lori-d", "linear"): 0.25,
    ("lori-d", "magnitude"): 0.25,
    ("lori-d", "ties"): 0.5,
    ("lori-d", "dare"): 0.25,
    ("lori-s", "concat"): 0.5,
    ("lori-s", "linear"): 0.25,
    ("lori-s", "magnitude"): 0.25,
    ("lori-s", "ties"): 0.25,
    ("lori-s", "dare"): 0.125,
}
# Safety's requests cluster by substance, and a third of them are harmless: more are needed for the same error
TEST_FACTOR = {"nlu": 1, "math": 1, "code": 1, "safety": 3}

# In the folder of a scale model of another size: the rates and weights that `benchmarks/choose_recipe.py` chose for it
CHOICE_FILE = "choose_recipe.json"


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens: a row as it trains, its prompt where the row is longer, and what is generated at most."""

    max_length: int
    max_prompt_length: int
    max_new_tokens: int


_PAPER = Limits(512, 256, 512)
# By suite and domain
LIMITS = {
    "miniature": {
        "nlu": Limits(160, 112, 16),
        "math": Limits(160, 112, 48),
        "code": Limits(160, 112, 40),
        "safety": Limits(160, 112, 32),
    },
    "paper": dict.fromkeys(DOMAINS, _PAPER),
}


def chosen_numbers(base: BaseModel) -> tuple[dict[str, float], dict[tuple[str, ...], float]]:
    """A scale model's learning rates and merge weights: the shipped one's are above, another one's in its folder."""
    if base == BASE_MODELS["scale"]:
        return LEARNING_RATES, MERGE_WEIGHTS
    path = Path(base.source, CHOICE_FILE)
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"base_model": ""}
    if found["base_model"].partition("@")[2] != fingerprint(path.parent):
        raise ValueError(
            f"{path} is missing, or of other weights than those beside it: choose learning rates and merge weights"
            f" with `python -m benchmarks.choose_recipe --base {base.source}`."
        )
    weights = {tuple(names.split()): weight for names, weight in found["merge_weights"].items()}
    return {"base": 0.0, **found["learning_rates"]}, weights
