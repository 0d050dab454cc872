"""Result rows, and the views that show them with their filters, columns and charts."""

import base64
import json
import zlib
from itertools import combinations
from math import dist
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.colors import to_rgb
from mlflow import MlflowClient

from helpers.stores import Store, client_of, log_adapter, runs_of, write_adapter
from lori.choices.methods import METHODS
from tasks import tracking
from tasks.machine import ROOT
from tasks.report.mlflow_rows import log_rows
from tasks.report.table import Estimate, Table

VIEWS = yaml.safe_load((ROOT / "mlflow/views.yaml").read_text())


def row_tables(mean: float, uri: str) -> dict[str, Table]:
    estimate = Estimate(mean, 1.23456, 1)
    rows = [{"method": "lora", "merge": "concat", "weights": "0.5", "num_trainable": 8, "mean": estimate}]
    return {"merging": Table("Merged", {"method": "Method"}, rows, [[uri]])}


ABOUT = {"name": "smoke", "base_model": "scale@1", "rank": 8, "sparsity": 0.9, "scope": "model", "seeds": [0]}


def test_a_row_of_a_table_is_one_run_with_its_adapters_however_often_it_is_logged(
    store: Store, tmp_path: Path
) -> None:
    handle = log_adapter(store, write_adapter(tmp_path / "adapter"))
    for mean in (43.21987, 43.21987, 44.0):
        log_rows(row_tables(mean, handle.uri), ABOUT, store.runtime)
        (run,) = [run for run in runs_of(store) if run.data.tags["lori.role"] == "result"]
        assert run.data.metrics == {"mean": round(mean, 2), "mean_se": 1.23, "num_trainable": 8.0}
    assert run.info.run_name == "lora · concat"
    assert run.data.tags["mlflow.runColor"] == VIEWS["colours"]["lora"]
    read = client_of(store).get_run(run.info.run_id).inputs.model_inputs  # a search gives none
    assert [model.model_id for model in read] == [handle.uri.removeprefix("models:/")]
    assert run.data.params["weights"] == "0.5"


def test_every_method_has_a_colour_of_its_own() -> None:
    colours = VIEWS["colours"]
    assert set(colours) == set(METHODS)
    for one, other in combinations(map(to_rgb, colours.values()), 2):
        assert dist(one, other) > 0.15, (one, other)  # of √3 from black to white: to be told apart in one chart


def test_a_row_that_is_there_as_it_is_costs_no_write(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = row_tables(43.0, log_adapter(store, write_adapter(tmp_path / "adapter")).uri)
    log_rows(tables, ABOUT, store.runtime)
    monkeypatch.setattr(MlflowClient, "log_batch", None)
    log_rows(tables, ABOUT, store.runtime)


def tags_of(store: Store) -> dict[str, str]:
    return client_of(store).get_experiment_by_name(store.runtime.experiment).tags


def state_of(tags: dict[str, str], view: str) -> dict[str, Any]:
    """As MLflow's page reads it."""
    packed = json.loads(tags[f"mlflow.sharedViewState.{view}"])["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_views_say_their_filter_columns_and_charts_in_the_order_of_the_file(store: Store) -> None:
    tracking.provision_views(store.runtime)
    tags = tags_of(store)
    views = {name: json.loads(tags[f"mlflow.sharedViewState.{name}"]) for name in VIEWS["views"]}
    newest_first = sorted(views, key=lambda name: -views[name]["createdAt"])
    assert newest_first == list(VIEWS["views"])
    state = state_of(tags, "lori-merging")
    assert state["searchFilter"] == "tags.`lori.role` = 'result' and tags.`lori.suite` = 'merging'"
    assert state["selectedColumns"][:3] == ["params.`method`", "params.`merge`", "params.`weights`"]
    assert state["orderByKey"] == "metrics.`mean`"
    assert [chart["metricKey"] for chart in state["compareRunCharts"]][:2] == ["mean", "nlu/accuracy"]
    assert all(name in tags["mlflow.note.content"] for name in ("01 Single-task", "06 Base models"))


def test_every_filter_is_one_that_mlflow_takes(store: Store, tmp_path: Path) -> None:
    tracking.provision_views(store.runtime)
    log_rows(row_tables(1.0, log_adapter(store, write_adapter(tmp_path / "adapter")).uri), ABOUT, store.runtime)
    experiment = client_of(store).get_experiment_by_name(store.runtime.experiment)
    found = {
        name: len(
            client_of(store).search_runs([experiment.experiment_id], state_of(experiment.tags, name)["searchFilter"])
        )
        for name in VIEWS["views"]
    }
    assert found["lori-merging"] == found["lori-ablations"] == found["lori-bases"] == 1
    assert found["lori-single"] == found["lori-continual"] == 0


def test_a_view_that_somebody_changed_or_deleted_stays_so(store: Store) -> None:
    tracking.provision_views(store.runtime)
    client, experiment = client_of(store), client_of(store).get_experiment_by_name(store.runtime.experiment)
    changed, deleted = "mlflow.sharedViewState.lori-single", "mlflow.sharedViewState.lori-curves"
    theirs = json.dumps({"name": "mine", "createdAt": 1, "state": "deflate;eJyrrgUAAXUA+Q=="})
    client.set_experiment_tag(experiment.experiment_id, changed, theirs)
    client.delete_experiment_tag(experiment.experiment_id, deleted)
    tracking.provision_views(store.runtime, ["another/metric"])  # which changes every state of ours
    tags = tags_of(store)
    assert tags[changed] == theirs
    assert deleted not in tags
    hidden = [chart for chart in state_of(tags, "lori-merging")["compareRunCharts"] if chart["deleted"]]
    assert [chart["metricKey"] for chart in hidden] == ["another/metric"]


def test_a_server_gives_each_view_a_link(store: Store) -> None:
    tracking.provision_views(store.runtime)
    links = tracking.view_links(store.runtime)
    if not store.runtime.tracking_uri.startswith("http"):
        assert links == {}
        return
    experiment = client_of(store).get_experiment_by_name(store.runtime.experiment)
    assert links["02 Merging"] == (
        f"{store.runtime.tracking_uri}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
        "&viewStateShareKey=lori-merging&compareRunsMode=TABLE"
    )
