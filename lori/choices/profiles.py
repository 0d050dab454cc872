"""Which cells a run of the whole paper has: one row a profile. Their numbers are in `recipes/`."""

from dataclasses import dataclass, replace

from lori.base_models.records import BaseModel
from lori.base_models.resolve import BASE_MODELS

PLACES = ("data_dir",)  # fields of a profile that are no part of any result
# What tells why: methods that differ in one thing from another (`Method.control_of`), by where that thing matters
CONTROLS = {
    "methods": ("lori-s-random-mask", "lori-d-trained-a", "lori-s-trained-a", "lori-s-fresh-a"),
    "merged": ("lori-d-shared-a", "lori-d-trained-a", "lori-s-shared-a", "lori-s-trained-a"),
    "continual_methods": ("lori-s-random-mask", "lori-s-disjoint", "lori-s-trained-a"),
}
# Settings that are changed one at a time, and to what (paper, section 4.4); among them what the profiles have
ABLATIONS = {
    "sparsity": (0.0, 0.5, 0.8, 0.9, 0.95, 0.99),
    "scope": ("model", "module", "projection", "layer", "matrix"),
    "rank": (2, 6, 12),
    "calibration_rows": (48, 192, None),
}
MERGE_CURVE = (0.25, 0.5, 1.0, 2.0)  # weights, the same for every adapter of a merge
SWEEP_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of each method's learning rate
CONTINUAL_ROWS = (96, 288)  # of a new domain, beside all of them
DENSITY = 0.7  # of magnitude, ties and dare
# Profiles of too few steps to mean anything, and those that they are small copies of
COPIES = {"smoke": "scale", "paper-smoke": "paper"}


@dataclass(frozen=True)
class Profile:
    """The cells of one run of the whole paper.

    Sizes are rows of a domain, None for all of them; the scale model's tests have `TEST_FACTOR` times as many, the
    paper's nlu as many of each set; `num_validation` None is no validation: the paper's sets have no such split.
    Masks are read off training on the first `calibration_rows`; `match_norms` is `MergeConfig`'s; `learning_rates`,
    by method, are in place of the recipe's. `num_steps` of training, `num_samples` where a domain is sampled, and at
    most `max_new_tokens` or, where None, what `LIMITS` says; `dtype` None is the base model's. Real rows are in
    `data_dir` (None: on the hub), no part of any result.
    """

    name: str
    base: BaseModel
    domains: tuple[str, ...]
    methods: tuple[str, ...]
    merged: tuple[str, ...]
    merge_methods: tuple[str, ...]
    weights: tuple[float, ...] | None
    density: float
    match_norms: bool
    continual_methods: tuple[str, ...]
    continual_first: str
    seeds: tuple[int, ...]
    rank: int
    sparsity: float
    scope: str
    calibration_rows: int | None
    batch_size: int
    eval_batch_size: int
    num_steps: int | None
    num_validation: int | None
    num_test: int | None
    num_samples: int
    max_new_tokens: int | None
    prompt_style: str
    dtype: str | None
    learning_rates: tuple[tuple[str, float], ...] = ()
    data_dir: str | None = None


SCALE = Profile(
    name="scale",
    base=BASE_MODELS["scale"],
    domains=("nlu", "math", "code", "safety"),
    methods=("base", "full", "lora", "dora", "lori-d", "lori-s"),
    merged=("full", "lora", "dora", "lori-d", "lori-s"),
    merge_methods=("concat", "linear", "magnitude", "ties", "dare"),
    weights=None,
    density=DENSITY,
    match_norms=False,
    continual_methods=("lora", "lori-d", "lori-s"),
    continual_first="safety",
    seeds=(0,),
    rank=6,
    sparsity=0.9,
    scope="model",
    calibration_rows=None,
    batch_size=16,
    eval_batch_size=3000,
    num_steps=100,
    num_validation=150,
    num_test=300,
    num_samples=10,
    max_new_tokens=None,
    prompt_style="plain",
    dtype=None,
)
# All rows of the real sets at the paper's sizes; merges of what the paper merged. Without `full`, which needs more
# memory than any one GPU has at 8 billion parameters: ask for it on a smaller base
PAPER = replace(
    SCALE,
    name="paper",
    base=BASE_MODELS["llama-3-8b"],
    methods=("base", "lora", "dora", "lori-d", "lori-s"),
    merged=("lora", "lori-d", "lori-s"),
    rank=32,
    batch_size=32,
    eval_batch_size=64,
    num_steps=None,
    num_validation=None,
    num_test=None,
    num_samples=20,
)
PROFILES = {
    "scale": SCALE,
    # Every kind of stage and every method once, with too few steps to mean anything
    "smoke": replace(
        SCALE,
        name="smoke",
        domains=("nlu", "safety"),
        merged=("lora", "dora", "lori-s"),
        merge_methods=("concat", "ties"),
        continual_methods=("lori-s",),
        num_steps=4,
        num_validation=8,
        num_test=12,
    ),
    "paper": PAPER,
    # The paper's on a few rows and a small base: numbers that mean nothing, from the code that makes those that do
    "paper-smoke": replace(
        PAPER,
        name="paper-smoke",
        rank=4,
        batch_size=4,
        num_steps=3,
        num_test=1,
        num_samples=2,
        max_new_tokens=8,
        dtype="float32",  # CPUs are slow in bf16
    ),
}
