"""Names of the rows that are compared."""

from collections.abc import Mapping
from typing import Any

MEAN = "mean"  # over domains
MINUS, LESS = " − ", " less "  # one row less another; one such difference less another
OVER_REFUSAL = "over-refusal"  # a measure of safety's harmless requests, beside the domains' own


def sides(pair: str) -> tuple[str, str]:
    """What is compared in `a − b`: a and b; in `a − b less c − d`: a − b and c − d."""
    one, _, other = pair.partition(LESS if LESS in pair else MINUS)
    return one, other


def domain_of(measure: str) -> str:
    """The domain whose answers a measure is of: that of its name, but for over-refusal."""
    return "safety" if measure == OVER_REFUSAL else measure


REFERENCE = "lora"  # the method whose number of trainable entries is 100 %
UNMERGED = "none"
# What continual learning measures: the first domain before and after the new one, and the new one
BEFORE, KEPT, LEARNED = "before", "kept", "learned"
NO_MERGE = f"{UNMERGED} (an adapter each)"


def continual_setting(first: str, new: str) -> str:
    """The setting of an ablation of continual learning: how many rows of `new` were trained on after `first`."""
    return f"{first} → {new}, rows"


def continual_domains(setting: str) -> tuple[str, str] | None:
    """First and new domain of what `continual_setting` named; None for another setting."""
    first, arrow, new = setting.removesuffix(", rows").partition(" → ")
    return (first, new) if arrow else None


def weight_setting(merge_method: str) -> str:
    """The setting of an ablation of merges: which weight all their adapters have."""
    return f"weight of {merge_method}"


def weight_merge(setting: str) -> str | None:
    """The merge of what `weight_setting` named; None for another setting."""
    start = weight_setting("")
    return setting.removeprefix(start) if setting.startswith(start) else None


def ablation_name(labels: Mapping[str, Any]) -> str:
    """Of a row of the ablations in comparisons."""
    return f"{labels['method']} {labels['setting']} {labels['value']}"
