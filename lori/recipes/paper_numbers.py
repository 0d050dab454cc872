"""The paper's numbers for bases of 7 and 8 billion parameters (appendix, hyper-parameters; the authors' scripts).

A base, rank or method without a row follows the rule that most rows follow: LoRI-D at 5e-5, LoRI-S at 5e-4, α = 2 r.
"""

from dataclasses import dataclass, replace
from typing import Any

from lori.base_models.resolve import BASE_MODELS, LLAMA_PROJECTIONS
from lori.choices.domains import DOMAINS
from lori.choices.methods import method, recipe_of
from lori.config import TrainConfig

ALPHA_PER_RANK = 2  # α = 64 at r = 32, 128 at r = 64
RANK_FACTORS = {"vera": 8}  # 256 beside LoRA's 32: VeRA's own for 7B (Kopiczko et al. 2024), and PEFT's default


@dataclass(frozen=True)
class Recipe:
    """How fast an adapter learns, and α of its scaling α / r."""

    learning_rate: float
    alpha: int


# Of the paper's baselines no rate was released: LoRA's is a public replication's, and DoRA, rsLoRA and LoRA-FA have
# LoRA's. IA3 and SHiRA: PEFT's method_comparison (MetaMathQA); PiSSA: its README; full and VeRA: usual, not searched
LEARNING_RATES = {
    "base": 0.0,
    "full": 1e-5,
    "lora": 5e-5,
    "dora": 5e-5,
    "lori-d": 5e-5,
    "lori-s": 5e-4,
    "ia3": 5e-3,
    "vera": 4e-3,
    "shira": 3e-4,
    "lora-fa": 5e-5,
    "rslora": 5e-5,
    "pissa": 2e-5,
}
_AS_THE_RULE = {"lori-d": Recipe(5e-5, 64), "lori-s": Recipe(5e-4, 64)}
_LOW = {"lori-d": Recipe(1e-5, 128), "lori-s": Recipe(1e-4, 128)}
# By base, rank and domain
RECIPES = {
    ("llama-3-8b", 32, "nlu"): _AS_THE_RULE,
    ("llama-3-8b", 64, "nlu"): {"lori-d": Recipe(5e-5, 128), "lori-s": Recipe(1e-4, 128)},
    ("mistral-7b", 32, "nlu"): {"lori-d": Recipe(1e-5, 64), "lori-s": Recipe(1e-4, 64)},
    ("mistral-7b", 64, "nlu"): _LOW,
    ("llama-3-8b", 32, "math"): _AS_THE_RULE,
    ("llama-3-8b", 64, "math"): {"lori-d": Recipe(5e-5, 128), "lori-s": Recipe(1e-3, 128)},
    ("mistral-7b", 32, "math"): _AS_THE_RULE,
    ("mistral-7b", 64, "math"): {"lori-d": Recipe(1e-4, 32), "lori-s": Recipe(5e-4, 64)},
    ("llama-3-8b", 32, "code"): _AS_THE_RULE,
    ("llama-3-8b", 64, "code"): _LOW,
    ("mistral-7b", 32, "code"): _AS_THE_RULE,
    ("mistral-7b", 64, "code"): _LOW,
    ("llama-3-8b", 32, "safety"): _AS_THE_RULE,
    ("llama-3-8b", 64, "safety"): _LOW,
    ("mistral-7b", 32, "safety"): _AS_THE_RULE,
    ("mistral-7b", 64, "safety"): _LOW,
}
# Weights of the released merges, by the number of adapters. For other methods none was released: LoRI-D's
MERGE_WEIGHTS = {"lori-d": {3: 0.5, 4: 0.4}, "lori-s": {3: 0.4, 4: 0.3}}


def recipe(source: str, rank: int, domain_name: str, method_name: str) -> Recipe:
    """The paper's recipe, or the rule's.

    `source` is a row of `BASE_MODELS`, a folder or a hub id; a revision may follow.

    Raises:
        ValueError: for an unknown method, or one without a learning rate.
    """
    method(method_name)
    method_name = recipe_of(method_name)
    if method_name not in LEARNING_RATES:
        raise ValueError(f"No learning rate for {method_name!r}: see LEARNING_RATES (lori/recipes/paper_numbers.py).")
    last = source.partition("@")[0].rpartition("/")[2]  # a row, or a copy in a folder that is called as on the hub
    row = next((name for name, base in BASE_MODELS.items() if last in (name, base.source.rpartition("/")[2])), "")
    by_rule = Recipe(LEARNING_RATES[method_name], ALPHA_PER_RANK * rank)
    return RECIPES.get((row, rank, domain_name), {}).get(method_name, by_rule)


def merge_weight(method_name: str, num_adapters: int) -> float:
    """The weight of each of `num_adapters` adapters of one method; for other numbers than the paper's, 1 / n."""
    return MERGE_WEIGHTS.get(recipe_of(method_name), MERGE_WEIGHTS["lori-d"]).get(num_adapters, 1 / num_adapters)


def paper_config(method_name: str, domain_name: str, base: str, **changes: Any) -> TrainConfig:
    """The recipe at rank 32, with the fields that `changes` gives: for a researcher's own domain, too.

    `base` is what the adapter's files will call the base model; `domain_name` draws A. Of another family than Llama's,
    give `projections` (`lori.base_models.resolve.base_model(base).projections`).

    Raises:
        ValueError: for an unknown method, or a base that is adapted without a learning rate.
    """
    rank = changes.get("rank", 32 * RANK_FACTORS.get(method_name, 1))
    chosen = recipe(base, rank, domain_name, method_name)
    config = TrainConfig(
        base_model=base,
        projections=LLAMA_PROJECTIONS,
        method=method_name,
        domain=domain_name,
        rank=rank,
        alpha=chosen.alpha,
        learning_rate=chosen.learning_rate,
        num_epochs=DOMAINS[domain_name].num_epochs if domain_name in DOMAINS else 1,
        batch_size=32,
        max_length=512,
        max_prompt_length=256,
        seed=0,
    )
    return replace(config, **changes)
