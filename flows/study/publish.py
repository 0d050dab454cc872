"""What a study leaves behind: its report in MLflow, links in Prefect, and adapters on the hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from flows.study.comparison import Row
from lori.choices.profiles import Profile
from lori.plan.cell import Cell
from tasks import tracking
from tasks.engine.cells import Cells, to_handle
from tasks.machine import locked, state_dir
from tasks.publish.hub import push
from tasks.report import scores, write
from tasks.result_files import read_intervals, read_pairs
from tasks.results import Handle, Runtime

Results = Mapping[str, Mapping[str, Any]]  # by key, the records of the cells that were computed


def publish(  # noqa: PLR0913 it is of all of them
    profile: Profile,
    cells: Cells,
    rows: Sequence[Row],
    compared: Cell | None,
    results: Results,
    settings: Mapping[str, Any],
    runtime: Runtime,
    *,
    is_complete: bool,
) -> None:
    """Write the report to MLflow, and leave it and a link to MLflow as artifacts of the flow run."""
    finished = [cell for row in rows for cell in _finished(row, results)]
    if not finished:
        return
    is_compared = compared is not None and compared.key in results
    intervals = read_intervals(to_handle(results[compared.key]), runtime) if compared and is_compared else {}
    settings = {**write.study_settings(profile, profile.base.identity), **settings}
    measured = [to_handle(results[cell.key]) for cell in cells.of("interference") if cell.key in results]
    with locked(state_dir() / "locks" / "report.lock"):  # the same study in another process replaces the same files
        analyses = write.Analyses(intervals, read_pairs(measured, runtime))
        handle, markdown = write_report(finished, analyses, settings, runtime, is_complete=is_complete)
        page = _fetched_page(handle, runtime)
    key = re.sub(r"[^a-z0-9]+", "-", f"lori-{profile.name}-{profile.base.name}".lower()).strip("-")
    create_markdown_artifact(markdown, key=key, description="The tables of the paper")
    if url := tracking.run_url(runtime, handle.run_id, "report/index.html"):
        views = tracking.view_links(runtime)
        listed = "\n".join(f"- [{name}]({link})" for name, link in {"Report": url, **views}.items())
        create_markdown_artifact(listed, key=f"{key}-mlflow", description="The report and the views in MLflow")
        if page_of_run := url_for("flow-run", flow_run.id):  # none without a Prefect server of one's own
            print(f"Prefect: {page_of_run}")
        print(f"MLflow:  {url}")
        for name, link in views.items():
            print(f"         {name}: {link}")
    print(f"Report:  {page}")


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def write_report(
    cells: list[scores.Cell],
    analyses: write.Analyses,
    settings: Mapping[str, Any],
    runtime: Runtime,
    *,
    is_complete: bool,
) -> tuple[Handle, str]:
    """The tables, from handles alone. Not cached: it says when it was made and how long that took."""
    return write.write_report(cells, analyses, settings=settings, is_complete=is_complete, runtime=runtime)


def _fetched_page(report: Handle, runtime: Runtime) -> str:
    """The report's page on this machine."""
    try:
        return str(tracking.fetch(runtime, report) / "index.html")
    except tracking.ArtifactMissing:  # the same study on another machine ended at the same moment
        return "another flow run of the same study replaced it: see the one in MLflow"


def _finished(row: Row, results: Results) -> Iterator[scores.Cell]:
    cells = (row.adapter, *row.scores)
    if all(cell.key in results for cell in cells):
        adapter, *scored = [to_handle(results[cell.key]) for cell in cells]
        yield scores.Cell(row.table, row.labels, adapter, scored)


def push_all(namespace: str, rows: Sequence[Row], results: Results, runtime: Runtime) -> dict[str, str]:
    """Every adapter of a finished row to the hub. Returns the failures, by title: none of them loses another."""
    adapters = {cell.adapter.key: cell.adapter for row in rows for cell in _finished(row, results)}
    failed = {}
    for adapter in adapters.values():
        state = push_adapter(adapter, namespace, runtime, return_state=True)
        if not state.is_completed():
            failed[f"push {adapter.name}"] = str(state.result(raise_on_failure=False))
        elif url := state.result():
            print(f"Hub:     {url}")
    return failed


@task(name="push", task_run_name="push {adapter.name}", cache_policy=NO_CACHE, persist_result=False)
def push_adapter(adapter: Handle, namespace: str, runtime: Runtime) -> str | None:
    """Not cached: the hub says what it has already."""
    return push(adapter, namespace, runtime)
