"""CPU, memory, disk, network and GPUs of the machine, while something is computed on it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from lori.config import Runtime

SAMPLE_SECONDS = 10
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # four lines a training that say nothing


@contextmanager
def system_metrics(runtime: Runtime, run_id: str) -> Iterator[None]:
    """Metrics `system/…` of the run, by a thread of MLflow's; an attempt goes on after the last one's."""
    monitor = SystemMetricsMonitor(run_id, SAMPLE_SECONDS, resume_logging=True, tracking_uri=runtime.tracking_uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
