"""Reports as MLflow has them: of which base models there are complete ones, with which settings and numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run

from tasks.results import Runtime
from tasks.tracking.client import connect, experiment_id_of
from tasks.tracking.runs import param_texts

PAGE = 500  # runs a request


@dataclass(frozen=True)
class Report:
    """A report without its files.

    `settings` are texts, as MLflow keeps them; `tables` are those that have rows, `versions` the results versions of
    its cells, `means` its headlines.
    """

    base_model: str
    settings: Mapping[str, str]
    tables: frozenset[str]
    versions: frozenset[str]
    means: Mapping[str, float]
    run_id: str = ""
    ended_ms: int = 0

    def tags(self, *, is_complete: bool) -> dict[str, str]:
        """Of its run: `find_reports` reads them."""
        return {
            "lori.role": "report",
            "lori.base_model": self.base_model,
            "lori.profile": self.settings["name"],
            "lori.tables": " ".join(sorted(self.tables)),
            "lori.versions": " ".join(sorted(self.versions)),
            "lori.complete": str(is_complete).lower(),
        }


def as_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as a `Report` has them."""
    return param_texts(settings)


def find_reports(runtime: Runtime, profile: str) -> list[Report]:
    """The reports of a profile that lack no cell."""
    return [_report(run) for run in _report_runs(runtime, profile)]


def _report_runs(runtime: Runtime, profile: str) -> Iterator[Run]:
    client = connect(runtime.tracking_uri)
    experiment_id = experiment_id_of(runtime.tracking_uri, runtime.experiment)
    tags = {"lori.role": "report", "lori.complete": "true", "lori.profile": profile}
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=PAGE, page_token=token)
        yield from (run for run in page if run.info.status == "FINISHED")  # and is not being written now
        if not (token := page.token):
            return


def _report(run: Run) -> Report:
    tags, metrics = run.data.tags, run.data.metrics
    return Report(
        base_model=tags["lori.base_model"],
        settings=run.data.params,
        tables=frozenset(tags["lori.tables"].split()),
        versions=frozenset(tags["lori.versions"].split()),
        means=metrics,
        run_id=run.info.run_id,
        ended_ms=run.info.end_time or 0,
    )
