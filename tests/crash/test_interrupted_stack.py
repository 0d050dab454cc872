"""Ctrl-C while `make paper` computes."""

import signal
from pathlib import Path

import pytest

from helpers.stacks import processes_of, run_stack
from helpers.waiting import PATIENCE


@pytest.mark.once
def test_ctrl_c_in_the_middle_of_the_paper_leaves_no_process(tmp_path: Path) -> None:
    process = run_stack("paper", "--profile", "smoke", directory=tmp_path)
    assert process.stdout
    printed = ""
    while not printed.startswith("["):  # the first cell is there
        printed = process.stdout.readline()
        assert printed, "the stack ended before its first cell"
    assert len(processes_of(tmp_path)) > 5
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert "Interrupted: the servers and the workers are stopped." in rest
    assert process.returncode == 1
    assert processes_of(tmp_path) == []
