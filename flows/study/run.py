"""What every flow shares: checked parameters, the cells it asks for, their progress, and the report at the end."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.urls import url_for

from flows.study.checks import check_hardware, check_usable, note_cell
from flows.study.comparison import Row, comparison
from lori import plan
from lori.base_models.resolve import identity, split_base
from lori.choices.methods import recipe_of
from lori.choices.profiles import Profile
from lori.config import Hardware
from lori.recipes import checked_profile
from tasks import tracking
from tasks.engine.cells import Cells, Future, is_refreshed, recalled, to_handle
from tasks.engine.executors import check_executor, interruptible
from tasks.engine.progress import log_at_info
from tasks.engine.steps import STEPS
from tasks.machine import local_runtime, locked, state_dir
from tasks.publish.hub import check_push, push
from tasks.report import write
from tasks.result_files import read_intervals, read_pairs
from tasks.results import Handle

# Threads that only wait: how much is computed at once is the executor's business
THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=64)


@dataclass(frozen=True)
class Study:
    """One flow run: what it is about, where it computes, and what it has asked for so far."""

    profile: Profile
    hardware: Hardware
    plan_only: bool
    push_to: str | None = None
    cells: Cells = field(default_factory=Cells)

    def varied(self, **changes: Any) -> "Study":
        """The same flow run asking for cells of another profile: `changes` are of its fields, and are not checked."""
        return replace(self, profile=replace(self.profile, **changes))


@dataclass
class Progress:
    """How the cells of a study ended."""

    computed: int = 0
    cached: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def run_name() -> str:
    """A flow run's name: what it is about, as in `lori paper mistral-7b`."""
    about = flow_run.parameters
    return " ".join(filter(None, [flow_run.flow_name, about["profile"], about.get("base_model")]))


def begin(
    profile: str,
    *,
    hardware: Hardware | None = None,
    refresh: Sequence[str] | None = None,
    plan_only: bool = False,
    push_to: str | None = None,
    adapters_dir: str | None = None,
    **overrides: Any,
) -> Study:
    """A study of `profile` with what `overrides` changes, checked before any time is spent.

    Raises:
        ValueError: for an unknown name, with the known ones; for a base model or rows that can't be used; if nothing
            may be pushed to `push_to`.
        RuntimeError: for what can't be fetched; if programs can't be contained, or MLflow can't be reached.
    """
    log_at_info()
    hardware = hardware or Hardware()
    executor = check_executor(1 if plan_only else hardware.num_gpus)
    runtime = local_runtime()
    check_hardware(hardware, runtime.device, is_here=executor != "deployment" and not plan_only, plan_only=plan_only)
    told = _told_places(overrides)
    places = {"data_dir": runtime.data_dir, "models_dir": runtime.models_dir, **told}
    chosen = checked_profile.profile(profile, **{**overrides, **places})
    check_usable(chosen, plan_only=plan_only)
    if push_to and not plan_only:
        check_push(push_to)
    if not plan_only:
        tracking.ensure_store(runtime.tracking_uri)
        tracking.close_stale_runs(runtime)
    place = {
        "experiment": runtime.experiment,
        "data_dir": told.get("data_dir"),
        "models_dir": told.get("models_dir"),
        "adapters_dir": adapters_dir,
        "micro_batch_tokens": hardware.micro_batch_tokens,
        "gradient_checkpointing": hardware.gradient_checkpointing,
        "num_gpus": hardware.num_gpus,
        "flow_run": url_for("flow-run", flow_run.id) or str(flow_run.id),
    }
    return Study(chosen, hardware, plan_only, push_to, Cells(place, refresh or ()))


