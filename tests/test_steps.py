"""Steps, their keys and the locks that keep two runs from computing one cell twice."""

import inspect
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest

from lori.config import DataConfig, Handle, MaskConfig, Runtime
from tasks.cells import TASKS
from tasks.locks import FlockLocks
from tasks.steps import STEPS, Job, job_key, local_runtime

ROOT = Path(__file__).parents[1]


def adapter(key: str, **changed: str) -> Handle:
    return replace(Handle("adapter", key, "lori-d-nlu", "run", "models:/m-1", "00"), **changed)


def mask_job(source: Handle, *, sparsity: float = 0.9, cache_dir: str = "here") -> Job:
    runtime = Runtime("sqlite:///x.db", cache_dir=cache_dir, experiment="lori")
    return Job("mask", "a name", MaskConfig(sparsity, "model"), {"adapter": source}, runtime)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_a_body_that_takes_a_config_a_key_and_a_runtime(step: str) -> None:
    parameters = inspect.signature(resolve_name(STEPS[step].body)).parameters
    assert next(iter(parameters)) == "config"
    assert {"key", "runtime"} <= set(parameters)
    assert TASKS[step].name == step


def test_a_key_says_what_is_computed_and_not_where() -> None:
    key = job_key(mask_job(adapter("train-1")))
    assert key == job_key(mask_job(adapter("train-1"), cache_dir="elsewhere"))
    assert key == job_key(mask_job(adapter("train-1", run_id="made again", uri="models:/m-2")))
    assert key != job_key(mask_job(adapter("train-2")))
    assert key != job_key(mask_job(adapter("train-1"), sparsity=0.8))


def test_keys_stay_what_they_are_unless_a_version_is_raised() -> None:
    config = DataConfig(suite="miniature", domain="nlu", split="test", num_rows=3)
    job = Job("dataset", "nlu", config, {}, local_runtime())
    assert job_key(job) == "dataset-v2-a42b71b15cb2bdd6ee7ca68ef2d2ba9b"


def test_only_one_of_many_holds_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORI_DIR", str(tmp_path))
    locks, inside, most = FlockLocks(), [], []

    def work(holder: str) -> None:
        assert locks.acquire_lock("key", holder)
        inside.append(holder)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(holder)
        locks.release_lock("key", holder)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, "abcd"))
    assert most == [1, 1, 1, 1]
    assert not locks.is_locked("key")


def test_nobody_waits_for_a_dead_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORI_DIR", str(tmp_path))
    script = (
        "from tasks.locks import FlockLocks; import time;"
        "FlockLocks().acquire_lock('key', 'other'); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout
    other.stdout.readline()
    assert not FlockLocks().acquire_lock("key", "me", acquire_timeout=0)
    threading.Timer(0.2, other.send_signal, [signal.SIGKILL]).start()
    assert FlockLocks().acquire_lock("key", "me", acquire_timeout=10)
    other.wait()
