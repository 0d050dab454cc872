"""A cell of a study: one result that it asks for, before it is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Cell:
    """One result of a study.

    `config` is one of config.py's; `inputs` are, by role, the cells that it reads; `key` is the identity of its
    result. The title, `train lora math  seed 0`, is for people.
    """

    step: str
    name: str
    config: Any
    inputs: "Mapping[str, Cell | list[Cell]]" = field(default_factory=dict)
    key: str = ""

    @property
    def title(self) -> str:
        """Step and name."""
        return f"{self.step} {self.name}"

    @property
    def sources(self) -> "list[Cell]":
        """All cells that it reads."""
        return [cell for given in self.inputs.values() for cell in (given if isinstance(given, list) else [given])]
