"""What is tracked is found again by its key, complete or made whole, whatever happened in between."""

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
from conftest import Store
from mlflow import MlflowClient
from mlflow.entities import Run

from lori.config import Handle, Runtime
from tasks import tracking

KEY = "train-v1-0123"


def open_run(runtime: Runtime, key: str = KEY, **params: Any) -> str:
    tags = {"lori.role": "train"}
    return tracking.open_run(runtime, key, "lora-nlu", experiment=runtime.experiment, tags=tags, params=params)


def client_of(store: Store) -> MlflowClient:
    return MlflowClient(store.runtime.tracking_uri)


def runs_of(store: Store) -> list[Run]:
    experiment = client_of(store).get_experiment_by_name(store.runtime.experiment)
    return client_of(store).search_runs([experiment.experiment_id])


def write_adapter(directory: Path, weights: bytes = b"weights") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(weights)
    return directory


def log_adapter(store: Store, directory: Path, key: str = KEY) -> Handle:
    run_id = open_run(store.runtime, key)
    uri, sha256 = tracking.log_model(
        store.runtime, run_id, key, directory, kind="adapter", name="lora-nlu", params={"rank": 8}
    )
    return Handle("adapter", key, "lora-nlu", run_id, uri, sha256)


def log_rows(store: Store, directory: Path, key: str = KEY) -> Handle:
    run_id = open_run(store.runtime, key)
    uri, sha256 = tracking.log_directory(store.runtime, run_id, directory, "rows")
    return Handle("dataset", key, "data-nlu", run_id, uri, sha256)


LOGGERS = {"model": log_adapter, "artifacts": log_rows}


# --- runs ---------------------------------------------------------------------------------------------------------


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


def test_one_key_with_two_configs_is_an_error_that_names_both(store: Store) -> None:
    run_id = open_run(store.runtime, rank=8)
    with pytest.raises(RuntimeError, match=rf"{run_id}.*{KEY}.*rank: '8', now '16'"):
        open_run(store.runtime, rank=16)


def test_a_deleted_run_is_made_anew(store: Store) -> None:
    first = open_run(store.runtime)
    client_of(store).delete_run(first)
    assert open_run(store.runtime) != first


def test_machines_that_share_no_lock_elect_one_run(server: tuple[str, Path], tmp_path: Path) -> None:
    uri, _ = server
    experiment = f"race-{time.time_ns()}"
    runtimes = [Runtime(uri, str(tmp_path / machine), experiment) for machine in "abcd"]
    barrier = threading.Barrier(len(runtimes))

    def race(runtime: Runtime) -> str:
        barrier.wait()
        return open_run(runtime, rank=8)

    with ThreadPoolExecutor(len(runtimes)) as pool:
        elected = set(pool.map(race, runtimes))
    assert len(elected) == 1
    assert {run.info.run_id for run in runs_of(Store(runtimes[0], tmp_path))} == elected


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
    assert found.get(timeout=60) == found.get(timeout=60)
    for worker in workers:
        worker.join()
    for runtime in runtimes:
        assert len(runs_of(Store(runtime, tmp_path))) == 3  # one each, and the one they share


# --- metrics ------------------------------------------------------------------------------------------------------


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


# --- files --------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_names_and_bytes_and_leaves_out_what_mlflow_adds(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a")
    digest = tracking.directory_digest(adapter)
    (adapter / "MLmodel").write_text("model_id: m-1")
    assert tracking.directory_digest(adapter) == digest
    (adapter / "adapter_config.json").rename(adapter / "config.json")
    assert tracking.directory_digest(adapter) != digest
    assert tracking.directory_digest(write_adapter(tmp_path / "b", b"weightz")) != digest


