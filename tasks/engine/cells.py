"""A cell is one result that a flow run asks for: a cached Prefect task around one job.

The cache key is the job's key, so that Prefect, MLflow and the local cache name a result alike. A cached handle is
believed only if its artifact is there, or was within the last minute, when its flow run looked for all of them. Two
runs that want the same cell at the same time compute it once.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from itertools import compress
from statistics import fmean
from typing import Any, cast
from uuid import UUID

from prefect import Task, task
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.filesystems import LocalFileSystem
from prefect.futures import PrefectFuture
from prefect.locking.protocol import LockManager
from prefect.results import ResultStore, get_result_store
from prefect.runtime import flow_run
from prefect.transactions import IsolationLevel
from prefect.utilities.annotations import opaque, quote

from lori.config import (
    CompareConfig,
    DataConfig,
    EvalConfig,
    InterferenceConfig,
    MaskConfig,
    MergeConfig,
    PublishedConfig,
    RandomMaskConfig,
    TrainConfig,
)
from tasks import tracking
from tasks.engine.executors import execute
from tasks.engine.jobs import Job, JobCancelled, JobCrashed, job_key
from tasks.engine.locks import FlockLocks
from tasks.engine.steps import STEPS
from tasks.machine import local_runtime
from tasks.results import Handle, step_key

LOG = logging.getLogger(__name__)
Future = PrefectFuture[dict[str, Any]]
RECALL_SECONDS = 60.0  # from its start that what `recalled` found counts
RETRY_SECONDS = [1.0, 10.0, 60.0, 300.0]  # after each crash


def submit_task(*, step: str, name: str, config: Any, inputs: Mapping[str, Any], place: Mapping[str, Any]) -> Future:
    """The cell as a task of the running flow."""
    table = REFRESHING if place.get("refresh") else TASKS
    # Prefect would search every field of these and of the records for futures: a third of what a cached task costs
    sources = {role: [*map(opaque, v)] if isinstance(v, list) else opaque(v) for role, v in inputs.items()}
    arguments: dict[str, Any] = {"config": quote(config), "inputs": sources, "place": quote(place)}
    return table[step].submit(step=step, name=name, **arguments)


@dataclass
class Cells:
    """What one flow run asked for. Asked for twice, a cell is the same future.

    `place` is what `local_runtime` is told of where to compute, `submit` is how a cell is asked for. `titles` and
    `names` are for people: `train lora math  seed 0` is the title of `lora math  seed 0`. Cells whose title starts
    with one of `refresh`, and those that read them, are computed although they are there.
    """

    place: Mapping[str, Any] = field(default_factory=dict)
    refresh: Sequence[str] = ()
    submit: Callable[..., Future] = submit_task
    futures: dict[tuple[Any, ...], Future] = field(default_factory=dict)
    titles: dict[Future, str] = field(default_factory=dict)
    names: dict[Future, str] = field(default_factory=dict)
    refreshed: set[Future] = field(default_factory=set)


def prepare_dataset(cells: Cells, config: DataConfig, *, is_part: bool = False) -> Future:
    """The rows of a domain; only some of them if `is_part`."""
    rows = f"  {config.num_rows} rows" if is_part else ""
    return _ask(cells, "dataset", f"{config.domain} {config.split}{rows}", config)


def train_adapter(
    cells: Cells,
    config: TrainConfig,
    *,
    dataset: Future,
    mask: Future | None = None,
    start_from: Future | None = None,
    a_from: Future | None = None,
) -> Future:
    """One adapter; within `mask` and with the A of `a_from` if the method wants them.

    In continual learning it goes on from the adapter `start_from`.
    """
    first = f"{cells.names[start_from]} → " if start_from else ""
    name = f"{first}{config.method} {config.domain}  seed {config.seed}{_variant(config)}"
    return _ask(cells, "train", name, config, dataset=dataset, mask=mask, start_from=start_from, a_from=a_from)


def _variant(config: TrainConfig | MergeConfig) -> str:
    return f"  {config.variant}" if config.variant else ""


def import_adapter(cells: Cells, config: PublishedConfig) -> Future:
    """An adapter that was trained elsewhere."""
    return _ask(cells, "import", config.name, config)


def extract_mask(cells: Cells, config: MaskConfig, *, adapter: Future, excluded: Future | None = None) -> Future:
    """The mask that an adapter's B gives, of entries that the mask `excluded` lacks."""
    apart = f"  apart from {cells.names[excluded]}" if excluded else ""
    name = f"{cells.names[adapter]}  sparsity {config.sparsity:g} {config.scope}{apart}"
    return _ask(cells, "mask", name, config, adapter=adapter, excluded=excluded)


def draw_mask(cells: Cells, config: RandomMaskConfig, *, adapter: Future) -> Future:
    """A random mask for the shapes of an adapter."""
    name = f"{cells.names[adapter]}  sparsity {config.sparsity:g} {config.scope}"
    return _ask(cells, "random-mask", name, config, adapter=adapter)


