"""The cells that a plan is made for."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlannedCell:
    """A result that a flow would ask for. `config` is one of `config.py`'s; `inputs` are the cells that it reads."""

    step: str
    name: str
    config: Any
    inputs: "tuple[PlannedCell, ...]" = ()
