"""The domains (what the paper calls tasks): how each is generated, scored and named in a table."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """One row: plain JSON data. `answer` is what a scorer needs beside the completions (a choice, a number, tests)."""

    id: str
    family: str
    prompt: str
    response: str
    answer: Any

    @property
    def pair(self) -> tuple[str, str]:
        """What training sees of it."""
        return self.prompt, self.response


@dataclass(frozen=True)
class Domain:
    """One row of `DOMAINS`.

    `headline` is the metric that stands for the domain in a table; `num_epochs` and the sampling are the paper's
    (appendix: code draws at T = 0.2, top_p = 0.95, everything else is greedy).
    """

    title: str
    headline: str
    num_epochs: int
    temperature: float = 0.0
    top_p: float = 1.0


DOMAINS = {
    "nlu": Domain("NLU accuracy", "nlu/accuracy", num_epochs=1),
    "math": Domain("Math accuracy", "math/accuracy", num_epochs=3),
    "code": Domain("Code pass@1", "code/pass_at_1", num_epochs=2, temperature=0.2, top_p=0.95),
    "safety": Domain("Safety refusal rate", "safety/refusal_rate", num_epochs=1),
}


def domain(name: str) -> Domain:
    """The row of `DOMAINS`.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in DOMAINS:
        raise ValueError(f"Unknown domain {name!r}. Known: {', '.join(DOMAINS)} (lori/choices/domains.py).")
    return DOMAINS[name]
