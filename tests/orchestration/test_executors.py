"""Where a job is computed: warm workers that die, fail, wait their turn and end with their driver."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from flows.job import job as worker_job
from helpers.job_configs import DATA, EVALUATE, TRAIN
from helpers.waiting import PATIENCE, wait_until
from lori.config import MaskConfig
from tasks.engine import executors, locks, pool
from tasks.engine.executors import check_executor
from tasks.engine.jobs import Computed, Job, JobCrashed, JobFailed, run_inline
from tasks.engine.locks import LOCKS
from tasks.engine.shutdown import JobCancelled
from tasks.machine import ROOT
from tasks.results import Runtime

CONFIGS = {"dataset": DATA, "mask": MaskConfig(0.9, "model"), "train": TRAIN, "evaluate": EVALUATE}


def failing_job(step: str = "dataset", name: str = "cooking") -> Job:
    """No MLflow answers there, so that it fails as soon as a worker has it."""
    return Job(step, name, CONFIGS[step], {}, Runtime("no-such-scheme://"))


@pytest.fixture(scope="module")
def one_slot() -> Iterator[pool.Pool]:
    workers = pool.Pool(slots=[None])
    yield workers
    pool.close(workers)


def test_an_executor_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORI_EXECUTOR", "cluster")
    with pytest.raises(ValueError, match="Known: inline, pool, subprocess, deployment"):
        check_executor()


@pytest.mark.parametrize("asked", ["0", "two", "-1"])
def test_a_number_of_workers_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("LORI_WORKERS", asked)
    with pytest.raises(ValueError, match=f"LORI_WORKERS='{asked}' is not a number of worker processes"):
        check_executor()


@pytest.mark.parametrize("run", [run_inline, pool.run_in_pool])
def test_what_a_step_raises_comes_back_with_its_message_and_traceback(
    run: Callable[[Job, Sequence[int]], Computed], one_slot: pool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_SHARED", [one_slot])
    with pytest.raises(JobFailed, match="no-such-scheme") as caught:
        run(failing_job(), [])
    assert "in run_job" in caught.value.__notes__[0]


def test_a_worker_is_warm_for_its_next_job(one_slot: pool.Pool) -> None:
    pids = []
    for _ in range(2):
        with pytest.raises(JobFailed):
            pool.run(one_slot, failing_job())
        (worker,) = one_slot.slots
        assert worker
        pids.append(worker.process.pid)
    assert pids[0] == pids[1]


def test_of_two_waiting_jobs_the_one_that_unlocks_more_is_first(one_slot: pool.Pool) -> None:
    order: list[str] = []

    def run(step: str) -> None:
        with pytest.raises(JobFailed):
            pool.run(one_slot, failing_job(step))
        order.append(step)

    held = pool._acquire(one_slot, failing_job())
    with ThreadPoolExecutor() as threads:
        for num_waiting, step in enumerate(["evaluate", "train", "mask"], start=1):
            threads.submit(run, step)
            wait_until(lambda n=num_waiting: len(one_slot.queue) == n)
        pool._release(one_slot, held, slot=held)
    assert order == ["mask", "train", "evaluate"]


def test_a_killed_worker_crashes_its_job_and_the_next_job_gets_a_new_one() -> None:
    workers = pool.Pool(slots=[None])
    with ThreadPoolExecutor() as threads:
        running = threads.submit(pool.run, workers, failing_job())
        wait_until(lambda: bool(workers.busy))
        workers.busy[0].process.kill()  # it is still importing
        with pytest.raises(JobCrashed, match="dataset cooking: its process was killed by SIGKILL"):
            running.result()
    assert workers.slots == [None]
    with pytest.raises(JobFailed):
        pool.run(workers, failing_job())
    pool.close(workers)


def test_closing_the_pool_ends_who_computes_and_who_waits() -> None:
    workers = pool.Pool(slots=[None])
    with ThreadPoolExecutor() as threads:
        running = [threads.submit(pool.run, workers, failing_job()) for _ in range(2)]
        wait_until(lambda: bool(workers.busy and workers.queue))
        process = workers.busy[0].process
        pool.close(workers)
        for job in running:
            with pytest.raises(JobCancelled, match="interrupted"):
                job.result()
    assert process.poll() is not None


def test_a_worker_on_the_drivers_machine_does_not_wait_for_the_lock_that_the_driver_holds(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits() -> None:
        raise AssertionError("the worker waits for its driver, which waits for the worker")

    monkeypatch.setattr(locks, "check_wanted", waits)  # called by whoever finds a lock taken
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://")
    asked = failing_job()
    with LOCKS.held(asked.key, "the driver"):
        state = worker_job(**asdict(asked), key=asked.key, return_state=True)
    assert state.is_failed()
    assert "no-such-scheme" in state.message  # what the step raised, so it was computed


def test_after_an_interruption_no_new_pool_is_made_for_those_who_still_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = pool.Pool(slots=[None])
    monkeypatch.setattr(pool, "_SHARED", [workers])
    monkeypatch.setenv("LORI_EXECUTOR", "pool")
    with pytest.raises(KeyboardInterrupt), executors.interruptible():
        raise KeyboardInterrupt
    with pytest.raises(JobCancelled, match="interrupted"):
        pool.run_in_pool(failing_job(), [])
    assert not any(each.busy or any(each.slots) for each in pool._SHARED)


def test_workers_end_when_their_driver_is_killed() -> None:
    script = (
        "from tasks.engine import pool; import signal; worker = pool._start_worker();"
        "print(worker.process.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        worker = psutil.Process(int(driver.stdout.readline()))
        driver.kill()
    worker.wait(timeout=PATIENCE)
