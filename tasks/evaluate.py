"""Score an adapter on a domain and log the scores on the adapter's own run: one MLflow row is one row of a table."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lori.adapters.attach import apply_adapter
from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import base_model
from lori.choices.domains import Example
from lori.config import EvalConfig
from lori.datasets.rows import load_rows
from lori.evaluation.answers import generate, rescore
from lori.evaluation.scoring import validation_score
from tasks import tracking
from tasks.prepare_dataset import ROWS_FILE
from tasks.publish.catalogue import nominate, write_card
from tasks.results import Handle, Runtime

UNSCORED = "unscored"  # among a run's artifacts: completions that wait for their score
GENERATIONS = "generations.jsonl"


def evaluate(config: EvalConfig, *, adapter: Handle, dataset: Handle, key: str, runtime: Runtime) -> Handle:
    """The domain's metrics of `adapter`; every completion is kept beside them. Of a split that is not the test's,
    their names start with the split's: `validation/nlu/accuracy`.

    Completions are stored before they are scored: an attempt after one that did not end scores those.
    """
    name, place = f"{adapter.name} on {config.domain}", _place(key, config.domain)
    examples = load_rows(tracking.fetch(runtime, dataset) / ROWS_FILE)
    unscored = None if runtime.refresh else tracking.find_directory(runtime, adapter.run_id, f"{UNSCORED}/{place}")
    if unscored:
        records = read_records(unscored / GENERATIONS)
    else:
        records = _generate(config, examples, adapter=adapter, runtime=runtime)
        with _written(records) as directory:
            tracking.log_directory(runtime, adapter.run_id, directory, f"{UNSCORED}/{place}")
    measured, records = rescore(examples, records, config.domain)
    split = dataset.config["split"]
    metrics = measured if split == "test" else {f"{split}/{name}": value for name, value in measured.items()}
    with _written(records) as directory:
        (directory / "metrics.json").write_text(json.dumps({"config": asdict(config), "metrics": metrics}, indent=2))
        uri, sha256 = tracking.log_directory(runtime, adapter.run_id, directory, f"scores/{place}")
    tracking.link_dataset(runtime, adapter.run_id, dataset, "eval")
    tracking.log_metrics(runtime, adapter.run_id, metrics)
    scores = Handle("scores", key, name, adapter.run_id, uri, sha256, metrics, asdict(config))
    if split == "validation":
        nominate(adapter, validation_score(metrics, config.domain)[0], dataset, runtime)
    write_card(adapter, runtime)
    return scores


def _place(key: str, domain: str) -> str:
    return f"{domain}-{key[-8:]}"


def forget(scores: Handle, runtime: Runtime) -> None:
    """The scores are saved: nobody needs the completions that wait for them."""
    place = _place(scores.key, scores.config["domain"])
    tracking.drop_directory(runtime, scores.run_id, f"{UNSCORED}/{place}")


def _generate(
    config: EvalConfig, examples: list[Example], *, adapter: Handle, runtime: Runtime
) -> list[dict[str, Any]]:
    base = base_model(adapter.config["base_model"], runtime.models_dir)
    model = load_base(base, runtime.device, dtype=config.dtype)
    model = apply_adapter(model, tracking.fetch(runtime, adapter))
    return generate(model, load_tokenizer(base), examples, config)


@contextmanager
def _written(records: list[dict[str, Any]]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / GENERATIONS).write_text("".join(json.dumps(record) + "\n" for record in records))
        yield Path(scratch)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The completions of an evaluation and their scores, a record a row."""
    return [json.loads(line) for line in path.read_text().splitlines()]
