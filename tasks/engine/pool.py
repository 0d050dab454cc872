"""Warm worker processes: one a slot, libraries imported once, one torch thread each, replaced when they die.

A worker is `python -m tasks.engine.pool FD` at the other end of a pipe, a fresh interpreter rather than a
`multiprocessing` child: a spawned child would import the driver's main module, and all of Prefect, once more.
"""

import atexit
import heapq
import itertools
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pkgutil import resolve_name

from tasks.engine.gpus import num_workers
from tasks.engine.jobs import (
    Computed,
    Job,
    JobCancelled,
    JobCrashed,
    answer,
    end_with_parent,
    job_from_json,
    job_to_json,
    read_answer,
)
from tasks.engine.steps import STEPS
from tasks.machine import COMPUTE_SETTINGS, ROOT


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


def run(pool: Pool, job: Job) -> Computed:
    """Wait for a free worker, lower `turn` first, and have it compute `job`.

    Raises:
        JobFailed: if the step raised. JobCrashed: if the worker died. JobCancelled: if the pool was closed.
    """
    worker = _acquire(pool, job)
    alive: Worker | None = None
    try:
        worker.connection.send_bytes(job_to_json(job).encode())
        answer = worker.connection.recv_bytes()
        alive = worker
    except (EOFError, OSError) as error:
        if pool.closed:
            raise JobCancelled(f"{job.step} {job.name}: interrupted.") from error
        raise JobCrashed(f"{job.step} {job.name}: {_cause_of_death(worker)}") from error
    finally:
        _release(pool, worker, slot=alive)
    return read_answer(answer)


def _acquire(pool: Pool, job: Job) -> Worker:
    ticket = (STEPS[job.step].turn, next(pool.tickets))
    with pool.changed:
        heapq.heappush(pool.queue, ticket)
        pool.changed.wait_for(lambda: pool.closed or (bool(pool.slots) and pool.queue[0] == ticket))
        if pool.closed:
            raise JobCancelled(f"{job.step} {job.name}: interrupted before it started.")
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
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.engine.pool", str(theirs.fileno()), str(os.getpid())],
        env={**os.environ, **COMPUTE_SETTINGS, "PYTHONPATH": python_path},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()  # else its death would never read as the end of the pipe
    return Worker(process, ours)


def _cause_of_death(worker: Worker) -> str:
    worker.connection.close()
    code = worker.process.wait()
    if code >= 0:
        return f"the worker process ended with exit code {code} (its error output says why)."
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"the worker process was killed by {signal.Signals(-code).name}{hint}."


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
            job = job_from_json(connection.recv_bytes().decode())
        except EOFError:
            return
        connection.send_bytes(answer(job))


def main() -> None:
    """Serve at the file descriptor in argv, for the driver whose pid follows it."""
    descriptor, driver = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends its workers
    threading.Thread(target=end_with_parent, args=(driver,), daemon=True).start()
    serve(Connection(descriptor))


if __name__ == "__main__":
    main()
