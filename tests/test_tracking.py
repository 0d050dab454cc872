"""What is tracked is found again by its key, whatever happened in between; the store is checked before work starts."""

import multiprocessing
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from stores import KEY, Store, client_of, open_run, runs_of
from waiting import PATIENCE, wait_until

from tasks import tracking
from tasks.results import Runtime
from tasks.tracking.client import experiment_id_of

NUM_RACES = 5


def test_a_retry_goes_on_in_the_run_of_its_key(store: Store) -> None:
    first = open_run(store.runtime, rank=8)
    tracking.close_run(store.runtime, first, "FAILED")
    assert open_run(store.runtime, rank=8, weights=(0.3, 0.4)) == first
    (run,) = runs_of(store)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"rank": "8", "weights": "[0.3, 0.4]"}
    assert run.data.tags["lori.key"] == KEY
    assert run.data.tags["lori.role"] == "train"
    assert run.data.tags["lori.torch"] == tracking.provenance()["lori.torch"]


def test_a_run_in_which_something_raises_is_failed_and_its_retry_finishes_it(store: Store) -> None:
    client = client_of(store)
    with (
        pytest.raises(ZeroDivisionError),
        tracking.logged_run(store.runtime, "key-1", "name", tags={}, params={}) as run_id,
    ):
        raise ZeroDivisionError
    assert client.get_run(run_id).info.status == "FAILED"
    with tracking.logged_run(store.runtime, "key-1", "name", tags={}, params={}) as again:
        assert client.get_run(again).info.status == "RUNNING"
    assert again == run_id
    assert client.get_run(run_id).info.status == "FINISHED"


def test_one_key_with_two_configs_is_an_error_that_names_both(store: Store) -> None:
    run_id = open_run(store.runtime, rank=8)
    with pytest.raises(RuntimeError, match=rf"{run_id}.*{KEY}.*rank: '8', now '16'"):
        open_run(store.runtime, rank=16)


def test_a_deleted_run_is_made_anew_as_often_as_somebody_deletes_it(store: Store) -> None:
    made = [open_run(store.runtime)]
    for _ in range(3):
        client_of(store).delete_run(made[-1])
        made.append(open_run(store.runtime))
        assert open_run(store.runtime) == made[-1]
    assert len(set(made)) == 4


def candidate(store: Store) -> str:
    """The run that a process leaves which is killed before its election is over."""
    experiment_id = experiment_id_of(store.runtime.tracking_uri, store.runtime.experiment)
    return client_of(store).create_run(experiment_id, tags={"lori.key": KEY, "lori.elected": "no"}).info.run_id


def test_a_candidate_that_a_killed_process_left_becomes_the_run(store: Store) -> None:
    left = candidate(store)
    assert open_run(store.runtime) == left
    assert [run.info.run_id for run in runs_of(store)] == [left]


def test_a_candidate_that_lost_is_deleted_by_whoever_comes_next(store: Store) -> None:
    elected = open_run(store.runtime)
    candidate(store)
    assert open_run(store.runtime) == elected
    assert [run.info.run_id for run in runs_of(store)] == [elected]


def test_a_winner_that_was_killed_before_it_could_say_so_stays_elected(store: Store) -> None:
    winner = open_run(store.runtime)
    client = client_of(store)
    client.set_tag(winner, "lori.elected", "no")
    client.update_run(candidate(store), status="KILLED")
    older = client.create_run(runs_of(store)[0].info.experiment_id, 1, {"lori.key": KEY, "lori.elected": "no"})
    assert open_run(store.runtime) == winner != older.info.run_id
    assert [run.info.run_id for run in runs_of(store)] == [winner]


def test_no_page_lists_an_election(store: Store) -> None:
    open_run(store.runtime)
    assert not [found.name for found in client_of(store).search_experiments() if "ballot" in found.name]


