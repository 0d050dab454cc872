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
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        **os.environ,
    }
)

from tasks.tracking.client import TrackingUnavailable, ensure_store
from tasks.tracking.content import directory_digest
from tasks.tracking.files import (
    ArtifactMissing,
    fetch,
    is_available,
    link_inputs,
    log_directory,
    log_model,
)
from tasks.tracking.origin import provenance
from tasks.tracking.runs import close_run, log_curve, log_metrics, logged_run, open_run, run_tags, run_url

__all__ = [
    "ArtifactMissing",
    "TrackingUnavailable",
    "close_run",
    "directory_digest",
    "ensure_store",
    "fetch",
    "is_available",
    "link_inputs",
    "log_curve",
    "log_directory",
    "log_metrics",
    "log_model",
    "logged_run",
    "open_run",
    "provenance",
    "run_tags",
    "run_url",
]
