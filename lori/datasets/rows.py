"""The rows of a domain, made, saved and loaded."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from lori.choices.domains import Example
from lori.config import DataConfig
from lori.datasets.paper_examples import paper_rows
from lori.scale_model import rows as miniature_rows


def _miniature(config: DataConfig, _data_dir: Path | None) -> list[Example]:
    if config.num_rows is None:
        raise ValueError("The scale model's rows are drawn, without an end: say how many (num_rows).")
    return miniature_rows(config.domain, config.split, config.num_rows)


SUITES: dict[str, Callable[[DataConfig, Path | None], list[Example]]] = {
    "miniature": _miniature,
    "paper": paper_rows,
}


def make_rows(config: DataConfig, data_dir: Path | None = None) -> list[Example]:
    """The rows that `config` names. Real ones lie in `data_dir`, or are fetched where it is None.

    Raises:
        ValueError, DataUnavailable: as the suite's function says.
    """
    return SUITES[config.suite](config, data_dir)


def save_rows(examples: Sequence[Example], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(example), sort_keys=True) + "\n" for example in examples))


def load_rows(path: Path) -> list[Example]:
    """What `save_rows` wrote."""
    return [Example(**json.loads(line)) for line in path.read_text().splitlines()]
