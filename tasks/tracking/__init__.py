"""MLflow, and the only place that knows it: runs found or made by key, metrics, files and models, fetched by digest.

Explicit client and ids only: the fluent API keeps the active run per thread and opens stray runs in a task's thread.
One identity, the tag `lori.key`, finds what an earlier attempt left: a retry goes on in the same run and model.
"""

import os

# MLflow reads these at its import or at a request. Its own defaults block one call for four minutes on a dead server.
os.environ.update(
    {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",  # waits of 1, 2, 4, … 64 s: a server may be away for two minutes
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_POOL_MAXSIZE": "64",  # as many as a flow has threads: connections beyond it are not kept
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",  # a server may pass gigabytes on to S3 before it answers
        **os.environ,
    }
)

from tasks.tracking.artifacts import (
    ArtifactMissing,
    are_available,
    drop_directory,
    fetch,
    find_directory,
    is_available,
    log_directory,
)
from tasks.tracking.client import MlflowException, TrackingUnavailable, ensure_store, import_store
from tasks.tracking.digests import CARD, directory_digest
from tasks.tracking.handles import find_handle, save_handle
from tasks.tracking.models import link_dataset, link_inputs, link_models, log_model, write_beside
from tasks.tracking.provenance import provenance
from tasks.tracking.registry import address_of, promote_best, register, registered_name
from tasks.tracking.runs import (
    card_lock,
    close_run,
    close_run_of,
    close_stale_runs,
    find_tags,
    log_curve,
    log_metrics,
    logged_run,
    open_run,
    run_metrics,
    run_tags,
    run_url,
    set_tag,
    system_metrics,
)
from tasks.tracking.uploaded_checkpoints import (
    Published,
    drop_checkpoints,
    fetch_checkpoint,
    publish_checkpoint,
    published_checkpoint,
)
from tasks.tracking.views import colour_of, provision_views, view_links

__all__ = [
    "CARD",
    "ArtifactMissing",
    "MlflowException",
    "Published",
    "TrackingUnavailable",
    "address_of",
    "are_available",
    "card_lock",
    "close_run",
    "close_run_of",
    "close_stale_runs",
    "colour_of",
    "directory_digest",
    "drop_checkpoints",
    "drop_directory",
    "ensure_store",
    "fetch",
    "fetch_checkpoint",
    "find_directory",
    "find_handle",
    "find_tags",
    "import_store",
    "is_available",
    "link_dataset",
    "link_inputs",
    "link_models",
    "log_curve",
    "log_directory",
    "log_metrics",
    "log_model",
    "logged_run",
    "open_run",
    "promote_best",
    "provenance",
    "provision_views",
    "publish_checkpoint",
    "published_checkpoint",
    "register",
    "registered_name",
    "run_metrics",
    "run_tags",
    "run_url",
    "save_handle",
    "set_tag",
    "system_metrics",
    "view_links",
    "write_beside",
]