def merge_adapters(cells: Cells, config: MergeConfig, *, method: str, adapters: list[Future]) -> Future:
    """One adapter of several that `method` trained."""
    name = f"{method} {config.method}  seed {config.seed}{_variant(config)}"
    return _ask(cells, "merge", name, config, adapters=adapters)


def evaluate(cells: Cells, config: EvalConfig, *, adapter: Future, dataset: Future) -> Future:
    """The scores of an adapter on a domain."""
    rows = cells.names[dataset].removesuffix(" test")  # of its splits the one that is meant unless another is named
    name = f"{cells.names[adapter]}  on {rows}"
    return _ask(cells, "evaluate", name, config, adapter=adapter, dataset=dataset)


def measure_interference(
    cells: Cells, config: InterferenceConfig, *, adapters: list[Future], masks: list[Future] | None
) -> Future:
    """How much one method's adapters of different domains interfere."""
    name = f"{config.method}  seed {config.seed}"
    return _ask(cells, "interference", name, config, adapters=adapters, masks=masks)


def compare_rows(cells: Cells, config: CompareConfig, *, scores: list[Future], datasets: list[Future]) -> Future:
    """Intervals of the rows of the tables, and of their differences."""
    return _ask(cells, "compare", "all rows", config, scores=scores, datasets=datasets)


def _ask(cells: Cells, step: str, name: str, config: Any, **inputs: Future | list[Future] | None) -> Future:
    given = {role: value for role, value in inputs.items() if value is not None}
    asked = (step, config, *((role, tuple(v) if isinstance(v, list) else v) for role, v in given.items()))
    if asked not in cells.futures:
        title = f"{step} {name}"
        sources = [item for value in given.values() for item in (value if isinstance(value, list) else [value])]
        refresh = is_refreshed(title, cells.refresh) or not cells.refreshed.isdisjoint(sources)
        place = {**cells.place, "refresh": refresh}
        future = cells.submit(step=step, name=name, config=config, inputs=given, place=place)
        cells.futures[asked], cells.titles[future], cells.names[future] = future, title, name
        cells.refreshed.update([future] if refresh else [])
    return cells.futures[asked]


def is_refreshed(title: str, refresh: Sequence[str]) -> bool:
    """Whether `all`, a step or the first words of a title ask for the cell to be computed again."""
    words = title.split()
    return any(asked == "all" or words[: len(asked.split())] == asked.split() for asked in refresh)


def to_handle(record: Mapping[str, Any]) -> Handle:
    """The handle in a cell's result, which is plain JSON: `{"handle": …, "seconds": …}`."""
    return Handle(**record["handle"])


def _job(step: str, name: str, config: Any, inputs: Mapping[str, Any], place: Mapping[str, Any]) -> Job:
    def given(record: Mapping[str, Any]) -> Handle:
        return replace(to_handle(record), metrics={})  # no step reads them, and Prefect limits a flow run's parameters

    handles = {role: [*map(given, v)] if isinstance(v, list) else given(v) for role, v in inputs.items()}
    return Job(step, name, config, handles, place)


Found = Mapping[str, tuple[str, float]]  # by key: a record's name, and the seconds that it took
_RECALLED: dict[UUID, tuple[float, Found]] = {}  # by flow run: when it looked, and what it found


@dataclass(frozen=True)
class Outlook:
    """What a flow run is in for, by step: how many cells have no record, and the seconds that each other one took.

    0 seconds is a cell that MLflow had; with jobs on workers the seconds include waiting for a GPU.
    """

    missing: Mapping[str, int]
    seconds: Mapping[str, Sequence[float]]

    def __str__(self) -> str:
        num_cached, num_missing = sum(map(len, self.seconds.values())), sum(self.missing.values())
        parts = [f"{num_cached + num_missing} cells, {num_cached} of them cached. To compute, unless MLflow has it: "]
        parts.append(", ".join(f"{num} {step}" for step, num in self.missing.items()))
        computed = {step: [each for each in self.seconds.get(step, ()) if each > 0] for step in self.missing}
        if means := {step: fmean(seconds) for step, seconds in computed.items() if seconds}:
            work = timedelta(seconds=round(sum(self.missing[step] * mean for step, mean in means.items())))
            parts.append(f"; {work} of work at the pace of the cached {', '.join(means)}")
        return f"{''.join(parts)}."


@contextmanager
def recalled(ask: Callable[[Callable[..., Future]], Cells]) -> Iterator[Outlook | None]:
    """Look up what is recorded of all cells that `ask` asks the given function for, before tasks do.

    For speed: each task by itself asks MLflow for its cell, and many threads that do so keep each other waiting. And
    to say what is to come; None where that isn't known: records lie elsewhere, or MLflow doesn't answer.
    """
    own, now, outlook = UUID(flow_run.id), time.monotonic(), None
    try:
        asked = ask(_key_of)
        found = _look_up(asked)
        if found is not None:
            _RECALLED[own] = now, found
            outlook = _outlook(asked, found)
    except Exception as error:
        LOG.warning("Each cell asks for itself whether its result is still in MLflow: %r", error)
    try:
        yield outlook
    finally:
        _RECALLED.pop(own, None)


