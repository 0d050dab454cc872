"""What is known of a base model: where its weights are, and its architecture."""

from dataclasses import dataclass

from lori.base_models.hub_files import BaseUnavailable as BaseUnavailable


@dataclass(frozen=True)
class Architecture:
    """A causal LM's.

    `projections` are suffixes of module names, PEFT's `target_modules`; `num_embeddings` bounds the token ids;
    `context` is how many tokens it can read, None without a limit (ALiBi).
    """

    projections: tuple[str, ...]
    num_embeddings: int
    num_parameters: int
    context: int | None


@dataclass(frozen=True)
class BaseModel:
    """Where the weights lie, and what LoRI needs to know of them.

    `source` is a folder or a hub id, `revision` the hub's commit; None for a folder, whose files have digests.
    `suite` names the world that its domains are drawn from; `projections` are the linears that get an adapter, and
    `dtype` is the weights' while an adapter trains on them.
    """

    source: str
    revision: str | None
    suite: str
    projections: tuple[str, ...]
    dtype: str