def test_machines_that_share_no_lock_elect_one_run(server: tuple[str, Path], tmp_path: Path) -> None:
    """Each has a cache, and so its locks, of its own; a barrier lets all of them begin at once."""
    uri, _ = server
    experiment = f"race-{time.time_ns()}"
    runtimes = [Runtime(uri, str(tmp_path / machine), experiment) for machine in "abcd"]
    barrier = threading.Barrier(len(runtimes))

    def race(runtime: Runtime, key: str) -> str:
        barrier.wait()
        return open_run(runtime, key, rank=8)

    elected = []
    with ThreadPoolExecutor(len(runtimes)) as pool:
        for number in range(NUM_RACES):
            found = set(pool.map(race, runtimes, [f"train-v1-{number}"] * len(runtimes)))
            assert len(found) == 1
            elected += found
    assert {run.info.run_id for run in runs_of(Store(runtimes[0], tmp_path))} == set(elected)
    assert len(set(elected)) == NUM_RACES


def start_at_once(runtimes: list[Runtime], barrier: Any, found: Any) -> None:
    barrier.wait()
    for runtime in runtimes:
        tracking.ensure_store(runtime.tracking_uri)
        own = open_run(runtime, f"own-{multiprocessing.current_process().name}")
        tracking.log_metrics(runtime, own, {"nlu/accuracy": 50.0})
    found.put([open_run(runtime, rank=8) for runtime in runtimes])


def test_two_processes_may_start_in_a_new_store_at_once(server: tuple[str, Path], tmp_path: Path) -> None:
    fresh = Runtime(f"sqlite:///{tmp_path}/new/mlflow.db", str(tmp_path / "cache"), "first")
    runtimes = [fresh, replace(fresh, tracking_uri=server[0], experiment=f"first-{time.time_ns()}")]
    spawn = multiprocessing.get_context("spawn")
    barrier, found = spawn.Barrier(2), spawn.Queue()
    workers = [spawn.Process(target=start_at_once, args=(runtimes, barrier, found)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert found.get(timeout=PATIENCE) == found.get(timeout=PATIENCE)
    for worker in workers:
        worker.join()
    for runtime in runtimes:
        assert len(runs_of(Store(runtime, tmp_path))) == 3  # one each, and the one they share


def history(store: Store, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_of(store).get_metric_history(run_id, name)]


def test_a_result_is_one_point_however_often_it_is_logged(store: Store) -> None:
    run_id = open_run(store.runtime)
    for _ in range(3):
        tracking.log_metrics(store.runtime, run_id, {"nlu/accuracy": 81.5})
    assert history(store, run_id, "nlu/accuracy") == [(0, 81.5)]


@pytest.mark.parametrize("second", [2.0, 20.0])
def test_of_two_attempts_that_differ_the_later_one_is_shown(store: Store, second: float) -> None:
    run_id = open_run(store.runtime)
    tracking.log_metrics(store.runtime, run_id, {"train_seconds": 9.0})
    tracking.log_metrics(store.runtime, run_id, {"train_seconds": second})
    assert client_of(store).get_run(run_id).data.metrics == {"train_seconds": second}


def curve(num_steps: int, *, started_ms: int) -> list[dict[str, float]]:
    return [
        {"step": step, "time_ms": started_ms + step, "train/loss": 1 / (1 + step), "train/lr": 0.1}
        for step in range(num_steps)
    ]


def test_a_second_attempt_completes_the_curve_of_the_first(store: Store) -> None:
    run_id = open_run(store.runtime)
    tracking.log_curve(store.runtime, run_id, curve(300, started_ms=1_000))
    tracking.log_curve(store.runtime, run_id, curve(700, started_ms=9_000_000))
    assert history(store, run_id, "train/loss") == [(step, 1 / (1 + step)) for step in range(700)]


def test_a_server_that_is_not_there_is_one_clear_sentence() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound, not listening: refused
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(tracking.TrackingUnavailable, match=f"No MLflow server answers at {uri}.*make serve"):
            tracking.ensure_store(uri)


def test_a_server_that_hangs_is_given_up() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,  # accepts, never answers
        pytest.raises(tracking.TrackingUnavailable, match=r"\(ReadTimeout\).*MLFLOW_TRACKING_URI"),
    ):
        tracking.ensure_store(f"http://127.0.0.1:{listener.getsockname()[1]}")


def test_a_server_of_something_else_is_not_taken_for_mlflow(server: tuple[str, Path]) -> None:
    with pytest.raises(tracking.TrackingUnavailable, match="no healthy MLflow"):
        tracking.ensure_store(f"{server[0]}/elsewhere")


@pytest.mark.parametrize("uri", ["", "mlruns", "sqlite:///relative.db", "databricks"])
def test_a_store_that_depends_on_the_working_directory_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="Expected a server"):
        tracking.ensure_store(uri)