@pytest.mark.parametrize("logger", LOGGERS)
def test_what_is_fetched_is_what_was_logged(store: Store, tmp_path: Path, logger: str) -> None:
    directory = write_adapter(tmp_path / "adapter")
    (directory / "sub").mkdir()
    (directory / "sub" / "more.txt").write_text("more")
    handle = LOGGERS[logger](store, directory)
    assert tracking.is_available(store.runtime, handle)
    fetched = tracking.fetch(store.runtime, handle)
    assert fetched == Path(store.runtime.cache_dir, handle.sha256)
    assert (fetched / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (fetched / "sub" / "more.txt").read_text() == "more"
    assert tracking.directory_digest(fetched) == handle.sha256 == tracking.directory_digest(directory)


def test_an_adapter_without_files_is_a_result_too(store: Store, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    handle = log_adapter(store, tmp_path / "nothing")
    assert tracking.is_available(store.runtime, handle)
    assert [path.name for path in tracking.fetch(store.runtime, handle).iterdir()] == ["MLmodel"]


def test_a_damaged_cache_entry_is_fetched_again(store: Store, tmp_path: Path) -> None:
    handle = log_adapter(store, write_adapter(tmp_path / "adapter"))
    weights = tracking.fetch(store.runtime, handle) / "adapter_model.safetensors"
    weights.write_bytes(b"wei")
    assert tracking.fetch(store.runtime, handle) / weights.name == weights
    assert weights.read_bytes() == b"weights"


@pytest.mark.parametrize("crash_at", ["log_model_artifacts", "log_outputs", "finalize_logged_model"])
def test_a_crash_on_the_way_leaves_nothing_that_is_believed_and_nothing_twice(
    store: Store, tmp_path: Path, crash_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, crash_at, crash)
        with pytest.raises(InterruptedError):
            log_adapter(store, adapter)
    (run,) = runs_of(store)
    (half,) = client_of(store).search_logged_models([run.info.experiment_id])
    assert half.status == "PENDING"
    broken = Handle("adapter", KEY, "lora-nlu", run.info.run_id, half.model_uri, tracking.directory_digest(adapter))
    assert not tracking.is_available(store.runtime, broken)
    with pytest.raises(tracking.ArtifactMissing):
        tracking.fetch(store.runtime, broken)

    handle = log_adapter(store, adapter)
    assert handle == broken  # the same run and model, now complete
    assert tracking.is_available(store.runtime, handle)
    assert len(client_of(store).search_logged_models([run.info.experiment_id])) == 1
    assert len(runs_of(store)[0].outputs.model_outputs) == 1


def crash(*_: Any, **__: Any) -> None:
    raise InterruptedError("the process died here")


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("harm", [delete, cut])
def test_an_artifact_harmed_under_its_handle_is_noticed_and_made_again(
    store: Store, tmp_path: Path, logger: str, harm: Any
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    handle = LOGGERS[logger](store, adapter)
    harm(store.files_of(handle.uri) / "adapter_model.safetensors")
    assert not tracking.is_available(store.runtime, handle)
    with pytest.raises(tracking.ArtifactMissing, match=rf"{handle.name}.*{handle.uri}.*[Rr]un the flow again"):
        tracking.fetch(store.runtime, handle)

    assert LOGGERS[logger](store, adapter) == handle
    assert tracking.is_available(store.runtime, handle)
    assert (tracking.fetch(store.runtime, handle) / "adapter_model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("logger", LOGGERS)
def test_other_bytes_of_the_same_size_are_noticed_when_they_are_fetched(
    store: Store, tmp_path: Path, logger: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    handle = LOGGERS[logger](store, adapter)
    (store.files_of(handle.uri) / "adapter_model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(tracking.ArtifactMissing, match="digest"):
        tracking.fetch(store.runtime, handle)
    assert not tracking.is_available(store.runtime, handle)
    assert LOGGERS[logger](store, adapter) == handle
    assert tracking.is_available(store.runtime, handle)


def test_other_bytes_under_the_key_of_an_intact_model_are_an_error(store: Store, tmp_path: Path) -> None:
    handle = log_adapter(store, write_adapter(tmp_path / "a"))
    with pytest.raises(RuntimeError, match=f"{KEY}.*{handle.uri}.*other bytes"):
        log_adapter(store, write_adapter(tmp_path / "b", b"other"))
    assert tracking.is_available(store.runtime, handle)


def test_a_lost_model_may_be_made_again_with_other_bytes_as_another_machine_would(
    store: Store, tmp_path: Path
) -> None:
    lost = log_adapter(store, write_adapter(tmp_path / "a"))
    delete(store.files_of(lost.uri) / "adapter_model.safetensors")
    again = log_adapter(store, write_adapter(tmp_path / "b", b"other"))
    assert tracking.is_available(store.runtime, again)
    assert not tracking.is_available(store.runtime, lost)
    with pytest.raises(tracking.ArtifactMissing):
        tracking.fetch(store.runtime, lost)


def test_a_deleted_model_or_run_is_not_available(store: Store, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    first = log_adapter(store, adapter)
    client_of(store).delete_logged_model(first.uri.removeprefix("models:/"))
    assert not tracking.is_available(store.runtime, first)
    second = log_adapter(store, adapter)
    assert (second.run_id, second.uri != first.uri) == (first.run_id, True)
    client_of(store).delete_run(second.run_id)
    assert not tracking.is_available(store.runtime, second)


def test_an_unknown_handle_is_not_available(store: Store) -> None:
    for uri in ("models:/m-0123", "runs:/0123/rows"):
        unknown = Handle("adapter", KEY, "x", "0" * 32, uri, "0" * 64)
        assert not tracking.is_available(store.runtime, unknown)


def test_lineage_names_each_model_once(store: Store, tmp_path: Path) -> None:
    parents = [log_adapter(store, write_adapter(tmp_path / key, key.encode()), key) for key in ("k1", "k2")]
    merged = open_run(store.runtime)
    for _ in range(2):
        tracking.link_inputs(store.runtime, merged, [*parents, log_rows(store, tmp_path / "k1", "rows")])
    inputs = client_of(store).get_run(merged).inputs.model_inputs
    assert sorted(f"models:/{model.model_id}" for model in inputs) == sorted(parent.uri for parent in parents)


def test_peft_loads_what_mlflow_downloads(store: Store, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(12).view(1, 12)
    expected = model(tokens).logits
    handle = log_adapter(store, tmp_path / "adapter")

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.runtime.tracking_uri)
    try:
        downloaded = mlflow.artifacts.download_artifacts(handle.uri, dst_path=str(tmp_path / "download"))
    finally:
        mlflow.set_tracking_uri(before)
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), downloaded).eval()
    assert torch.equal(loaded(tokens).logits, expected)
    assert (Path(downloaded) / "MLmodel").exists()


# --- the store ----------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_one_clear_sentence() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound, not listening: refused
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(tracking.TrackingUnavailable, match=f"No MLflow server answers at {uri}.*make serve"):
            tracking.ensure_store(uri)


def test_a_server_that_hangs_is_given_up_after_five_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, never answers
        started = time.monotonic()
        with pytest.raises(tracking.TrackingUnavailable, match="MLFLOW_TRACKING_URI"):
            tracking.ensure_store(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - started < 5


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
