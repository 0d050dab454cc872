"""Warm worker processes: one a slot, libraries imported once, one torch thread each, replaced when they die.

A worker is `python -m tasks.engine.pool FD` at the other end of a pipe, a fresh interpreter rather than a
`multiprocessing` child: a spawned child would import the driver's main module, and all of Prefect, once more. It
holds the lock of the key that it computes, as its driver does, which may be killed first.
"""

import atexit
import heapq
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pkgutil import resolve_name

from tasks.engine.gpus import num_workers
from tasks.engine.job_process import cause_of_death, python_path
from tasks.engine.jobs import (
    Computed,
    Job,
    JobCrashed,
    answer,
    end_with_parent,
    job_from_json,
    job_to_json,
    read_answer,
)
from tasks.engine.shutdown import JobCancelled, check_wanted
from tasks.engine.steps import STEPS
from tasks.machine import COMPUTE_SETTINGS


@dataclass(frozen=True)
class Worker:
    """A process and our end of its pipe."""

    process: subprocess.Popen[bytes]
    connection: Connection


@dataclass
class Pool:
    """The slots. A slot is a free worker, or None where a process has yet to start; `queue` holds who waits."""

    slots: list[Worker | None]
    busy: list[Worker] = field(default_factory=list)
    queue: list[tuple[int, int]] = field(default_factory=list)
    tickets: itertools.count = field(default_factory=itertools.count)
    changed: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False


def run_in_pool(job: Job, lock: Sequence[int]) -> Computed:
    """Have one of this process's warm workers compute `job`; `lock` are open files that it keeps until then.

    Raises:
        JobFailed, JobCrashed, JobCancelled: as `run`.
    """
    shared = shared_pool()
    check_wanted()  # after it: it may be a new one, made for nobody since an interruption closed the last
    return run(shared, job, lock)


def run(pool: Pool, job: Job, lock: Sequence[int] = ()) -> Computed:
    """Wait for a free worker, lower `turn` first, and have it compute `job`.

    Raises:
        JobFailed: if the step raised. JobCrashed: if the worker died. JobCancelled: if the pool was closed.
    """
    worker = _acquire(pool, job)
    alive: Worker | None = None
    try:
        _send(worker, job, lock)
        answer = worker.connection.recv_bytes()
        alive = worker
    except (EOFError, OSError) as error:
        if pool.closed:
            raise JobCancelled(f"{job.title}: interrupted.") from error
        raise JobCrashed(f"{job.title}: {cause_of_death(worker.process.wait())}") from error
    finally:
        _release(pool, worker, slot=alive)
    return read_answer(answer)


def _send(worker: Worker, job: Job, lock: Sequence[int]) -> None:
    """What `_receive` takes."""
    worker.connection.send_bytes(json.dumps([len(lock), job_to_json(job)]).encode())
    for descriptor in lock:
        send_handle(worker.connection, descriptor, worker.process.pid)


def _receive(connection: Connection) -> tuple[Job, list[int]]:
    num_descriptors, text = json.loads(connection.recv_bytes())
    return job_from_json(text), [recv_handle(connection) for _ in range(num_descriptors)]


def _acquire(pool: Pool, job: Job) -> Worker:
    ticket = (STEPS[job.step].turn, next(pool.tickets))
    with pool.changed:
        heapq.heappush(pool.queue, ticket)
        pool.changed.wait_for(lambda: pool.closed or (bool(pool.slots) and pool.queue[0] == ticket))
        if pool.closed:
            raise JobCancelled(f"{job.title}: interrupted before it started.")
        heapq.heappop(pool.queue)
        pool.slots.sort(key=lambda slot: slot is None)  # a warm worker before a cold one
        worker = pool.slots[0] or _start_worker()  # which may raise: the slot is taken after it
        pool.slots.pop(0)
        pool.busy.append(worker)
        pool.changed.notify_all()
        return worker


def _release(pool: Pool, worker: Worker, *, slot: Worker | None) -> None:
    with pool.changed:
        pool.busy.remove(worker)
        pool.slots.append(slot)
        pool.changed.notify_all()


def _start_worker() -> Worker:
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.engine.pool", str(theirs.fileno()), str(os.getpid())],
        env={**os.environ, **COMPUTE_SETTINGS, "PYTHONPATH": python_path()},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()  # else its death would never read as the end of the pipe
    return Worker(process, ours)


def close(pool: Pool) -> None:
    """End every worker now; who waits or computes gets `JobCancelled`."""
    with pool.changed:
        pool.closed = True
        workers = [*pool.busy, *filter(None, pool.slots)]
        pool.changed.notify_all()
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()


_SHARED: list[Pool] = []
_STARTING = threading.Lock()


def shared_pool() -> Pool:
    """The one pool of this process, with `num_workers` slots."""
    with _STARTING:
        if not _SHARED or _SHARED[0].closed:
            _SHARED[:] = [Pool(slots=[None] * num_workers())]
            atexit.register(close, _SHARED[0])
        return _SHARED[0]


def close_shared_pool() -> None:
    """Close this process's pool, if it has one."""
    for pool in _SHARED:
        close(pool)


def serve(connection: Connection) -> None:
    """A worker's life: import what the steps need, then answer jobs until the driver hangs up."""
    for step in STEPS.values():
        resolve_name(step.body)
    while True:
        try:
            job, descriptors = _receive(connection)
        except EOFError:
            return
        text = answer(job)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send_bytes(text)


def main() -> None:
    """Serve at the file descriptor in argv, for the driver whose pid follows it."""
    descriptor, driver = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends its workers
    threading.Thread(target=end_with_parent, args=(driver,), daemon=True).start()
    serve(Connection(descriptor))


if __name__ == "__main__":
    main()
