"""The cells that a study asks for, and the cached Prefect task that has one of them computed.

The cache key is the cell's key, so that Prefect, MLflow and the local cache name a result alike. A cached handle is
believed only if its artifact is there, or was within the last minute, when its flow run looked for all of them. Two
runs that want the same cell at the same time compute it once.
"""

import logging
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prefect import Task, task
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.locking.protocol import LockManager
from prefect.results import ResultStore
from prefect.transactions import IsolationLevel
from prefect.utilities.annotations import opaque, quote

from lori.plan.cell import Cell
from tasks import tracking
from tasks.engine.executors import EXECUTORS, executor_name
from tasks.engine.jobs import Computed, Job, JobCrashed, find_result
from tasks.engine.locks import LOCKS, record_name
from tasks.engine.prefetch import prefetched, read_record
from tasks.engine.shutdown import JobCancelled
from tasks.engine.steps import STEPS
from tasks.results import Handle, Runtime, step_key

LOG = logging.getLogger(__name__)
Future = PrefectFuture[dict[str, Any]]
RETRY_SECONDS = [1.0, 10.0, 60.0, 300.0]  # after each crash


@dataclass
class Cells:
    """What one study asks for, by key, in an order in which each cell comes after those that it reads.

    Cells whose title starts with one of `refresh`, and those that read them, are computed although they are there.
    """

    refresh: Sequence[str] = ()
    by_key: dict[str, Cell] = field(default_factory=dict)

    def request(self, step: str, config: Any, **inputs: Cell | list[Cell] | None) -> Cell:
        """The cell of that step on that config and those inputs; asked for twice, it is the same one."""
        given = {role: value for role, value in inputs.items() if value is not None}
        keys = {
            role: [v.key for v in value] if isinstance(value, list) else value.key for role, value in given.items()
        }
        key = step_key(step, STEPS[step].version, config, keys)
        if key not in self.by_key:
            self.by_key[key] = Cell(step, STEPS[step].name(config, given), config, given, key)
        return self.by_key[key]

    def of(self, step: str) -> list[Cell]:
        """Those of one step."""
        return [cell for cell in self.by_key.values() if cell.step == step]

    def refreshed(self) -> set[str]:
        """The keys of those that are computed although they are there."""
        found: set[str] = set()
        for cell in self.by_key.values():
            if is_meant(cell, self.refresh) or not found.isdisjoint(source.key for source in cell.sources):
                found.add(cell.key)
        return found


def is_meant(cell: Cell, refresh: Sequence[str]) -> bool:
    """Whether `all`, a step or the first words of its title ask for the cell to be computed again."""
    words = cell.title.split()
    return any(asked == "all" or words[: len(asked.split())] == asked.split() for asked in refresh)


def submit_cells(cells: Cells, futures: dict[str, Future], told: Runtime) -> None:
    """Submit each cell that has no future yet as a task of the running flow; `futures` are by key."""
    refreshed = cells.refreshed()
    for cell in cells.by_key.values():
        if cell.key in futures:
            continue
        sources = {role: _ends_of(given, futures) for role, given in cell.inputs.items()}
        is_refreshed = cell.key in refreshed
        place = quote(replace(told, refresh=is_refreshed))
        arguments: dict[str, Any] = {"config": quote(cell.config), "inputs": sources, "told": place}
        table = REFRESHING if is_refreshed else TASKS
        futures[cell.key] = table[cell.step].submit(step=cell.step, name=cell.name, **arguments)


def _ends_of(given: Cell | list[Cell], futures: Mapping[str, Future]) -> Any:
    """Prefect would search every field of a result for more futures: a third of what a cached task costs."""
    return [opaque(futures[cell.key]) for cell in given] if isinstance(given, list) else opaque(futures[given.key])


def to_handle(record: Mapping[str, Any]) -> Handle:
    """The handle in a cell's result, which is plain JSON: `{"handle": …, "seconds": …}`."""
    return Handle(**record["handle"])


def _job(step: str, name: str, config: Any, inputs: Mapping[str, Any], told: Runtime) -> Job:
    def given(record: Mapping[str, Any]) -> Handle:
        return replace(to_handle(record), metrics={})  # no step reads them, and Prefect limits a flow run's parameters

    handles = {role: [*map(given, v)] if isinstance(v, list) else given(v) for role, v in inputs.items()}
    return Job(step, name, config, handles, told)


@dataclass
class CheckedHandle(CachePolicy):
    """The job's key; if the artifact of its cached handle is gone, the first free `<key>-g<n>`.

    Nothing is deleted, so that it works on any result storage, and what is made again is not taken for `Cached`.
    """

    isolation_level: Any = IsolationLevel.SERIALIZABLE
    lock_manager: LockManager | None = field(default_factory=lambda: LOCKS)

    def compute_key(  # the signature is Prefect's
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: object,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> str:
        """Called by Prefect before it looks into the cache."""
        job = _job(**inputs)
        key, generation = job.key, 0
        if found := prefetched(task_ctx.task_run.flow_run_id, key):
            return found
        try:
            while not _is_usable(task_ctx.result_store, record_name(key, generation), job):
                generation += 1
        except Exception as error:  # Prefect would go on without a key: uncached, and beside whoever computes the same
            LOG.warning("%s: whether its result is still in MLflow can't be asked: %r", job.title, error)
        return record_name(key, generation)


def _is_usable(store: ResultStore, name: str, job: Job) -> bool:
    """Whether there is no record of that name, or one whose artifact can be fetched."""
    if not store.exists(name):
        return True
    record = read_record(store, name)
    return record is not None and tracking.is_available(job.runtime, to_handle(record))


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
def compute(step: str, name: str, config: Any, inputs: dict[str, Any], told: Runtime) -> dict[str, Any]:
    """Have one cell computed, unless MLflow has it: its record. Prefect holds the key's lock meanwhile."""
    job = _job(step, name, config, inputs, told)
    run = pkgutil.resolve_name(EXECUTORS[executor_name()])
    try:
        found = None if told.refresh else find_result(job)
        done = Computed(found, 0.0) if found else run(job, LOCKS.descriptors(job.key))
    except (JobCrashed, JobCancelled):
        tracking.close_run_of(job.runtime, job.key)
        raise
    return {"handle": asdict(done.handle), "seconds": done.seconds}


TASKS = {step: compute.with_options(name=step) for step in STEPS}
REFRESHING = {step: cached.with_options(refresh_cache=True) for step, cached in TASKS.items()}
