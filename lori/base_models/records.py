"""What is known of a base model: where its weights are, and its architecture."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lori.base_models.hub_files import fetch_small_files, fingerprint


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
    """A base model, found once by `resolve.base_model` and handed on.

    `source` is a folder or a hub id, `revision` the hub's commit; None for a folder, whose files have digests:
    `recorded` where these are on record. `suite` names the world that its domains are drawn from; `projections` are
    the linears that get an adapter, and `dtype` is the weights' while an adapter trains on them.
    """

    name: str
    source: str
    revision: str | None
    suite: str
    projections: tuple[str, ...]
    dtype: str
    recorded: str | None = None

    @cached_property
    def identity(self) -> str:
        """`name@revision`: what a config calls a base model, so that other weights are another key.

        A folder's revision is 12 hex digits that stand for its weights and its tokenizer. Its path is not in it: a
        copy elsewhere is the same base model.

        Raises:
            ValueError: if the weights in a folder are not whole, or not in safetensors.
        """
        return f"{self.name}@{self.revision or self.recorded or fingerprint(Path(self.source))}"

    @property
    def folder(self) -> Path:
        """The folder with config and tokenizer; those of the hub are fetched.

        Raises:
            BaseUnavailable: if they can't be fetched.
        """
        return fetch_small_files(self.source, self.revision) if self.revision else Path(self.source)
