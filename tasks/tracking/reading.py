"""Runs that many threads ask for at the same time, read in one request, which takes little longer than for one."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cache

from mlflow.entities import LoggedModel, Run, ViewType

from tasks.tracking.client import connect, experiment_id_of

TOGETHER = 500


class RunReader:
    """Of one experiment. One thread reads at a time; those that ask meanwhile are answered by the next, together."""

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        self._client = connect(tracking_uri)
        self._experiment_id = experiment_id_of(tracking_uri, experiment)
        self._turn, self._guard = threading.Lock(), threading.Lock()
        self._waiting: dict[str, Future[Run | None]] = {}

    def read(self, run_id: str) -> Run:
        """As `MlflowClient.get_run`, a deleted run too: as it is after the call, not before."""
        with self._guard:
            future = self._waiting.setdefault(run_id, Future())
        with self._turn:
            if not future.done():
                self._answer()
        return future.result() or self._client.get_run(run_id)  # of another experiment, or gone

    def read_all(self, run_ids: Sequence[str]) -> dict[str, Run]:
        """Those of this experiment that there are, in a request for each `TOGETHER` of them."""
        return {run_id: run for page in _pages(run_ids) for run_id, run in self._read_together(page).items()}

    def read_all_models(self, model_ids: Sequence[str]) -> dict[str, LoggedModel]:
        """As `read_all`, of logged models; none that was deleted."""
        found = [
            self._client.search_logged_models(
                [self._experiment_id], f"model_id IN ({_quoted(page)})", max_results=TOGETHER
            )
            for page in _pages(model_ids)
        ]
        return {model.model_id: model for page in found for model in page}

    def _answer(self) -> None:
        with self._guard:
            asked, self._waiting = self._waiting, {}
        try:
            found = self._read_together(list(asked))
        except Exception as error:
            for future in asked.values():
                future.set_exception(error)
            return
        for run_id, future in asked.items():
            future.set_result(found.get(run_id))

    def _read_together(self, run_ids: Sequence[str]) -> Mapping[str, Run]:
        query = f"attributes.run_id IN ({_quoted(run_ids)})"
        runs = self._client.search_runs([self._experiment_id], query, ViewType.ALL, max_results=len(run_ids))
        return {run.info.run_id: run for run in runs}


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[first : first + TOGETHER] for first in range(0, len(ids), TOGETHER))


def _quoted(ids: Sequence[str]) -> str:
    return ", ".join(f"'{each}'" for each in ids)


@cache
def run_reader(tracking_uri: str, experiment: str) -> RunReader:
    """The reader of an experiment, one per process."""
    return RunReader(tracking_uri, experiment)
