"""Steps, their keys and the locks that keep two runs from computing one cell twice."""

import inspect
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from waiting import PATIENCE

from lori.choices.hardware import Hardware
from lori.config import DataConfig, EvalConfig, MaskConfig, MergeConfig, PublishedConfig, TrainConfig
from lori.plan.cell import Cell
from tasks.engine.cells import TASKS, is_meant
from tasks.engine.jobs import Job, job_from_json, job_to_json
from tasks.engine.locks import FlockLocks
from tasks.engine.steps import STEPS
from tasks.results import Handle, Runtime

ROOT = Path(__file__).parents[1]


def adapter(key: str, **changed: str) -> Handle:
    return replace(Handle("adapter", key, "lori-d-nlu", "run", "models:/m-1", "00"), **changed)


def mask_job(source: Handle, *, sparsity: float = 0.9, cache_dir: str = "here") -> Job:
    return Job("mask", "a name", MaskConfig(sparsity, "model"), {"adapter": source}, Runtime(cache_dir=cache_dir))


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_a_body_that_takes_a_config_a_key_and_a_runtime(step: str) -> None:
    parameters = inspect.signature(resolve_name(STEPS[step].body)).parameters
    assert next(iter(parameters)) == "config"
    assert {"key", "runtime"} <= set(parameters)
    assert TASKS[step].name == step


def test_a_key_says_what_is_computed_and_not_where() -> None:
    key = mask_job(adapter("train-1")).key
    assert key == mask_job(adapter("train-1"), cache_dir="elsewhere").key
    assert key == mask_job(adapter("train-1", run_id="made again", uri="models:/m-2")).key
    assert key != mask_job(adapter("train-2")).key
    assert key != mask_job(adapter("train-1"), sparsity=0.8).key


DATA = DataConfig("miniature", "nlu", "test", num_rows=3)
TRAIN = TrainConfig("scale@0123", ("q_proj",), "lori-s", "nlu", 6, 12, 1e-3, 1, 16, 512, 256, seed=0)
EVALUATE = EvalConfig("nlu", 1, 0.0, 1.0, 8, 3000, 512, 256, seed=0)
ADAPTERS = [Handle("adapter", f"train-v3-{number}", "lora-nlu", "run", "models:/m", "00") for number in (1, 2)]


@pytest.mark.parametrize(
    ("step", "config", "inputs", "key"),
    [
        ("dataset", DATA, {}, "dataset-v2-a42b71b15cb2bdd6ee7ca68ef2d2ba9b"),
        (
            "import",
            PublishedConfig("org/name", "0123", "scale@0123"),
            {},
            "import-v1-b0138775865256a1d9927427df09a06c",
        ),
        ("mask", MaskConfig(0.9, "model"), {"adapter": ADAPTERS[0]}, "mask-v2-38790ac88eef74c9e8b07e852ce15222"),
        ("train", TRAIN, {"mask": ADAPTERS[0], "dataset": ADAPTERS[1]}, "train-v3-2d5db5f6c88071a1daa0555af5dd7669"),
        (
            "merge",
            MergeConfig("scale@0123", "ties", (0.5, 0.5), 0.7, 0, False),
            {"adapters": ADAPTERS},
            "merge-v2-5e4a42c33120a3462bad1c46e94794d7",
        ),
        (
            "evaluate",
            EVALUATE,
            {"adapter": ADAPTERS[0], "dataset": ADAPTERS[1]},
            "evaluate-v2-c7f90efb8d188b74eb77e3fa8fc8c682",
        ),
    ],
)
def test_keys_stay_what_they_are_unless_a_version_is_raised(step: str, config: Any, inputs: Any, key: str) -> None:
    assert Job(step, "a name", config, inputs).key == key


@pytest.mark.parametrize(
    "job",
    [
        Job("train", "a name", TRAIN, {"dataset": ADAPTERS[0]}, Runtime(hardware=Hardware(num_gpus=2))),
        Job("merge", "another", MergeConfig("scale@0123", "ties", (0.5, 0.5), 0.7, 0, False), {"adapters": ADAPTERS}),
    ],
)
def test_a_job_is_the_same_after_its_way_to_another_process(job: Job) -> None:
    assert job_from_json(job_to_json(job)) == job
    assert job_from_json(job_to_json(job)).key == job.key


def test_only_a_training_takes_several_gpus() -> None:
    told = Runtime(hardware=Hardware(num_gpus=4))
    assert Job("train", "a name", TRAIN, {}, told).num_gpus == 4
    assert Job("evaluate", "a name", EVALUATE, {}, told).num_gpus == 1
    assert Job("dataset", "a name", DATA, {}, told).num_gpus == 0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("all", True),
        ("train", True),
        ("train lora", True),
        ("train lora math seed 0", True),
        ("mask", False),
        ("train lor", False),
    ],
)
def test_refresh_takes_all_a_step_or_the_first_words_of_a_title(asked: str, expected: bool) -> None:
    assert is_meant(Cell("train", "lora math  seed 0", TRAIN), [asked]) == expected


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
        "from tasks.engine.locks import FlockLocks; import signal;"
        "FlockLocks().acquire_lock('key', 'other'); print('held', flush=True); signal.pause()"
    )
    other = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout
    other.stdout.readline()
    assert not FlockLocks().acquire_lock("key", "me", acquire_timeout=0)
    threading.Timer(0.2, other.kill).start()
    assert FlockLocks().acquire_lock("key", "me", acquire_timeout=PATIENCE)
    other.wait()
