"""The cells that reports are made of."""

import pytest

from helpers.report_inputs import merged, single, tracked
from helpers.stores import Store
from tasks.report.write import Cell


@pytest.fixture
def cells(sqlite_store: Store) -> list[Cell]:
    of_seeds = [single("lora", "nlu", value, seed=seed) for seed, value in ((0, 78.0), (1, 82.0))]
    return [tracked(sqlite_store, cell) for cell in [*of_seeds, merged("lora", "concat", {"nlu": 70.0})]]
