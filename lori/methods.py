"""How a domain is learned: one row a method. What they do to a model is in `adaptation.py`.

LoRI (paper, section 3): ΔW = alpha / rank · b @ a, with `a` (rank, in) drawn once and frozen, and `b` (out, rank)
trained from zero, all of it (LoRI-D) or where a mask allows it (LoRI-S).
"""

from dataclasses import dataclass

from lori.config import TrainConfig


@dataclass(frozen=True)
class Method:
    """What trains. `kind` is none, full, lora or a row of `TUNERS` (baselines.py); the rest is of lora alone.

    `mask_from` names the method whose B gives the mask. `use_rslora` scales by alpha / √rank. With `from_svd` A and B
    start at the base's largest singular values (PiSSA); `precondition` is LoRA-FA's (optimizer.py).
    """

    kind: str
    freeze_a: bool = False
    use_dora: bool = False
    use_rslora: bool = False
    from_svd: bool = False
    precondition: bool = False
    mask_from: str | None = None


METHODS = {
    "base": Method("none"),
    "full": Method("full"),
    "lora": Method("lora"),
    "dora": Method("lora", use_dora=True),
    "lori-d": Method("lora", freeze_a=True),
    "lori-s": Method("lora", freeze_a=True, mask_from="lori-d"),
    "rslora": Method("lora", use_rslora=True),
    "pissa": Method("lora", from_svd=True),
    "lora-fa": Method("lora", freeze_a=True, precondition=True),
    "ia3": Method("ia3"),
    "vera": Method("vera"),
    "shira": Method("shira"),
}


def method(name: str) -> Method:
    """The row of `METHODS`.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Known: {', '.join(METHODS)} (lori/methods.py).")
    return METHODS[name]


def a_key(config: TrainConfig) -> str:
    """What `projection_a` draws A from: seed and domain, so that LoRI-D and LoRI-S of a domain have the same A.

    `shared_a` leaves the domain out: one A for all. `fresh_a` draws another for the sparse method than for the dense
    one that gave its mask, as the authors' released code does.
    """
    domain = "" if config.shared_a else config.domain
    is_fresh = config.fresh_a and method(config.method).mask_from is not None
    return f"{config.seed}/{domain}/{config.method}" if is_fresh else f"{config.seed}/{domain}"
