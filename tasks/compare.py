"""Compare the rows of the tables: intervals of their scores, and of the differences between them."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from lori.config import CompareConfig
from lori.datasets.rows import load_rows
from lori.evaluation.intervals import to_metrics
from lori.evaluation.resampling import compare, outcomes_of
from lori.evaluation.row_names import domain_of
from tasks import tracking
from tasks.evaluate import GENERATIONS, read_records
from tasks.prepare_dataset import ROWS_FILE
from tasks.result_files import INTERVALS
from tasks.results import Handle, Runtime


def compare_rows(
    config: CompareConfig, *, scores: list[Handle], datasets: list[Handle], key: str, runtime: Runtime
) -> Handle:
    """Intervals of every row and pair of rows, read off the answers that each score was made from."""
    examples = {d.config["domain"]: load_rows(tracking.fetch(runtime, d) / ROWS_FILE) for d in datasets}
    outcomes = []
    for measure, seed, handle in zip(config.domains, config.seeds, scores, strict=True):
        records = read_records(tracking.fetch(runtime, handle) / GENERATIONS)
        outcomes.append(outcomes_of(measure, examples[domain_of(measure)], {seed: records}))
    intervals = compare(config, outcomes)
    with (
        tracking.logged_run(runtime, key, "intervals", tags={"lori.role": "intervals"}, params=asdict(config)) as run,
        tempfile.TemporaryDirectory() as scratch,
    ):
        (Path(scratch) / INTERVALS).write_text(json.dumps(to_metrics(intervals), indent=2))
        uri, sha256 = tracking.log_directory(runtime, run, Path(scratch), "intervals")
    return Handle("intervals", key, "intervals", run, uri, sha256)
