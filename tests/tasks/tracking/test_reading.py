"""Many threads that look for runs at the same time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from helpers.stores import Store, open_run
from tasks.tracking.reading import run_reader


def test_each_of_many_threads_gets_the_run_that_it_asked_for_as_it_is_now(store: Store) -> None:
    runtime, client = store.runtime, MlflowClient(store.runtime.tracking_uri)
    run_ids = [open_run(runtime, f"train-v1-{number}") for number in range(6)]
    client.delete_run(run_ids[0])
    reader = run_reader(runtime.tracking_uri, runtime.experiment)
    with ThreadPoolExecutor(24) as threads:
        for value in ("first", "second"):
            for run_id in run_ids[1:]:
                client.set_tag(run_id, "now", value)
            asked = run_ids * 4
            found = list(threads.map(reader.read, asked))
            assert [run.info.run_id for run in found] == asked
            assert {run.data.tags["now"] for run in found if run.info.lifecycle_stage == "active"} == {value}
            assert found[0].info.lifecycle_stage == "deleted"


def test_a_run_of_another_experiment_is_found_and_an_unknown_one_is_not(store: Store) -> None:
    runtime, client = store.runtime, MlflowClient(store.runtime.tracking_uri)
    other = client.create_run(client.create_experiment(f"{runtime.experiment}-other")).info.run_id
    reader = run_reader(runtime.tracking_uri, runtime.experiment)
    assert reader.read(other).info.run_id == other
    with pytest.raises(MlflowException, match="not found"):
        reader.read("0" * 32)
