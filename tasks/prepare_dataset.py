"""Prepare the rows of a domain once; everything that reads them reads these bytes."""

import tempfile
from dataclasses import asdict
from pathlib import Path

from lori.config import DataConfig
from lori.datasets.rows import make_rows, save_rows
from tasks import tracking
from tasks.results import Handle, Runtime

ROWS_FILE = "rows.jsonl"


def prepare_dataset(config: DataConfig, *, key: str, runtime: Runtime) -> Handle:
    """The rows of one split as JSON lines, on a run of their own."""
    name = f"data-{config.domain}-{config.split}"
    tags = {"lori.role": "data", "lori.domain": config.domain}
    with (
        tracking.logged_run(runtime, key, name, tags=tags, params=asdict(config)) as run_id,
        tempfile.TemporaryDirectory() as scratch,
    ):
        data_dir = Path(runtime.data_dir) if runtime.data_dir else None
        save_rows(make_rows(config, data_dir), Path(scratch) / ROWS_FILE)
        uri, sha256 = tracking.log_directory(runtime, run_id, Path(scratch), "rows")
    return Handle("dataset", key, name, run_id, uri, sha256, {}, asdict(config))
