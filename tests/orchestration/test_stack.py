"""Servers and workers that are started and stopped together: what goes wrong, and that nothing is left."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from flows.servers import services, stack
from flows.servers.services import StackError, choose_port, start, stop, wait_until_healthy
from helpers.stacks import processes_of, run_stack
from helpers.waiting import PATIENCE, wait_until


@pytest.fixture(autouse=True)
def lori_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORI_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((services.LOCALHOST, 0))
        server.listen()
        yield server.getsockname()[1]


def test_free_ports_are_found_and_a_taken_one_is_named(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_port("LORI_MLFLOW_PORT") > 0
    monkeypatch.setenv("LORI_MLFLOW_PORT", str(taken_port))
    with pytest.raises(StackError, match=rf"LORI_MLFLOW_PORT={taken_port} cannot be used .*: free it or unset"):
        choose_port("LORI_MLFLOW_PORT")


def test_a_port_is_the_first_of_those_preferred_that_is_free(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    free = choose_port()
    assert choose_port("LORI_MLFLOW_PORT", [taken_port, free]) == free
    assert choose_port("LORI_MLFLOW_PORT", [taken_port]) not in (taken_port, 0)
    monkeypatch.setenv("LORI_MLFLOW_PORT", "0")
    assert choose_port("LORI_MLFLOW_PORT", [free]) not in (free, 0)


def test_the_ports_of_last_time_are_taken_again_where_the_usual_ones_are_not_free(
    taken_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "USUAL_PORTS", (taken_port, taken_port))
    first = stack._choose_ports()
    assert taken_port not in first
    assert stack._choose_ports() == first
    with monkeypatch.context() as patch:
        patch.setenv("LORI_MLFLOW_PORT", "0")
        assert stack._choose_ports()[1] not in first
    assert stack._choose_ports() == first  # what was asked for once is not remembered


@pytest.mark.parametrize("code", [0, 1])
def test_the_servers_of_a_paper_stay_until_ctrl_c_for_others_to_use_unless_it_failed(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses, used = stack.Addresses("http://127.0.0.1:1", "http://127.0.0.1:2"), []

    def ctrl_c(_: object) -> None:
        used.append(stack.running_stack())
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "started", lambda: nullcontext((addresses, [])))
    monkeypatch.setattr(stack, "watch", lambda *_: code)
    monkeypatch.setattr(stack, "check_alive", ctrl_c)
    assert stack.paper([], stay=True) == code
    assert used == ([addresses] if code == 0 else [])
    assert stack.running_stack() is None
    used.clear()
    assert stack.paper([], stay=False) == code
    assert used == []


def test_an_occupied_port_is_one_sentence_and_no_traceback(taken_port: int, tmp_path: Path) -> None:
    process = run_stack("paper", directory=tmp_path, LORI_PREFECT_PORT=str(taken_port))
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert output.startswith("lori: LORI_PREFECT_PORT=")
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"LORI_EXECUTOR": "cloud"}, "lori: Unknown executor LORI_EXECUTOR='cloud'. Known: "),
        (
            {"LORI_EXECUTOR": "pool", "LORI_WORKERS": "two"},
            "lori: LORI_WORKERS='two' is not a number of worker processes",
        ),
    ],
)
def test_an_executor_that_cannot_work_is_said_before_anything_starts(
    environment: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    process = run_stack("paper", directory=tmp_path, **environment)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert output.startswith(sentence)
    assert not (tmp_path / "logs").exists()


def test_jobs_that_are_flow_runs_get_a_worker_that_takes_one_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORI_GPUS", "cpu0,cpu1,cpu2")
    assert stack.workers("pool") == {"worker": ["--pool", "lori-cpu"]}
    assert stack.workers("deployment")["gpu-worker"] == ["--pool", "lori-gpu", "--limit", "3"]


def test_a_worker_that_dies_ends_the_wait(tmp_path: Path) -> None:
    worker = start("worker", ["sh", "-c", "echo lost; exit 1"], log_dir=tmp_path, cwd=tmp_path, env=os.environ)
    addresses = stack.Addresses("http://127.0.0.1:9", "http://127.0.0.1:9")
    with pytest.raises(StackError, match=r"worker ended with exit code 1. The end of .*worker.log:\nlost"):
        stack.watch(addresses, [worker], [])


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "MIN_FREE_GB", 10**9)
    with pytest.raises(StackError, match=r"GB are free at .*: make room or set LORI_DIR"), stack.started():
        pass


def test_a_service_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    service = start("sick", ["sh", "-c", "echo no database; exit 3"], log_dir=tmp_path, cwd=tmp_path, env=os.environ)
    with pytest.raises(StackError, match=r"sick ended with exit code 3. The end of .*sick.log:\nno database"):
        wait_until_healthy(service, "http://127.0.0.1:9/")


def test_stopping_ends_the_deaf_and_sweeping_what_moved_to_another_session(tmp_path: Path) -> None:
    script = "trap '' TERM; setsid sleep infinity & echo started; while true; do sleep 100; done"
    env = {**os.environ, services.MARK: str(tmp_path)}
    service = start("deaf", ["sh", "-c", script], log_dir=tmp_path, cwd=tmp_path, env=env)
    wait_until(lambda: "started" in service.log.read_text(), "for its start")
    stop(service, seconds=0.5)
    assert service.process.returncode == -signal.SIGKILL
    wait_until(lambda: len(processes_of(tmp_path)) == 1, "for the group, which was killed this moment")
    services.sweep(str(tmp_path))
    assert processes_of(tmp_path) == []


def test_a_second_stack_in_the_same_directory_is_refused() -> None:
    with stack.the_only_one(), pytest.raises(StackError, match="is running with"), stack.the_only_one():
        pass


def test_paper_uses_the_servers_of_a_running_serve_and_no_dead_ones() -> None:
    assert stack.running_stack() is None
    with stack.the_only_one() as state:
        state.write('{"prefect": "http://127.0.0.1:1", "mlflow": "http://127.0.0.1:2"}')
        state.flush()
        assert stack.running_stack() == stack.Addresses("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert stack.running_stack() is None
