"""How a domain is learned: one row a method. What they do to a model is in `adapters/attach.py`.

LoRI (paper, section 3): ΔW = alpha / rank · b @ a, with `a` (rank, in) drawn once and frozen, and `b` (out, rank)
trained from zero, all of it (LoRI-D) or where a mask allows it (LoRI-S).
"""

from dataclasses import dataclass, replace

from lori.config import TrainConfig


@dataclass(frozen=True)
class Method:
    """What trains. `kind` is none, full, lora or a row of `TUNERS` (baselines.py); the rest is of lora alone.

    `mask_from` names the method whose B gives the mask, or with `random_mask` only its size; a `disjoint` mask has no
    entry of the mask of the domain that is learned first. `use_rslora` scales by alpha / √rank. With `from_svd` A and
    B start at the base's largest singular values (PiSSA); `precondition` is LoRA-FA's (optimizer.py). `shared_a` and
    `fresh_a` are `TrainConfig`'s; `a_from` names the method whose trained A is frozen in place of a random one. A
    control differs in one thing from the method `control_of`, to tell what that thing does: it has the same learning
    rates and merge weights.
    """

    kind: str
    freeze_a: bool = False
    use_dora: bool = False
    use_rslora: bool = False
    from_svd: bool = False
    precondition: bool = False
    mask_from: str | None = None
    a_from: str | None = None
    random_mask: bool = False
    shared_a: bool = False
    fresh_a: bool = False
    disjoint: bool = False
    control_of: str | None = None

    @property
    def has_factors(self) -> bool:
        """Whether an adapter is B A and nothing else."""
        return self.kind == "lora" and not self.use_dora


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
LORI_D, LORI_S = METHODS["lori-d"], METHODS["lori-s"]
METHODS |= {
    "lori-s-random-mask": replace(LORI_S, random_mask=True, control_of="lori-s"),
    "lori-d-trained-a": replace(LORI_D, a_from="lora", control_of="lori-d"),
    "lori-s-trained-a": replace(LORI_S, mask_from="lori-d-trained-a", a_from="lora", control_of="lori-s"),
    "lori-s-disjoint": replace(LORI_S, disjoint=True, control_of="lori-s"),
    "lori-s-fresh-a": replace(LORI_S, fresh_a=True, control_of="lori-s"),
    "lori-d-shared-a": replace(LORI_D, shared_a=True, control_of="lori-d"),
    "lori-s-shared-a": replace(LORI_S, mask_from="lori-d-shared-a", shared_a=True, control_of="lori-s"),
}


def method(name: str) -> Method:
    """The row of `METHODS`.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Known: {', '.join(METHODS)} (lori/choices/methods.py).")
    return METHODS[name]


def recipe_of(name: str) -> str:
    """The method whose learning rate and merge weights it takes: its own, of a control those of what it controls."""
    return METHODS[name].control_of or name


def a_key(config: TrainConfig) -> str:
    """What `projection_a` draws A from: seed and domain, so that LoRI-D and LoRI-S of a domain have the same A.

    `shared_a` leaves the domain out: one A for all. `fresh_a` draws another for the sparse method than for the dense
    one that gave its mask, as the authors' released code does.
    """
    domain = "" if config.shared_a else config.domain
    is_fresh = config.fresh_a and method(config.method).mask_from is not None
    return f"{config.seed}/{domain}/{config.method}" if is_fresh else f"{config.seed}/{domain}"