def test_a_database_that_cannot_be_made_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(tracking.TrackingUnavailable, match="cannot be opened"):
        tracking.ensure_store(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_run_has_a_page_where_there_is_a_server(store: Store) -> None:
    run_id = open_run(store.runtime)
    url = tracking.run_url(store.runtime, run_id)
    if store.runtime.tracking_uri.startswith("sqlite"):
        assert url == ""
    else:
        assert url.startswith(f"{store.runtime.tracking_uri}/#/experiments/")
        assert url.endswith(f"/runs/{run_id}?workflowType=machine_learning")


def test_the_folder_called_mlflow_does_not_hide_the_package() -> None:
    assert "site-packages" in mlflow.__file__
    assert not list(Path(__file__, "../../mlflow").resolve().rglob("*.py"))


def test_provenance_names_every_library_that_makes_numbers() -> None:
    made_with: Mapping[str, str] = tracking.provenance()
    assert {"lori.commit", "lori.dirty", "lori.python", "lori.cpu", "lori.torch", "lori.peft"} <= made_with.keys()
    assert all(made_with.values())


def status_of(store: Store, run_id: str) -> str:
    return client_of(store).get_run(run_id).info.status


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (SystemExit, "KILLED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_says_how_its_work_ended(store: Store, error: type[BaseException], status: str) -> None:
    def work() -> None:
        with tracking.logged_run(store.runtime, KEY, "lora-nlu", tags={}, params={}) as run_id:
            assert status_of(store, run_id) == "RUNNING"
            raise error

    with pytest.raises(error):
        work()
    (run,) = runs_of(store)
    assert run.info.status == status


def test_a_run_that_nobody_has_worked_on_for_ten_minutes_is_closed(store: Store) -> None:
    lost, alive, done = (open_run(store.runtime, f"train-v1-{number}") for number in range(3))
    client = client_of(store)
    client.set_tag(lost, "lori.alive", str(int(time.time()) - 601))
    client.set_tag(alive, "lori.alive", str(int(time.time()) - 500))
    tracking.close_run(store.runtime, done)
    tracking.close_stale_runs(store.runtime)
    assert [status_of(store, run_id) for run_id in (lost, alive, done)] == ["KILLED", "RUNNING", "FINISHED"]


def test_who_works_on_a_run_says_so(store: Store) -> None:
    before = int(time.time())
    with tracking.logged_run(store.runtime, KEY, "lora-nlu", tags={}, params={}) as run_id:
        alive = wait_until(lambda: client_of(store).get_run(run_id).data.tags.get("lori.alive"), "for its sign")
    assert before <= int(alive) <= time.time()


def test_the_run_of_a_crashed_job_is_closed_and_no_other(store: Store) -> None:
    crashed, other = open_run(store.runtime, "train-v1-1"), open_run(store.runtime, "train-v1-2")
    tracking.close_run_of(store.runtime, "train-v1-1")
    assert [status_of(store, run_id) for run_id in (crashed, other)] == ["KILLED", "RUNNING"]
