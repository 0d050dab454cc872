"""A study: its parameters checked, the cells of its tables computed, their progress shown, the report published."""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.futures import as_completed
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.utilities.urls import url_for

from flows.study.checks import check_hardware, check_usable
from flows.study.comparison import Row, comparison
from flows.study.publish import publish, push_all
from lori import plan
from lori.base_models.resolve import split_base
from lori.choices.hardware import Hardware
from lori.choices.methods import recipe_of
from lori.choices.profiles import Profile
from lori.plan.cell import Cell
from lori.recipes import checked_profile
from tasks import tracking
from tasks.engine.cells import Cells, Future, compute, is_meant, submit_cells
from tasks.engine.executors import check_executor, interruptible
from tasks.engine.prefetch import looked_up
from tasks.engine.progress import log_at_info
from tasks.engine.steps import STEPS
from tasks.machine import NOTHING_TOLD, experiment_of, local_runtime
from tasks.publish.hub import check_push
from tasks.results import Runtime


@dataclass(frozen=True)
class Study:
    """One flow run: the profile that its cells are of, what it says of where they are computed, and those cells."""

    profile: Profile
    told: Runtime = NOTHING_TOLD
    plan_only: bool = False
    push_to: str | None = None
    cells: Cells = field(default_factory=Cells)

    def varied(self, **changes: Any) -> "Study":
        """The same flow run asking for cells of another profile: `changes` are of its fields, and are not checked."""
        return replace(self, profile=replace(self.profile, **changes))


Stage = Callable[[Study], list[Row]]


@dataclass
class Progress:
    """The futures of a study's cells, by key, and how those that ended did."""

    futures: dict[str, Future] = field(default_factory=dict)
    computed: int = 0
    cached: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def prepare_study(
    profile: str,
    *,
    hardware: Hardware | None = None,
    refresh: Sequence[str] | None = None,
    plan_only: bool = False,
    push_to: str | None = None,
    adapters_dir: str | None = None,
    **changes: Any,
) -> Study:
    """A study of `profile` with `changes` of its fields, checked before any time is spent.

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
    places = _told_places(changes)
    chosen = checked_profile.profile(
        profile, **{**changes, "data_dir": runtime.data_dir, "models_dir": runtime.models_dir, **places}
    )
    check_usable(chosen, plan_only=plan_only)
    if push_to and not plan_only:
        check_push(push_to)
    experiment = experiment_of(chosen.name)
    if not plan_only:
        tracking.ensure_store(runtime.tracking_uri)
        tracking.close_stale_runs(replace(runtime, experiment=experiment))
    told = Runtime(
        experiment=experiment,
        data_dir=places.get("data_dir"),
        models_dir=places.get("models_dir"),
        adapters_dir=adapters_dir,
        hardware=hardware,
        flow_run=url_for("flow-run", flow_run.id) or str(flow_run.id),
    )
    return Study(chosen, told, plan_only, push_to, Cells(refresh or ()))


def _told_places(changes: Mapping[str, Any]) -> dict[str, str]:
    """Folders that the parameters name, and a base model that was named by its folder taken apart into name and place.

    The other places are each machine's own: where a job is computed, its environment says them.
    """
    told = {}
    if data_dir := changes.get("data_dir"):
        told["data_dir"] = str(Path(data_dir).expanduser().resolve())
    if changes.get("base_model"):
        told["base_model"], models_dir = split_base(changes["base_model"])
        told |= {"models_dir": models_dir} if models_dir else {}
    return told


def run_study(study: Study, *stages: Stage, asked: Mapping[str, Any] | None = None) -> State:
    """Compute the cells of all stages, and publish the tables of what succeeded.

    The state is `Failed`, with the reasons, if a cell failed: the others are computed and reported all the same. With
    `plan_only` the plan is published instead. `asked` are parameters that no profile has: what a report is about.

    Raises:
        ValueError: if no row is left, if `refresh` names no cell, or if a cell can't fit the GPU that the study names.
    """
    started = time.monotonic()
    rows = [row for stage in stages for row in stage(study)]
    if not rows:
        raise ValueError("These domains and methods leave no row of a table: two domains merge, safety comes first.")
    compared = comparison(study.cells, rows)
    cells = [*study.cells.by_key.values()]
    _check_refresh(study.cells.refresh, cells)
    _say_unused(study.profile.learning_rates, {cell.config.method for cell in cells if cell.step == "train"})
    if study.plan_only or study.told.hardware.gpu:
        drawn = plan.plan_study(study.profile, study.told.hardware, cells)
        if study.plan_only:
            return _publish_plan(drawn)
        plan.check(drawn)
    refreshed = study.cells.refreshed()
    with interruptible(), looked_up(cells, compute, refreshed=refreshed, told=study.told) as outlook:
        if outlook and outlook.missing:
            print(outlook, flush=True)
        progress = Progress()
        submit_cells(study.cells, progress.futures, study.told)
        _follow(progress, study.cells)
        if progress.failed:
            compared = _compare_finished(study, rows, progress)
        effort = {"num_computed": progress.computed, "num_cached": progress.cached}
        runtime = local_runtime(study.told)
        settings = {**(asked or {}), "wall_seconds": time.monotonic() - started, **effort}
        results = {key: future.result() for key, future in progress.futures.items() if future.state.is_completed()}
        publish(
            study.profile, study.cells, rows, compared, results, settings, runtime, is_complete=not progress.failed
        )
        if study.push_to:
            progress.failed |= push_all(study.push_to, rows, results, runtime)
    summary = _summary(progress, seconds=time.monotonic() - started)
    print(summary, flush=True)
    if progress.failed:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in progress.failed.items())
        return Failed(message=f"{summary} {reasons}")
    return Completed(message=summary, data={"computed": progress.computed, "cached": progress.cached})


def _check_refresh(refresh: Sequence[str], cells: Sequence[Cell]) -> None:
    unknown = [asked for asked in refresh if not any(is_meant(cell, [asked]) for cell in cells)]
    if unknown:
        raise ValueError(
            f"refresh names no cell of this study: {', '.join(unknown)}. It takes `all`, a step ({', '.join(STEPS)}),"
            f" or the first words of a title, such as {cells[0].title!r}."
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


def _follow(progress: Progress, cells: Cells) -> None:
    """Wait for every cell and print a line for each."""
    titles = {future: cells.by_key[key].title for key, future in progress.futures.items()}
    for num_done, future in enumerate(as_completed([*titles]), start=1):
        future.wait()  # as_completed yields before the future knows its final state
        title = titles[future]
        print(f"[{num_done}/{len(titles)}] {title}  {_outcome(title, future, progress)}", flush=True)


def _compare_finished(study: Study, rows: Sequence[Row], progress: Progress) -> Cell | None:
    """Intervals of the rows that are there, for one that failed takes them from none of the others."""

    def is_finished(row: Row) -> bool:
        return all(progress.futures[cell.key].state.is_completed() for cell in (row.adapter, *row.scores))

    compared = comparison(study.cells, [row for row in rows if is_finished(row)], rows)
    if compared and compared.key not in progress.futures:  # else it failed by itself, or nothing that it reads did
        submit_cells(study.cells, progress.futures, study.told)
        future = progress.futures[compared.key]
        future.wait()
        print(f"{compared.title} that are there  {_outcome(compared.title, future, progress)}", flush=True)
    return compared


def _outcome(title: str, future: Future, progress: Progress) -> str:
    """Count how a cell ended, and say it."""
    state = future.state
    if state.is_pending():
        progress.skipped += 1
        return "not started: a cell that it needs failed"
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        progress.failed[title] = str(error)
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
