"""Many runs and models that are read together."""

from mlflow import MlflowClient
from stores import Store, open_run

from tasks.tracking import reading
from tasks.tracking.reading import read_models, read_runs


def test_runs_are_read_together_as_they_are_now(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(reading, "TOGETHER", 4)  # of six: two requests
    runtime, client = store.runtime, MlflowClient(store.runtime.tracking_uri)
    run_ids = [open_run(runtime, f"train-v1-{number}") for number in range(6)]
    client.delete_run(run_ids[0])
    for value in ("first", "second"):
        for run_id in run_ids[1:]:
            client.set_tag(run_id, "now", value)
        found = read_runs(runtime, run_ids)
        assert set(found) == set(run_ids)
        assert {run.data.tags["now"] for run in found.values() if run.info.lifecycle_stage == "active"} == {value}
        assert found[run_ids[0]].info.lifecycle_stage == "deleted"


def test_what_the_experiment_does_not_have_is_left_out(store: Store) -> None:
    runtime, client = store.runtime, MlflowClient(store.runtime.tracking_uri)
    experiment_id = client.create_experiment(f"{runtime.experiment}-other")
    run_id = client.create_run(experiment_id).info.run_id
    model_id = client.create_logged_model(experiment_id).model_id
    assert read_runs(runtime, [run_id, "0" * 32]) == {}
    assert read_models(runtime, [model_id, "m-0"]) == {}
    assert read_runs(runtime, []) == {}