def _key_of(*, step: str, config: Any, inputs: Mapping[str, Any], **_others: Any) -> Future:
    """A cell's key in the place of its future: it follows from the keys of what the cell reads."""
    return cast(Future, step_key(step, STEPS[step].version, config, inputs))


def _outlook(cells: Cells, found: Found) -> Outlook:
    """Of cells that `_key_of` names."""
    missing, taken = Counter[str](), defaultdict[str, list[float]](list)
    for key, title in cast(dict[str, str], cells.titles).items():
        step = title.partition(" ")[0]
        if key in found:
            taken[step].append(found[key][1])
        else:
            missing[step] += 1
    return Outlook(missing, taken)


def _look_up(cells: Cells) -> Found | None:
    """What is recorded of each cell not to be refreshed whose artifact can be fetched.

    None where records are not files of this machine: their tasks fetch them, at the same time.
    """
    store = get_result_store().update_for_task(compute)
    assert isinstance(store, ResultStore)  # and no coroutine: nothing here is asynchronous
    if not isinstance(store.result_storage, LocalFileSystem):
        return None
    # Without locks: who computes a cell again holds its lock. Without a cache: it would outlive what is read here
    store = store.model_copy(update={"lock_manager": None, "cache_result_in_memory": False})
    runtime, usable, generation = local_runtime(**cells.place), dict[str, tuple[str, float]](), 0
    left = {key: key for key in cast(set[str], {*cells.titles} - cells.refreshed)}
    while left:
        records = {key: record for key, name in left.items() if (record := _recorded(store, name))}
        are_usable = tracking.are_available(runtime, [to_handle(record) for record in records.values()])
        there = compress(records.items(), are_usable)
        usable |= {key: (left[key], record["seconds"]) for key, record in there}
        generation += 1
        left = {key: _generation(key, generation) for key in records if key not in usable}
    return usable


def _generation(key: str, number: int) -> str:
    return f"{key}-g{number}" if number else key


@dataclass
class CheckedHandle(CachePolicy):
    """The job's key; if the artifact of its cached handle is gone, the first free `<key>-g<n>`.

    Nothing is deleted, so that it works on any result storage, and what is made again is not taken for `Cached`. What
    `recalled` has just found there is not looked for again.
    """

    isolation_level: Any = IsolationLevel.SERIALIZABLE
    lock_manager: LockManager | None = field(default_factory=FlockLocks)

    def compute_key(  # the signature is Prefect's
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: object,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> str:
        """Called by Prefect before it looks into the cache."""
        job = _job(**inputs)
        first = name = job_key(job)
        own = task_ctx.task_run.flow_run_id
        when, known = _RECALLED.get(own, (0.0, {})) if own else (0.0, {})
        if first in known and time.monotonic() - when < RECALL_SECONDS:
            return known[first][0]
        generation = 0
        try:
            while not _is_usable(task_ctx.result_store, name, job):
                generation += 1
                name = _generation(first, generation)
        except Exception as error:  # Prefect would go on without a key: uncached, and beside whoever computes the same
            LOG.warning("%s: whether its result is still in MLflow can't be asked: %r", job.title, error)
        return name


def _is_usable(store: ResultStore, key: str, job: Job) -> bool:
    """Whether there is no record under `key`, or one whose artifact can be fetched."""
    if not store.exists(key):
        return True
    record = _recorded(store, key)
    return record is not None and tracking.is_available(job.runtime, to_handle(record))


def _recorded(store: ResultStore, key: str) -> Mapping[str, Any] | None:
    """What is under `key`; None if a crash cut it short, as Prefect writes in place."""
    try:
        record = store.read(key).result
        to_handle(record)
    except (ValueError, TypeError, KeyError, EOFError):
        return None
    return record


def _is_crash(_task: Task[..., Any], _run: TaskRun, state: State) -> bool:
    return isinstance(state.data, JobCrashed)


@task(
    task_run_name="{step} {name}",
    cache_policy=CheckedHandle(),
    persist_result=True,
    result_serializer="json",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_is_crash,
)
def compute(step: str, name: str, config: Any, inputs: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    """Have one cell computed; its record."""
    job = _job(step, name, config, inputs, place)
    try:
        done = execute(job)
    except (JobCrashed, JobCancelled):
        tracking.close_run_of(job.runtime, job_key(job))
        raise
    return {"handle": asdict(done.handle), "seconds": done.seconds}


TASKS = {step: compute.with_options(name=step) for step in STEPS}
REFRESHING = {step: cached.with_options(refresh_cache=True) for step, cached in TASKS.items()}
