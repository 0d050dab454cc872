"""The list of candidates: what is refused in it, and that the project's own can be read."""

from pathlib import Path

import pytest

from lori.base_models.candidates import read_entries
from tasks.machine import ROOT


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "There is no list of candidates at"),
        ("base_models: {", "is not a list of candidates"),
        ("models: [scale]", "under `base_models:`, list names"),
        ("base_models: [{base_model: a/b, license: mit}]", "entries with base_model, revision, licence"),
        ("base_models: [{base_model: a/b, revision: 1234567}]", "quote it"),
        ("base_models:", "is not a list of candidates"),
    ],
)
def test_a_file_that_is_no_list_of_candidates_is_refused(written: str | None, message: str, tmp_path: Path) -> None:
    if written is not None:
        (tmp_path / "bases.yaml").write_text(written)
    with pytest.raises(ValueError, match=message):
        read_entries(tmp_path / "bases.yaml")


def test_the_file_that_comes_with_the_project_is_a_list_of_candidates() -> None:
    names = [entry.base_model for entry in read_entries(ROOT / "base-models.yaml")]
    assert {"llama-3-8b", "mistral-7b"} <= {*names}
