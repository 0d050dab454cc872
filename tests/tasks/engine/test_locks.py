"""Locks keep two runs from computing one cell twice, and outlive no holder."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.waiting import PATIENCE
from tasks.engine.locks import FlockLocks
from tasks.machine import ROOT


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
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        assert not FlockLocks().acquire_lock("key", "me", acquire_timeout=0)
        threading.Timer(0.2, other.kill).start()
        assert FlockLocks().acquire_lock("key", "me", acquire_timeout=PATIENCE)
