"""Take in an adapter that was trained elsewhere, as a logged model like our own."""

import re
import tempfile
from dataclasses import asdict
from pathlib import Path

from lori.adapters.copy_published import copy_published
from lori.adapters.find_published import method_and_domain
from lori.config import PublishedConfig
from tasks import tracking
from tasks.results import Handle, Runtime


def import_adapter(config: PublishedConfig, *, key: str, runtime: Runtime) -> Handle:
    """The adapter's files and, of the authors' LoRI-D, the mask beside them."""
    method, domain = method_and_domain(config.name)
    name = re.sub(r"[^\w-]", "-", config.name)  # MLflow takes no dot, slash or colon in a model's name
    params = {**asdict(config), "method": method, "domain": domain, "seed": 0}
    tags = {"lori.role": "import", "lori.method": method, "lori.domain": domain}
    with (
        tracking.logged_run(runtime, key, name, tags=tags, params=params) as run_id,
        tempfile.TemporaryDirectory() as scratch,
    ):
        metrics = copy_published(config, runtime.adapters_dir, Path(scratch))
        uri, sha256 = tracking.log_model(runtime, run_id, key, Path(scratch), kind="adapter", name=name, params=params)
        tracking.log_metrics(runtime, run_id, metrics)
    return Handle("adapter", key, name, run_id, uri, sha256, metrics, params)
