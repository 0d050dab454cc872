"""Many runs or models in one request, which takes little longer than for one."""

from collections.abc import Iterator, Sequence

from mlflow.entities import LoggedModel, Run, ViewType

from tasks.results import Runtime
from tasks.tracking.client import connect, experiment_id_of

TOGETHER = 500


def read_runs(runtime: Runtime, run_ids: Sequence[str]) -> dict[str, Run]:
    """Those of them that the experiment has, by id: deleted ones, too."""
    client, experiments = connect(runtime.tracking_uri), [experiment_id_of(runtime.tracking_uri, runtime.experiment)]
    found = [
        client.search_runs(experiments, f"attributes.run_id IN ({page})", ViewType.ALL, max_results=TOGETHER)
        for page in _pages(run_ids)
    ]
    return {run.info.run_id: run for page in found for run in page}


def read_models(runtime: Runtime, model_ids: Sequence[str]) -> dict[str, LoggedModel]:
    """Those of them that the experiment has, by id: no deleted ones."""
    client, experiments = connect(runtime.tracking_uri), [experiment_id_of(runtime.tracking_uri, runtime.experiment)]
    found = [
        client.search_logged_models(experiments, f"model_id IN ({page})", max_results=TOGETHER)
        for page in _pages(model_ids)
    ]
    return {model.model_id: model for page in found for model in page}


def _pages(ids: Sequence[str]) -> Iterator[str]:
    """Each page's ids as a query lists them."""
    for first in range(0, len(ids), TOGETHER):
        yield ", ".join(f"'{each}'" for each in ids[first : first + TOGETHER])
