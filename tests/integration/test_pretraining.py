"""Pretraining the embedded base, on a small recipe: the same bytes twice, and nothing is left of a killed one."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from helpers.waiting import wait_until
from lori.scale_model.pretrain import OUTPUT_DIR, Recipe, pretrain

SMALL = Recipe(num_steps=(3, 2), rows_per_process=2, row_length=32, num_tokenizer_documents=500, num_layers=1)


def test_pretraining_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        pretrain(SMALL, tmp_path / name)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_pretraining_processes_die_with_their_parent(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from lori.scale_model.pretrain import Recipe, pretrain\n"
        "if __name__ == '__main__':\n"
        f"    pretrain({replace(SMALL, num_steps=(9000, 1))}, Path({str(tmp_path / 'model')!r}))"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    run = subprocess.Popen(
        [sys.executable, script],
        env={"PYTHONPATH": str(OUTPUT_DIR.parents[1]), "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    )

    def workers() -> list[psutil.Process]:
        assert run.poll() is None, "the pretraining ended by itself"
        return [p for p in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in str(p.cmdline())]

    family = wait_until(workers)
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_until(
        lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    )
    assert not Path(tmp_path, "model").exists()
