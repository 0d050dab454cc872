"""What is recorded of all cells of a study, looked up before their tasks do."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import compress
from statistics import fmean
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore, get_result_store
from prefect.runtime import flow_run

from lori.plan.cell import Cell
from tasks import tracking
from tasks.engine.locks import record_name
from tasks.machine import local_runtime
from tasks.results import Handle, Runtime

LOG = logging.getLogger(__name__)
FRESH_SECONDS = 60.0  # from its start that what a look-up found counts
Found = Mapping[str, tuple[str, float]]  # by key: a record's name, and the seconds that it took
_FOUND: dict[UUID, tuple[float, Found]] = {}  # by flow run: when it looked, and what it found


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
def looked_up(
    cells: Sequence[Cell], task: Task[..., Any], *, refreshed: Collection[str], told: Runtime
) -> Iterator[Outlook | None]:
    """Look up what `task` has recorded of `cells`, but for keys in `refreshed`; it is believed for `FRESH_SECONDS`.

    For speed: each task by itself asks MLflow for its cell, and many threads that do so keep each other waiting. And
    to say what is to come; None where that isn't known: records are elsewhere, or MLflow doesn't answer.
    """
    own, now, outlook = UUID(flow_run.id), time.monotonic(), None
    try:
        store = get_result_store().update_for_task(task)
        assert isinstance(store, ResultStore)  # and no coroutine: nothing here is asynchronous
        found = _look_up([cell.key for cell in cells if cell.key not in refreshed], store, told)
        if found is not None:
            _FOUND[own] = now, found
            outlook = _outlook(cells, found)
    except Exception as error:
        LOG.warning("Each cell asks for itself whether its result is still in MLflow: %r", error)
    try:
        yield outlook
    finally:
        _FOUND.pop(own, None)


def prefetched(flow_run_id: UUID | None, key: str) -> str | None:
    """The record's name that a flow run has just found for `key`, with its artifact."""
    when, found = _FOUND.get(flow_run_id, (0.0, {})) if flow_run_id else (0.0, {})
    return found[key][0] if key in found and time.monotonic() - when < FRESH_SECONDS else None


def _look_up(keys: Sequence[str], store: ResultStore, told: Runtime) -> Found | None:
    """What is recorded of each of `keys` whose artifact can be fetched.

    None where records are not files of this machine: their tasks fetch them, at the same time.
    """
    if not isinstance(store.result_storage, LocalFileSystem):
        return None
    # Without locks: who computes a cell again holds its lock. Without a cache: it would outlive what is read here
    store = store.model_copy(update={"lock_manager": None, "cache_result_in_memory": False})
    runtime, usable, generation = local_runtime(told), dict[str, tuple[str, float]](), 0
    left = list(keys)
    while left:
        records = {key: record for key in left if (record := read_record(store, record_name(key, generation)))}
        are_there = tracking.are_available(runtime, [Handle(**record["handle"]) for record in records.values()])
        for key, record in compress(records.items(), are_there):
            usable[key] = record_name(key, generation), record["seconds"]
        generation += 1
        left = [key for key in records if key not in usable]
    return usable


def read_record(store: ResultStore, name: str) -> Mapping[str, Any] | None:
    """What is recorded under `name`; None if there is nothing, or if a crash cut it short: Prefect writes in place."""
    try:
        record = store.read(name).result
        Handle(**record["handle"])
    except (ValueError, TypeError, KeyError, EOFError):
        return None
    return record


def _outlook(cells: Sequence[Cell], found: Found) -> Outlook:
    missing, taken = Counter[str](), defaultdict[str, list[float]](list)
    for cell in cells:
        if cell.key in found:
            taken[cell.step].append(found[cell.key][1])
        else:
            missing[cell.step] += 1
    return Outlook(missing, taken)
