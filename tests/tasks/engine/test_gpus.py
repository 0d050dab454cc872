"""Which GPU a job gets: ids that exist, none twice, all or none, and free again when the last holder is gone."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from helpers.waiting import wait_until
from tasks.engine import gpus
from tasks.machine import ROOT

# What `nvidia-smi -L` prints on a machine with two GPUs, the second cut into parts
LISTED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-9f1e6b1c-7c31-2f43-6c5a-2f0d0f6a7c11)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2b1c7c31-9f1e-4343-8c5a-0f6a7c112f0d)
  MIG 1g.10gb     Device  0: (UUID: MIG-5f4dd7a2-1f55-5c32-9a6b-5d6b0a7f3c11)
"""


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with locks of its own, and no settings; its `nvidia-smi` lists two GPUs."""
    for name in ("LORI_GPUS", "CUDA_VISIBLE_DEVICES", "LORI_DEVICE", "LORI_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    gpus._gpus_of_this_machine.cache_clear()
    monkeypatch.setenv("LORI_LOCK_DIR", str(tmp_path / "locks"))
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return tmp_path


def stop() -> None:
    raise Stop


def held_ids(num_gpus: int) -> list[str]:
    """The ids of a job that does not wait."""
    with gpus.acquire_gpus(num_gpus, while_waiting=stop) as (ids, _):
        return ids


def test_the_gpus_of_a_machine_are_all_or_those_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus.gpu_ids() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.gpu_ids() == ["1"]
    monkeypatch.setenv("LORI_GPUS", "0, MIG-5f4dd7a2-1f55-5c32-9a6b-5d6b0a7f3c11")
    assert gpus.gpu_ids() == ["0", "MIG-5f4dd7a2-1f55-5c32-9a6b-5d6b0a7f3c11"]
    assert gpus.environment_of(gpus.gpu_ids()) == {"CUDA_VISIBLE_DEVICES": ",".join(gpus.gpu_ids())}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("0,7", r"There is no GPU 7 on this machine \(nvidia-smi lists 0, 1, GPU-9f1e"),
        ("0,cpu0", "There is no GPU cpu0"),
        ("1,1", "named twice: 1, 1"),
        ("cpu0,cpu0", "named twice"),
    ],
)
def test_a_gpu_that_does_not_exist_is_refused(named: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORI_GPUS", named)
    with pytest.raises(ValueError, match=message):
        held_ids(1)


def test_slots_without_a_gpu_show_a_process_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORI_GPUS", "cpu0,cpu1")
    assert held_ids(2) == ["cpu0", "cpu1"]
    assert gpus.environment_of(["cpu0", "cpu1"]) == {"CUDA_VISIBLE_DEVICES": ""}


def test_what_needs_no_gpu_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORI_WORKERS", "1")
    assert held_ids(0) == ["cpu0"]
    monkeypatch.setenv("LORI_DEVICE", "cpu")
    assert held_ids(1) == ["cpu0"]


def test_more_gpus_than_there_are_is_an_error_and_no_wait() -> None:
    with pytest.raises(ValueError, match="A job wants 3 GPUs at once; this machine has 2 for it: 0, 1"):
        held_ids(3)


def test_a_held_gpu_goes_to_nobody_else_and_several_go_together() -> None:
    with gpus.acquire_gpus(1, while_waiting=stop) as (first, _):
        assert first == ["0"]
        assert held_ids(1) == ["1"]
        with pytest.raises(Stop):
            held_ids(2)
        assert held_ids(1) == ["1"]  # who waits for two does not keep one
    assert held_ids(2) == ["0", "1"]


def test_of_jobs_that_wait_one_gets_the_gpu_as_soon_as_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first holds it until the others have found it held; each then has it alone."""
    monkeypatch.setenv("LORI_GPUS", "0")
    together: list[int] = []
    inside, waiting = 0, set()

    def work() -> None:
        nonlocal inside
        with gpus.acquire_gpus(1, while_waiting=lambda: waiting.add(threading.get_ident())):
            inside += 1
            together.append(inside)
            wait_until(lambda: len(waiting) == 3, "for those who wait")
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1, 1, 1, 1]


def test_a_gpu_stays_held_while_a_child_of_a_killed_holder_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORI_GPUS", "0")
    script = """
import signal, subprocess
from tasks.engine import gpus
with gpus.acquire_gpus(1, while_waiting=lambda: None) as (_, descriptors):
    child = subprocess.Popen(["sleep", "infinity"], pass_fds=descriptors)
    print(child.pid, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        child = int(holder.stdout.readline())
        holder.kill()
    with pytest.raises(Stop):
        held_ids(1)
    os.kill(child, signal.SIGKILL)
    with gpus.acquire_gpus(1, while_waiting=lambda: None) as (ids, _):
        assert ids == ["0"]
