"""Prepare the rows of a domain once; everything that reads them reads these bytes."""

import tempfile
from dataclasses import asdict
from pathlib import Path

from lori.config import DataConfig, Handle, Runtime
from lori.data import save_rows, splits
from tasks import tracking


def prepare_dataset(config: DataConfig, *, key: str, runtime: Runtime) -> Handle:
    """Train, validation and test rows as JSON lines on a run of their own."""
    name = f"data-{config.domain}"
    run_id = tracking.open_run(
        runtime,
        key,
        name,
        experiment=runtime.experiment,
        tags={"lori.role": "data", "lori.domain": config.domain},
        params=asdict(config),
    )
    with tempfile.TemporaryDirectory() as scratch:
        rows = splits(config)
        for split, examples in rows.items():
            save_rows(examples, Path(scratch) / f"{split}.jsonl")
        uri, sha256 = tracking.log_directory(runtime, run_id, Path(scratch), "rows")
    tracking.close_run(runtime, run_id)
    counts = {f"num_{split}": float(len(examples)) for split, examples in rows.items()}
    return Handle("dataset", key, name, run_id, uri, sha256, counts, asdict(config))
