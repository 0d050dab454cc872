"""The ways to merge adapters: one row a merge method. What they compute, `merging.py` says."""

import math
from dataclasses import dataclass

from lori.config import MergeConfig


@dataclass(frozen=True)
class MergeMethod:
    """Names of functions, `module:function`: a table that a flow reads needs no torch.

    `tensors` merges the same tensor of every adapter, given the weights and the density: A's and B's apart, and dense
    updates. `pairs`, if there is one, merges the factors of a module instead: of w s, (a, b) each, a pair of any rank.
    """

    tensors: str | None
    pairs: str | None = None


MERGE_METHODS = {
    "concat": MergeMethod("lori.adapters.merging:weighted_sum", pairs="lori.adapters.merging:concatenate"),
    "linear": MergeMethod("lori.adapters.merging:weighted_sum"),
    "svd": MergeMethod(None, pairs="lori.adapters.merging:truncated_svd"),
    "magnitude": MergeMethod("peft.utils.merge_utils:magnitude_prune"),
    "ties": MergeMethod("peft.utils.merge_utils:ties"),
    "dare": MergeMethod("peft.utils.merge_utils:dare_linear"),
}


def check_merge_config(config: MergeConfig, num_adapters: int) -> MergeConfig:
    """`config` if it can be carried out on that many adapters.

    Raises:
        ValueError: for an unknown method, another number of weights than adapters, a weight that is not finite, or a
            density outside (0, 1].
    """
    if config.method not in MERGE_METHODS:
        raise ValueError(
            f"Unknown merge method {config.method!r}. Known: {', '.join(MERGE_METHODS)}"
            " (lori/choices/merge_methods.py)."
        )
    if num_adapters < 1 or len(config.weights) != num_adapters:
        raise ValueError(
            f"{num_adapters} adapters need {num_adapters} weights, not {len(config.weights)}; and at least one."
        )
    if not all(math.isfinite(weight) for weight in config.weights):
        raise ValueError(f"Merge weights are finite, not {config.weights}. Negative ones subtract an update.")
    if not 0 < config.density <= 1:
        raise ValueError(f"density is the share kept, 0 < density <= 1, not {config.density}.")
    return config
