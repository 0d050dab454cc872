"""What a base model's config.json says of it, found from a model without weights."""

from functools import lru_cache
from pathlib import Path

from lori.base_models.records import Architecture


def architecture(folder: Path) -> Architecture:
    """The architecture of the config.json in `folder`.

    Raises:
        ValueError: if it is no causal LM, needs code of its own, is quantised, or has experts that no adapter reaches.
    """
    path = folder / "config.json"
    return _architecture(path, path.stat().st_mtime_ns)


@lru_cache
def _architecture(path: Path, _changed_ns: int) -> Architecture:
    from lori.base_models.meta_model import read_architecture  # with torch, which the rows of BASE_MODELS do without

    return read_architecture(path)
