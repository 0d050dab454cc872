"""Score an adapter on a domain and log the scores on the adapter's own run: one MLflow row is one row of a table."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from lori.config import EvalConfig, Handle, Runtime
from lori.data import load_rows
from lori.evaluation import evaluate as score
from lori.methods import apply_adapter
from lori.models import load_base, load_tokenizer
from tasks import tracking
from tasks.data import ROWS_FILE


def evaluate(config: EvalConfig, *, adapter: Handle, dataset: Handle, key: str, runtime: Runtime) -> Handle:
    """The domain's metrics of `adapter`; every completion is kept beside them."""
    base = adapter.config["base_model"]
    model = load_base(base, runtime.device, models_dir=runtime.models_dir, dtype=config.dtype)
    model = apply_adapter(model, tracking.fetch(runtime, adapter))
    examples = load_rows(tracking.fetch(runtime, dataset) / ROWS_FILE)
    metrics, records = score(model, load_tokenizer(base, runtime.models_dir), examples, config)
    with tempfile.TemporaryDirectory() as scratch:
        summary = json.dumps({"config": asdict(config), "metrics": metrics}, indent=2)
        (Path(scratch) / "metrics.json").write_text(summary)
        (Path(scratch) / "generations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        place = f"scores/{config.domain}-{key[-8:]}"
        uri, sha256 = tracking.log_directory(runtime, adapter.run_id, Path(scratch), place)
    tracking.log_metrics(runtime, adapter.run_id, metrics)
    name = f"{adapter.name} on {config.domain}"
    return Handle("scores", key, name, adapter.run_id, uri, sha256, metrics, asdict(config))
