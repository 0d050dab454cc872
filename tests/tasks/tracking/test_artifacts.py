"""Files and models are believed only while the store has them whole, and are made again otherwise."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from helpers.stores import KEY, LOGGERS, Store, client_of, log_adapter, log_rows, open_run, runs_of, write_adapter
from tasks import tracking
from tasks.results import Handle


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
    delete(store.files_of(handle.uri) / "MLmodel")
    assert not tracking.is_available(store.runtime, handle)


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


def delete_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("harm", [delete, delete_directory, cut])
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


def test_an_intact_model_stays_where_another_device_computes_other_bytes(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handle = log_adapter(store, write_adapter(tmp_path / "a"))
    assert log_adapter(store, write_adapter(tmp_path / "b", b"other")) == handle
    assert tracking.is_available(store.runtime, handle)
    assert f"{KEY} is in MLflow ({handle.uri}) with other bytes" in caplog.text


def test_a_refresh_puts_other_bytes_beside_the_old_ones_and_in_their_place(store: Store, tmp_path: Path) -> None:
    old = log_adapter(store, write_adapter(tmp_path / "a"))
    refreshing = Store(replace(store.runtime, refresh=True), store.artifact_dir)
    assert log_adapter(refreshing, write_adapter(tmp_path / "a")) == old  # the same bytes: nothing new
    new = log_adapter(refreshing, write_adapter(tmp_path / "b", b"other"))
    assert (new.uri != old.uri, new.run_id) == (True, old.run_id)
    assert all(tracking.is_available(store.runtime, handle) for handle in (old, new))
    assert log_adapter(store, write_adapter(tmp_path / "a")) == new  # the key's model is the newest


def test_a_second_attempt_leaves_no_file_of_the_first(store: Store, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first")
    (first / "more.txt").write_text("more")
    log_rows(store, first)
    handle = log_rows(store, write_adapter(tmp_path / "second"))
    assert tracking.is_available(store.runtime, handle)
    names = {path.name for path in tracking.fetch(store.runtime, handle).iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_result_is_found_by_its_key_as_long_as_its_bytes_are_there(
    store: Store, tmp_path: Path, logger: str
) -> None:
    handle = LOGGERS[logger](store, write_adapter(tmp_path / "a"))
    assert tracking.find_handle(store.runtime, KEY) is None  # it may not be whole yet
    tracking.save_handle(store.runtime, handle)
    assert tracking.find_handle(store.runtime, KEY) == handle
    assert tracking.find_handle(store.runtime, f"{KEY}4") is None
    delete(store.files_of(handle.uri) / "adapter_model.safetensors")
    assert tracking.find_handle(store.runtime, KEY) is None


def write_checkpoint(directory: Path, text: str) -> Path:
    (directory / "checkpoint-7").mkdir(parents=True, exist_ok=True)
    (directory / "checkpoint-7" / "state").write_text(text)
    return directory


def test_another_machine_finds_the_newest_checkpoint_and_no_other(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store.runtime)
    assert tracking.published_checkpoint(store.runtime, run_id) is None
    for step in (7, 14):
        tracking.publish_checkpoint(store.runtime, run_id, write_checkpoint(tmp_path / "here", f"at {step}"), step)
    found = tracking.published_checkpoint(store.runtime, run_id)
    assert found
    assert found.step == 14
    assert tracking.fetch_checkpoint(store.runtime, run_id, found, tmp_path / "there")
    assert (tmp_path / "there" / "checkpoint-7" / "state").read_text() == "at 14"
    kept = client_of(store).list_artifacts(run_id, "checkpoint")
    assert [Path(entry.path).name for entry in kept] == ["14"]
    tracking.drop_checkpoints(store.runtime, run_id)
    assert tracking.published_checkpoint(store.runtime, run_id) is None
    assert client_of(store).list_artifacts(run_id) == []


def test_a_checkpoint_that_was_cut_is_not_believed(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store.runtime)
    tracking.publish_checkpoint(store.runtime, run_id, write_checkpoint(tmp_path / "here", "at 7"), 7)
    next(store.artifact_dir.rglob(f"{run_id}/artifacts/**/state")).write_text("at")
    found = tracking.published_checkpoint(store.runtime, run_id)
    assert found
    assert not tracking.fetch_checkpoint(store.runtime, run_id, found, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_checkpoint_whose_upload_was_cut_leaves_the_one_before(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = open_run(store.runtime)
    tracking.publish_checkpoint(store.runtime, run_id, write_checkpoint(tmp_path / "here", "at 7"), 7)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_tag", crash)
        with pytest.raises(InterruptedError):
            tracking.publish_checkpoint(store.runtime, run_id, write_checkpoint(tmp_path / "here", "at 14"), 14)
    found = tracking.published_checkpoint(store.runtime, run_id)
    assert found
    assert found.step == 7
    assert tracking.fetch_checkpoint(store.runtime, run_id, found, tmp_path / "there")


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


def test_many_are_looked_for_at_once(store: Store, tmp_path: Path) -> None:
    there, gone = [
        log_adapter(store, write_adapter(tmp_path / name), key=f"train-v1-{name}") for name in ("there", "gone")
    ]
    client_of(store).delete_run(gone.run_id)
    unknown = Handle("adapter", KEY, "x", "0" * 32, "models:/m-0123", "0" * 64)
    assert tracking.are_available(store.runtime, [gone, there, unknown, there]) == [False, True, False, True]
    assert tracking.are_available(store.runtime, []) == []


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
