"""What several test files share: a Prefect API, and a place of its own for everything that a run writes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stores import empty_database, server, sqlite_store, store  # noqa: F401 MLflow stores, as fixtures
from waiting import PATIENCE

from tasks.machine import COMPUTE_SETTINGS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.update(COMPUTE_SETTINGS)
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A real Prefect server on a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=PATIENCE):
        yield


@pytest.fixture(scope="module")
def state_dir(prefect_api: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`LORI_DIR` for the tests of one file: its MLflow store, Prefect's results, locks and cache."""
    from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

    directory = tmp_path_factory.mktemp("lori")
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: directory}):
        patch.setenv("LORI_DIR", str(directory))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("LORI_EXECUTOR", raising=False)
        yield directory


@pytest.fixture
def computed(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The titles of the cells that a flow said it computed, since the last call; cached ones are not among them."""

    def read() -> list[str]:
        lines = [
            line.partition("] ")[2].split("  ") for line in capsys.readouterr().out.splitlines() if line[:1] == "["
        ]
        return sorted("  ".join(words[:-1]) for words in lines if words[-1].endswith(" s"))

    return read
