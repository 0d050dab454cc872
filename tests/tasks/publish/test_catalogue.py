"""Registered adapters with their cards: what a person finds in MLflow after a study."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from mlflow import MlflowClient
from mlflow.exceptions import RestException

from helpers.stores import Store, client_of, log_adapter, open_run, write_adapter
from lori.choices.profiles import PROFILES
from lori.recipes.configs import data_config, eval_config, train_config
from tasks import tracking
from tasks.engine.jobs import Job, run_inline
from tasks.publish.model_card import Card, interval, to_markdown
from tasks.results import Handle, Runtime

NAME = f"lori-scale-r{PROFILES['smoke'].rank}.lori-d-4_steps.nlu"


@pytest.fixture(scope="module")
def trained(server: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, Handle]:
    """An adapter of the smoke profile, scored, by the steps themselves."""
    told, profile = Runtime(experiment="catalogue"), PROFILES["smoke"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORI_DIR", str(tmp_path_factory.mktemp("lori")))
        patch.setenv("MLFLOW_TRACKING_URI", server[0])

        def rows(split: str) -> Handle:
            return run_inline(Job("dataset", split, data_config(profile, "nlu", split), {}, told)).handle

        config = train_config(profile, "lori-d", "nlu", 0)
        adapter = run_inline(Job("train", "nlu", config, {"dataset": rows("train")}, told)).handle
        for split in ("test", "validation"):
            inputs = {"adapter": adapter, "dataset": rows(split)}
            run_inline(Job("evaluate", "nlu", eval_config(profile, "nlu"), inputs, told))
    return MlflowClient(server[0]), adapter


def test_an_adapter_is_registered_under_its_name_and_seed(trained: tuple[MlflowClient, Handle]) -> None:
    client, adapter = trained
    version = client.get_model_version_by_alias(NAME, "seed-0")
    assert version.source == adapter.uri
    assert version.tags["lori.key"] == adapter.key
    assert version.tags["lori.base_model"] == adapter.config["base_model"]
    (link,) = json.loads(client.get_logged_model(adapter.uri.removeprefix("models:/")).tags["mlflow.modelVersions"])
    assert link == {"name": NAME, "version": int(version.version)}


def test_the_snippet_of_its_card_loads_it(
    trained: tuple[MlflowClient, Handle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, adapter = trained
    mlflow.set_tracking_uri(None)  # as in a new process: by the environment, of which this is a part
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(client.tracking_uri))
    path = mlflow.artifacts.download_artifacts(f"models:/{NAME}@seed-0", dst_path=str(tmp_path))
    text = Path(path, "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    loaded = names["adapter"].get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert torch.count_nonzero(loaded.lora_B.default.weight) > 0
    assert names["adapter"].peft_config["default"].r == adapter.config["rank"]


def test_its_card_has_the_hubs_header_and_the_scores_of_its_run(
    trained: tuple[MlflowClient, Handle], tmp_path: Path
) -> None:
    client, adapter = trained
    uri = str(client.tracking_uri)
    location = client.get_logged_model(adapter.uri.removeprefix("models:/")).artifact_location
    path = mlflow.artifacts.download_artifacts(location, dst_path=str(tmp_path), tracking_uri=uri)
    card = ModelCard.load(Path(path, "README.md"))
    assert (card.data.library_name, card.data.pipeline_tag, card.data.base_model) == (
        "peft",
        "text-generation",
        "scale",
    )
    metrics = client.get_run(adapter.run_id).data.metrics
    assert f"| `nlu/accuracy` | {metrics['nlu/accuracy']:.1f} |" in card.text
    assert f"| learning_rate | {adapter.config['learning_rate']} |" in card.text


def test_scores_on_validation_rows_are_told_apart_and_name_the_best(trained: tuple[MlflowClient, Handle]) -> None:
    client, adapter = trained
    metrics = client.get_run(adapter.run_id).data.metrics
    profile = PROFILES["smoke"]
    assert (metrics["nlu/num_examples"], metrics["validation/nlu/num_examples"]) == (
        profile.num_test,
        profile.num_validation,
    )
    best = client.get_model_version_by_alias(NAME, "best")
    assert best.source == adapter.uri
    assert json.loads(best.tags["lori.validation"])["score"] == metrics["validation/nlu/accuracy"]


def test_the_best_is_the_first_of_the_highest_on_the_same_rows(store: Store, tmp_path: Path) -> None:
    handles = [log_adapter(store, write_adapter(tmp_path / str(n), bytes([n])), key=f"train-v1-{n}") for n in range(4)]
    scores = [(60.0, "rows"), (70.0, "rows"), (70.0, "rows"), (90.0, "others")]
    best = []
    for seed, (handle, (score, rows)) in enumerate(zip(handles, scores, strict=True)):
        name = register(store, handle, f"seed-{seed}").removeprefix("models:/").partition("@")[0]
        tracking.promote_best(store.runtime, handle.uri, score=score, rows=rows)
        best.append(handles.index(next(h for h in handles if h.uri == best_of(store, name))))
    assert best == [0, 1, 1, 3]
    tracking.promote_best(store.runtime, handles[1].uri, score=50.0, rows="rows")  # scored again: now the third is
    assert best_of(store, name) == handles[2].uri


def best_of(store: Store, name: str) -> str:
    return client_of(store).get_model_version_by_alias(name, "best").source


def test_machines_that_score_at_once_agree_on_the_best(server: tuple[str, Path], tmp_path: Path) -> None:
    """Each with a cache, and so a lock, of its own."""
    uri, artifact_dir = server
    stores = [Store(Runtime(uri, str(tmp_path / str(machine)), "scoring"), artifact_dir) for machine in range(4)]
    handles = [
        log_adapter(stores[0], write_adapter(tmp_path / f"a{n}", bytes([n])), key=f"train-v1-{n}") for n in range(4)
    ]
    for n, handle in enumerate(handles):
        register(stores[0], handle, f"seed-{n}")

    def score(n: int) -> None:
        tracking.promote_best(stores[n].runtime, handles[n].uri, score=float(n), rows="rows")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(score, range(4)))
    assert best_of(stores[0], "scoring.lora") == handles[3].uri


def test_an_alias_that_another_machine_inserts_first_is_set_over_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow looks for the alias, then inserts it: of two that do so at once its database refuses one."""
    handle = log_adapter(store, write_adapter(tmp_path / "a", b"a"), key="train-v1-a")
    set_alias, refused = MlflowClient.set_registered_model_alias, []

    def too_late(client: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == "seed-0" and not refused:
            refused.append(version)
            raise RestException({"error_code": "BAD_REQUEST", "message": "(sqlite3.IntegrityError) UNIQUE constraint"})
        set_alias(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", too_late)
    name = register(store, handle, "seed-0").removeprefix("models:/").partition("@")[0]
    assert client_of(store).get_model_version_by_alias(name, "seed-0").version == refused[0]


@pytest.mark.parametrize(
    ("score", "error", "expected"),
    [(50.0, 2.0, "46.1 to 53.9"), (99.0, 1.0, "97.0 to 100.0"), (0.0, 0.0, "0.0 to 0.0")],  # ± 1.96 standard errors
)
def test_an_interval_is_of_95_percent_and_within_the_possible(score: float, error: float, expected: str) -> None:
    assert interval(score, error) == expected


def test_the_card_of_a_merge_names_its_parents_and_that_of_a_hub_base_its_commit() -> None:
    merged = {"adapter_method": "lori-d", "domains": "nlu,math", "method": "concat", "weights": (0.4, 0.4), "seed": 0}
    base = "llama-3-8b@8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"
    card = Card("merge", "lori-d-concat", "models:/m@seed-0", base, "llama3", merged, {"math/accuracy": 61.0})
    text = to_markdown(card)
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == "meta-llama/Meta-Llama-3-8B"
    assert header["license"] == "llama3"
    assert "**lori-d** adapters of nlu,math, merged by **concat**" in text
    assert 'from_pretrained("meta-llama/Meta-Llama-3-8B", revision="8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920")' in text
    assert "No score yet." in text  # one without its error is no result


def test_a_new_card_is_no_other_content(store: Store, tmp_path: Path) -> None:
    handle = log_adapter(store, write_adapter(tmp_path / "adapter"))
    for text in ("first", "second"):
        tracking.write_beside(store.runtime, handle.uri, "README.md", text)
        assert tracking.is_available(store.runtime, handle)
    assert (tracking.fetch(store.runtime, handle) / "README.md").read_text() == "second"


def register(store: Store, handle: Handle, alias: str = "seed-0") -> str:
    return tracking.register(store.runtime, handle.uri, f"{store.runtime.experiment}.lora", alias=alias, tags={})


def test_what_is_registered_again_has_one_version_and_what_is_newer_the_alias(store: Store, tmp_path: Path) -> None:
    first = log_adapter(store, write_adapter(tmp_path / "first"))
    second = log_adapter(store, write_adapter(tmp_path / "second", b"others"), key="train-v1-4567")
    addresses = {register(store, handle) for handle in (first, first, second)}
    (name,) = {address.removeprefix("models:/").partition("@")[0] for address in addresses}
    client = client_of(store)
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    assert client.get_model_version_by_alias(name, "seed-0").source == second.uri
    assert tracking.address_of(store.runtime, first.uri) == f"models:/{name}@seed-0"


def test_machines_that_register_at_once_make_one_version(server: tuple[str, Path], tmp_path: Path) -> None:
    """Each with a cache, and so a lock, of its own."""
    uri, artifact_dir = server
    stores = [Store(Runtime(uri, str(tmp_path / str(machine)), "racing"), artifact_dir) for machine in range(4)]
    handle = log_adapter(stores[0], write_adapter(tmp_path / "adapter"))
    with ThreadPoolExecutor(4) as pool:
        addresses = set(pool.map(lambda store: register(store, handle), stores))
    assert addresses == {"models:/racing.lora@seed-0"}
    assert len(MlflowClient(uri).search_model_versions("name = 'racing.lora'")) == 1


def test_what_a_run_read_is_among_its_inputs_by_our_digest(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store.runtime)
    rows = Handle("dataset", "k", "data-nlu-train", run_id, f"runs:/{run_id}/rows", "ab" * 32)
    for _ in range(2):
        tracking.link_dataset(store.runtime, run_id, rows, "train")
    (read,) = client_of(store).get_run(run_id).inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("data-nlu-train", ("ab" * 32)[:36])
    assert [(tag.key, tag.value) for tag in read.tags] == [("mlflow.data.context", "train")]