def _told_places(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Folders that the parameters name, and a base model that was named by its folder taken apart into name and place.

    The other places are each machine's own: where a job is computed, its environment says them.
    """
    told = {}
    if data_dir := overrides.get("data_dir"):
        told["data_dir"] = str(Path(data_dir).expanduser().resolve())
    if overrides.get("base_model"):
        told["base_model"], models_dir = split_base(overrides["base_model"])
        told |= {"models_dir": models_dir} if models_dir else {}
    return told


def carry_out(study: Study, *stages: Callable[[Study], list[Row]], asked: Mapping[str, Any] | None = None) -> State:
    """Ask for the cells of all stages at once, wait for them, and publish the tables of what succeeded.

    The state is `Failed`, with the reasons, if a cell failed: the others are computed and reported all the same. With
    `plan_only` the plan is published instead. `asked` are parameters that no profile has: what a report is about.

    Raises:
        ValueError: if no row is left, or if a cell can't fit the GPU that the study names.
    """
    started = time.monotonic()
    noted = cast(list[plan.PlannedCell], list(ask_all(study, stages, note_cell).titles))
    _check_refresh(study.cells.refresh, [f"{cell.step} {cell.name}" for cell in noted])
    _say_unused(study.profile.learning_rates, {cell.config.method for cell in noted if cell.step == "train"})
    if study.plan_only or study.hardware.gpu:
        drawn = plan.plan_study(study.profile, study.hardware, noted)
        if study.plan_only:
            return _publish_plan(drawn)
        plan.check(drawn)
    with interruptible(), recalled(lambda submit: ask_all(study, stages, submit)) as outlook:
        if outlook and outlook.missing:
            print(outlook, flush=True)
        rows = [row for stage in stages for row in stage(study)]
        if not rows:
            raise ValueError(
                "These domains and methods leave no row of a table: two domains merge, safety comes first."
            )
        compared = comparison(study.cells, rows)
        progress = _follow(study.cells)
        if progress.failed:
            compared = _compare_finished(study.cells, rows, progress)
        effort = {"num_computed": progress.computed, "num_cached": progress.cached}
        settings = {**(asked or {}), "wall_seconds": time.monotonic() - started, **effort}
        _publish(study, rows, compared, settings, is_complete=not progress.failed)
        if study.push_to:
            _push(study.push_to, rows, progress)
    summary = _summary(progress, seconds=time.monotonic() - started)
    print(summary, flush=True)
    if progress.failed:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in progress.failed.items())
        return Failed(message=f"{summary} {reasons}")
    return Completed(message=summary, data={"computed": progress.computed, "cached": progress.cached})


def ask_all(study: Study, stages: Sequence[Callable[[Study], list[Row]]], submit: Callable[..., Future]) -> Cells:
    """The cells of all stages, asked for from `submit`."""
    cells = Cells(study.cells.place, study.cells.refresh, submit)
    comparison(cells, [row for stage in stages for row in stage(replace(study, cells=cells))])
    return cells


def _check_refresh(refresh: Sequence[str], titles: Sequence[str]) -> None:
    unknown = [asked for asked in refresh if not any(is_refreshed(title, [asked]) for title in titles)]
    if unknown:
        raise ValueError(
            f"refresh names no cell of this study: {', '.join(unknown)}. It takes `all`, a step ({', '.join(STEPS)}),"
            f" or the first words of a title, such as {titles[0]!r}."
        )


def _say_unused(rates: Sequence[tuple[str, float]], trained: Set[str]) -> None:
    """No error: what a sweep chose may be told to every study, whichever methods that has."""
    taken = trained | {recipe_of(method) for method in trained}
    if unused := [name for name, _ in rates if name not in taken]:
        print(f"learning_rates changes nothing here for {', '.join(unused)}: not trained in this study.", flush=True)


def _publish_plan(drawn: "plan.Plan") -> State:
    """Print the plan and leave it as an artifact of the flow run; `Failed` if a cell can't fit."""
    markdown = plan.to_markdown(drawn)
    print(markdown, flush=True)
    create_markdown_artifact(markdown, key="lori-plan", description="What the cells would take")
    if drawn.problems:
        return Failed(message=f"{len(drawn.problems)} of {len(drawn.rows)} cells can't fit: see the plan.")
    return Completed(message=f"{len(drawn.rows)} cells planned.", data={"planned": len(drawn.rows)})


def _follow(cells: Cells) -> Progress:
    """Wait for every cell and print a line for each."""
    progress = Progress()
    for num_done, future in enumerate(as_completed(list(cells.titles)), start=1):
        future.wait()  # as_completed yields before the future knows its final state
        outcome = _outcome(cells, future, progress)
        print(f"[{num_done}/{len(cells.titles)}] {cells.titles[future]}  {outcome}", flush=True)
    return progress


def _compare_finished(cells: Cells, rows: Sequence[Row], progress: Progress) -> Future | None:
    """Intervals of the rows that are there, for one that failed takes them from none of the others."""
    known = set(cells.titles)
    compared = comparison(cells, [row for row in rows if _is_finished(row)], rows)
    if compared and compared not in known:  # else it failed by itself, or nothing that it reads did
        compared.wait()
        print(f"{cells.titles[compared]} that are there  {_outcome(cells, compared, progress)}", flush=True)
    return compared


def _outcome(cells: Cells, future: Future, progress: Progress) -> str:
    """Count how a cell ended, and say it."""
    state = future.state
    if state.is_pending():
        progress.skipped += 1
        return "not started: a cell that it needs failed"
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        progress.failed[cells.titles[future]] = str(error)
        return "\n".join([f"FAILED  {error}", *getattr(error, "__notes__", [])])  # the note is its traceback
    if state.name == "Cached":
        progress.cached += 1
        return "cached"
    progress.computed += 1
    return f"{future.result()['seconds']:.1f} s"


def _summary(progress: Progress, *, seconds: float) -> str:
    if progress.failed:
        failed = f" {len(progress.failed)} cells failed, {progress.skipped} that need them did not start."
    elif not progress.computed:
        return f"Nothing to do: all {progress.cached} cells cached ({seconds:.0f} s)."
    else:
        failed = ""
    return f"{progress.computed} cells computed, {progress.cached} cached in {seconds:.0f} s.{failed}"


def _publish(
    study: Study, rows: list[Row], compared: Future | None, settings: Mapping[str, Any], *, is_complete: bool
) -> None:
    """Write the report to MLflow, and leave it and a link to MLflow as artifacts of the flow run."""
    finished = [cell for row in rows for cell in _finished(row)]
    if not finished:
        return
    runtime = local_runtime()
    is_compared = compared is not None and compared.state.is_completed()
    intervals = read_intervals(to_handle(compared.result()), runtime) if compared and is_compared else {}
    base = identity(study.profile.base_model, study.profile.models_dir)
    settings = {**write.study_settings(study.profile, base), **settings}
    with locked(state_dir() / "locks" / "report.lock"):  # the same study in another process replaces the same files
        analyses = write.Analyses(intervals, read_pairs(_interference(study.cells), runtime))
        handle, markdown = write_report(finished, analyses, settings, is_complete=is_complete)
        page = _fetched_page(handle)
    key = re.sub(r"[^a-z0-9]+", "-", f"lori-{study.profile.name}-{study.profile.base_model}".lower()).strip("-")
    create_markdown_artifact(markdown, key=key, description="The tables of the paper")
    if url := tracking.run_url(runtime, handle.run_id, "report/index.html"):
        create_link_artifact(url, key=f"{key}-mlflow", link_text="Report in MLflow")
        if page_of_run := url_for("flow-run", flow_run.id):  # none without a Prefect server of one's own
            print(f"Prefect: {page_of_run}")
        print(f"MLflow:  {url}")
    for number, (name, link) in enumerate(tracking.view_links(runtime).items(), start=1):
        create_link_artifact(link, key=f"{key}-view-{number}", link_text=f"{name} in MLflow")
        print(f"         {name}: {link}")
    print(f"Report:  {page}")


def _interference(cells: Cells) -> list[Handle]:
    """What was measured of it."""
    asked = [future for (step, *_), future in cells.futures.items() if step == "interference"]
    return [to_handle(future.result()) for future in asked if future.state.is_completed()]


def _push(namespace: str, rows: list[Row], progress: Progress) -> None:
    """Every adapter of a finished row to the hub; one that can't be pushed is a failure that loses no other."""
    adapters = {cell.adapter.key: cell.adapter for row in rows for cell in _finished(row)}
    for adapter in adapters.values():
        state = push_adapter(adapter, namespace, return_state=True)
        if not state.is_completed():
            progress.failed[f"push {adapter.name}"] = str(state.result(raise_on_failure=False))
        elif url := state.result():
            print(f"Hub:     {url}")


@task(name="push", task_run_name="push {adapter.name}", cache_policy=NO_CACHE, persist_result=False)
def push_adapter(adapter: Handle, namespace: str) -> str | None:
    """Not cached: the hub says what it has already."""
    return push(adapter, namespace, local_runtime())


def _fetched_page(report_handle: Handle) -> str:
    """The report's page on this machine."""
    try:
        return str(tracking.fetch(local_runtime(), report_handle) / "index.html")
    except tracking.ArtifactMissing:  # the same study on another machine ended at the same moment
        return "another flow run of the same study replaced it: see the one in MLflow"


def _is_finished(row: Row) -> bool:
    return all(future.state.is_completed() for future in (row.adapter, *row.scores))


def _finished(row: Row) -> Iterator[write.Cell]:
    if _is_finished(row):
        adapter, *scores = [to_handle(future.result()) for future in (row.adapter, *row.scores)]
        yield write.Cell(row.table, row.labels, adapter, scores)


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def write_report(
    cells: list[write.Cell], analyses: write.Analyses, settings: Mapping[str, Any], *, is_complete: bool
) -> tuple[Handle, str]:
    """The tables, from handles alone. Not cached: it says when it was made and how long that took."""
    runtime = local_runtime()
    return write.write_report(cells, analyses, settings=settings, is_complete=is_complete, runtime=runtime)
