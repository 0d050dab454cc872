"""The plan of a study: its base and its datasets read for what its cells would take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lori.config import EvalConfig, Hardware, TrainConfig, TrainRuntime
from lori.data import make_rows
from lori.loading import config_of, load_tokenizer
from lori.plan.cells import PlannedCell
from lori.plan.make import Plan, make_plan
from lori.plan.rows import Place
from lori.plan.tokens import TokenCounts, count_tokens
from lori.profiles import Profile


def plan_study(profile: Profile, hardware: Hardware, cells: Sequence[PlannedCell]) -> Plan:
    """What `cells` take on `hardware`. Their rows are read and their tokens counted; no weights are."""
    runtime = TrainRuntime(
        micro_batch_tokens=hardware.micro_batch_tokens, gradient_checkpointing=hardware.gradient_checkpointing
    )
    place = Place(hardware.gpu or "cpu", hardware.num_gpus, runtime)
    base = config_of(profile.base_model, profile.models_dir)
    return make_plan(cells, base, _counts(profile, cells), place)


def _counts(profile: Profile, cells: Sequence[PlannedCell]) -> dict[Any, TokenCounts]:
    """Tokens of each dataset as the cells read it: all trainings of a domain tokenise alike, and so do its tests."""
    tokenizer, counts = load_tokenizer(profile.base_model, profile.models_dir), {}
    data_dir = Path(profile.data_dir) if profile.data_dir else None
    for cell in cells:
        if isinstance(cell.config, TrainConfig | EvalConfig):
            dataset = next(given for given in cell.inputs if given.step == "dataset")
            if dataset.config not in counts:
                rows = make_rows(dataset.config, data_dir)
                counts[dataset.config] = count_tokens(rows, tokenizer, cell.config)
    return counts
