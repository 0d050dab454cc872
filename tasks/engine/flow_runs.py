"""A job as a flow run of the one deployment `lori-job/gpu`: asked for once, waited for, found again after a crash.

The idempotency key of a flow run is `<key>:<attempt>`: of two drivers that want a result one creates the flow run and
both wait for it, and a driver that was killed finds the flow run that it left. An attempt is over when it failed,
crashed, was cancelled, or left no result.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import count
from typing import TypeVar
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from tasks.engine.jobs import Computed, Job, JobCrashed, JobFailed, find_result
from tasks.engine.shutdown import JobCancelled, check_wanted

DEPLOYMENT = "lori-job/gpu"
LOOK_SECONDS, SAY_SECONDS = 15, 60  # a job that waits: how often we look for a worker, and say that there is none
ALIVE_SECONDS = 45  # a worker's heartbeat, 30 s, and its way; Prefect itself waits for three of them
FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 0.5, 10.0  # the poll interval grows with the time waited
AWAY_SECONDS = 900  # that the server may be away
T = TypeVar("T")


def run_as_flow(job: Job, _lock: Sequence[int]) -> Computed:
    """Have a worker compute `job`, and wait. The lock of its key on the worker's machine is the worker's to take.

    Raises:
        JobFailed: if the step raised. JobCrashed: if its process, worker or machine went away.
        JobCancelled: if somebody cancelled its flow run. RuntimeError: if the deployment does not exist.
    """
    with get_client(sync_client=True) as client:
        asked_for = _asked_for(client, job)
        is_anothers = _asker_of(client, asked_for) != UUID(flow_run.id)
        try:
            run = _wait(client, asked_for, job)
        except JobCancelled:
            _cancel_with_us(client, asked_for)
            raise
    state, link = run.state, url_for("flow-run", run.id)
    assert state
    # Its result counts more than its state: a run that was given up may have ended all the same
    if found := None if job.told.refresh and not state.is_completed() else find_result(job):
        return Computed(found, run.total_run_time.total_seconds())
    if state.is_completed():
        raise JobFailed(
            f"{job.title}: its flow run completed, but this driver's MLflow has no result: MLFLOW_TRACKING_URI must"
            f" name the same server here and for the workers. {link}"
        )
    if state.is_cancelled():
        if is_anothers:
            raise JobCrashed(f"{job.title}: it was cancelled with the study that had asked for it. {link}")
        raise JobCancelled(f"{job.title}: its flow run was cancelled. {link}")
    if state.is_crashed():
        raise JobCrashed(f"{state.message} {link}")
    failure = JobFailed(state.message)
    failure.add_note(f"Its traceback is in the log of the flow run {link}")
    raise failure


def _asked_for(client: SyncPrefectClient, job: Job) -> FlowRun:
    """The flow run of the job: one that is on its way, else a new one under the first attempt that is not over."""
    for attempt in count():
        idempotency_key = f"{job.key}:{attempt}"
        run = _patiently(lambda key=idempotency_key: _find(client, key))
        if run is None:
            return _patiently(lambda key=idempotency_key: _create(job, key))
        if not _is_over(run):
            get_run_logger().info("Waiting for the flow run %s, which was there already.", run.name)
            return run
    raise AssertionError


def _find(client: SyncPrefectClient, idempotency_key: str) -> FlowRun | None:
    # Else `run_deployment` would leave a pending task run in this flow run for one that is there already
    same_key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[idempotency_key]))
    runs = client.read_flow_runs(flow_run_filter=same_key, limit=1)
    return runs[0] if runs else None


def _create(job: Job, idempotency_key: str) -> FlowRun:
    try:
        created = run_deployment(
            DEPLOYMENT,
            parameters={**asdict(job), "key": job.key},
            timeout=0,
            idempotency_key=idempotency_key,
            tags=["lori", f"step:{job.step}"],
            job_variables={"gpus": job.num_gpus},  # of its pod; the worker of a box has its own, and ignores it
        )
        assert isinstance(created, FlowRun)  # and no coroutine: nothing here is asynchronous
        return created
    except ObjectNotFound as error:
        raise RuntimeError(
            f"There is no deployment {DEPLOYMENT} on this Prefect server: make it with"
            " `python -m flows.servers.bootstrap`."
        ) from error


def _wait(client: SyncPrefectClient, run: FlowRun, job: Job) -> FlowRun:
    started = time.monotonic()
    next_look = started + LOOK_SECONDS
    while run.state is None or not run.state.is_final():
        waited = time.monotonic() - started
        _sleep(min(MAX_POLL_SECONDS, max(FIRST_POLL_SECONDS, waited / 20)))
        run = _patiently(lambda run_id=run.id: client.read_flow_run(run_id))
        if run.start_time is None and time.monotonic() > next_look:
            nobody = _say_if_nobody_comes(client, run, job)
            next_look = time.monotonic() + (SAY_SECONDS if nobody else LOOK_SECONDS)
    return run


def _cancel_with_us(client: SyncPrefectClient, run: FlowRun) -> None:
    """Cancel the job if our flow run is being cancelled, unless it is another's that still wants it.

    A driver that only stops, because its worker ends, leaves its jobs: it finds them when it is started again.
    """
    ours = client.read_flow_run(UUID(flow_run.id))
    if ours.state and (ours.state.is_cancelling() or ours.state.is_cancelled()):
        asker = _asker_of(client, run)
        if asker in (None, ours.id) or _is_over(client.read_flow_run(asker)):
            client.set_flow_run_state(run.id, Cancelling(message="The study that asked for it was cancelled."))


def _asker_of(client: SyncPrefectClient, run: FlowRun) -> UUID | None:
    """The study that a job's flow run belongs to, and is cancelled with."""
    task_run_id = run.parent_task_run_id
    return task_run_id and _patiently(lambda: client.read_task_run(task_run_id)).flow_run_id


def _is_over(run: FlowRun) -> bool:
    """Whether nothing more comes of it."""
    return run.state is not None and (run.state.is_final() or run.state.is_cancelling())


def _sleep(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        check_wanted()
        time.sleep(min(seconds, 0.2))


def _say_if_nobody_comes(client: SyncPrefectClient, run: FlowRun, job: Job) -> bool:
    pool = run.work_pool_name or ""
    workers = _patiently(lambda: client.read_workers_for_work_pool(pool))
    beats = [worker.last_heartbeat_time for worker in workers if worker.status == WorkerStatus.ONLINE]
    nobody = not any(beat and (datetime.now(UTC) - beat).total_seconds() < ALIVE_SECONDS for beat in beats)
    if nobody:
        get_run_logger().warning(
            "%s waits, and no worker is online for the work pool %s: start one with"
            " `prefect worker start --pool %s --limit <GPUs of its machine>`.",
            job.title,
            pool,
            pool,
        )
    return nobody


def _patiently(call: Callable[[], T]) -> T:
    """What `call` returns; while the server is away, try again.

    Raises:
        RuntimeError: if it stays away for AWAY_SECONDS.
    """
    deadline = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return call()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
                raise
            if time.monotonic() > deadline:
                raise RuntimeError(f"Prefect's server does not answer since {AWAY_SECONDS} s: {error!r}") from error
            get_run_logger().warning("Prefect's server does not answer (%r): trying again.", error)
            time.sleep(MAX_POLL_SECONDS)
