"""The flows on the smoke profile: a real Prefect API, a real MLflow store, real training."""

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from prefect.exceptions import FailedRun
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH

import tasks.evaluate
from flows.deployments import ablate, full_paper, scout, sweep
from helpers.reports import report_of
from helpers.waiting import wait_until
from lori.evaluation.scoring import SCORERS
from tasks import tracking
from tasks.engine import pool, prefetch
from tasks.engine.locks import FlockLocks
from tasks.engine.steps import STEPS
from tasks.machine import ROOT, experiment_of, local_runtime
from tasks.results import Handle, Runtime
from tasks.tracking import MlflowException, provenance

Computed = Callable[[], list[str]]
adapt = partial(full_paper, tables=["single"])


@pytest.fixture(scope="module")
def paper(state_dir: Path) -> dict[str, int]:
    """The smoke profile, once for all tests of this file."""
    return full_paper(profile="smoke")


def test_the_paper_flow_computes_every_kind_of_stage_and_reports_its_three_tables(paper: dict[str, int]) -> None:
    report = report_of("smoke")
    assert paper["computed"] > 40
    assert paper["cached"] == 0
    for title in ("One adapter per domain", "merged into one", "Continual learning", "lori-s", "ties"):
        assert title in report


def test_keys_and_bytes_are_what_they_were(paper: dict[str, int]) -> None:
    """`goldens.json` is from the commit before the modules were moved: it changes with a step's version alone."""
    full_paper(profile="scale", tables=["single"], domains=["nlu"], methods=["lori-s"])
    goldens = json.loads((ROOT / "tests" / "goldens.json").read_text())
    is_same_cpu = goldens["cpu"] == f"{provenance()['lori.cpu']}, {torch.backends.cpu.get_cpu_capability()}"
    for profile, (key, sha256) in [(name, golden) for name in ("smoke", "scale") for golden in goldens[name].items()]:
        handle = tracking.find_handle(local_runtime(Runtime(experiment=experiment_of(profile))), key)
        assert handle, key
        if is_same_cpu or handle.kind == "dataset":  # the last bits of a sum are a kind of CPU's own
            assert handle.sha256 == sha256, handle.name


def test_a_second_run_computes_nothing_and_says_so(paper: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert full_paper(profile="smoke") == {"computed": 0, "cached": paper["computed"]}
    assert f"Nothing to do: all {paper['computed']} cells cached" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_what_is_cached_is_looked_up_together_for_as_long_as_that_is_new(
    paper: dict[str, int], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[Handle] = []
    is_available = tracking.is_available

    def look_up(runtime: Runtime, handle: Handle) -> bool:
        looked_up.append(handle)
        return is_available(runtime, handle)

    monkeypatch.setattr(prefetch, "FRESH_SECONDS", seconds)
    monkeypatch.setattr(tracking, "is_available", look_up)
    assert full_paper(profile="smoke") == {"computed": 0, "cached": paper["computed"]}
    assert len(looked_up) == (0 if seconds else paper["computed"])


def test_a_cell_that_is_computed_again_elsewhere_keeps_no_other_waiting(
    paper: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    record = min(Path(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value()).glob("interference-*"))
    locks, seen = FlockLocks(), []
    assert locks.acquire_lock(record.name, "another flow")

    def let_go_when_the_others_are_there() -> None:
        def all_but_one() -> bool:
            seen.extend(capsys.readouterr().out.splitlines())
            return sum("  cached" in line for line in seen) == paper["computed"] - 1

        wait_until(all_but_one, "for the other cells")
        locks.release_lock(record.name, "another flow")

    other = threading.Thread(target=let_go_when_the_others_are_there)
    other.start()
    assert full_paper(profile="smoke") == {"computed": 0, "cached": paper["computed"]}
    other.join()
    assert sum("  cached" in line for line in seen) == paper["computed"] - 1


def test_an_mlflow_that_fails_while_all_is_looked_up_fails_no_study(
    paper: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[bool]:
        raise MlflowException("away")

    monkeypatch.setattr(tracking, "are_available", fail)
    assert full_paper(profile="smoke") == {"computed": 0, "cached": paper["computed"]}


def test_a_scout_finds_the_paper_done_and_under_another_profile_not(paper: dict[str, int]) -> None:
    (done,) = scout(source=None, base_models=["scale"], profile="smoke")
    (other,) = scout(source=None, base_models=["scale"], profile="scale")
    assert (done["action"], other["action"]) == ("done", "would start")


def test_another_sparsity_trains_only_what_the_mask_touches_again(paper: dict[str, int], computed: Computed) -> None:
    adapt(profile="smoke", domains=["nlu"], sparsity=0.5)
    assert computed() == [
        "compare all rows",
        "evaluate lori-s nlu  seed 0  4 steps sparsity 0.5  on nlu",
        "evaluate lori-s nlu  seed 0  4 steps sparsity 0.5  on nlu validation",
        "mask lori-d nlu  seed 0  4 steps  sparsity 0.5 model",
        "train lori-s nlu  seed 0  4 steps sparsity 0.5",
    ]


def test_an_ablation_trains_what_its_setting_changes_and_compares_it_with_the_usual(
    paper: dict[str, int], computed: Computed
) -> None:
    done = ablate(profile="smoke", domains=["nlu"], sparsities=[0.8, 0.9], scopes=[], ranks=[], calibration_rows=[])
    assert computed() == [
        "compare all rows",
        "evaluate lori-s nlu  seed 0  4 steps sparsity 0.8  on nlu",
        "mask lori-d nlu  seed 0  4 steps  sparsity 0.8 model",
        "train lori-s nlu  seed 0  4 steps sparsity 0.8",
    ]
    assert done["cached"] > 0
    client = MlflowClient(local_runtime().tracking_uri)
    experiment = client.get_experiment_by_name("lori-smoke")
    assert experiment
    results = client.search_runs([experiment.experiment_id], "tags.`lori.suite` = 'ablations'")
    assert {run.data.params["value"]: run.data.params["sparsity"] for run in results} == {"0.8": "0.8", "0.9": "0.9"}
    (intervals,) = client.search_runs(
        [experiment.experiment_id], "tags.`lori.role` = 'intervals'", order_by=["start_time DESC"], max_results=1
    )
    assert intervals.data.params["pairs"] == "['lori-s sparsity 0.8 − lori-s sparsity 0.9']"


def test_a_run_begins_with_what_is_to_come(paper: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    adapt(profile="smoke", domains=["nlu"], methods=["lora", "full"], refresh=["train full"])
    outlook = capsys.readouterr().out.partition("\n")[0]  # rows of three splits, two adapters, two scores of each
    assert outlook.startswith(
        "10 cells, 6 of them cached. To compute, unless MLflow has it: 1 train, 2 evaluate, 1 compare; 0:00:"
    )
    assert outlook.endswith(" at the pace of the cached train, evaluate.")


def test_a_sweep_tries_each_rate_on_validation_rows_and_records_the_best(
    paper: dict[str, int], computed: Computed
) -> None:
    sweep(profile="smoke", domains=["nlu"], methods=["base", "lori-d"], factors=[0.5, 1])
    assert computed() == [
        "evaluate lori-d nlu  seed 0  4 steps rate 0.005  on nlu validation",
        "train lori-d nlu  seed 0  4 steps rate 0.005",
    ]
    client = MlflowClient(local_runtime().tracking_uri)
    experiment = client.get_experiment_by_name("lori-smoke")
    assert experiment
    results = client.search_runs([experiment.experiment_id], "tags.`lori.suite` = 'sweep'")
    found = {run.data.params["rate"]: run.data.params for run in results}
    assert {rate: params["factor"] for rate, params in found.items()} == {"0.005": "0.5", "0.01": "1"}
    metrics = {run.data.params["rate"]: run.data.metrics for run in results}
    (chosen,) = [measured["mean"] for measured in metrics.values() if measured["chosen"]]
    assert chosen == max(measured["mean"] for measured in metrics.values())


def test_what_was_deleted_from_mlflow_is_made_again_and_nothing_else(
    paper: dict[str, int], computed: Computed
) -> None:
    client = MlflowClient(local_runtime().tracking_uri)
    experiment = client.get_experiment_by_name("lori-smoke")
    assert experiment
    query = "tags.`lori.role` = 'train' and tags.`lori.method` = 'lora' and tags.`lori.domain` = 'nlu'"
    (run,) = client.search_runs([experiment.experiment_id], query)
    (model,) = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
    client.delete_logged_model(model.model_id)

    adapt(profile="smoke", domains=["nlu"], methods=["lora", "dora"])
    assert computed() == ["compare all rows", "train lora nlu  seed 0  4 steps"]  # these two were not compared before
    adapt(profile="smoke", domains=["nlu"], methods=["lora", "dora"])
    assert computed() == []


def test_a_record_that_was_cut_short_is_made_again_once(paper: dict[str, int], computed: Computed) -> None:
    records = Path(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value())
    before = set(records.glob("train-*"))
    adapt(profile="smoke", domains=["nlu"], methods=["lora"], seeds=[5])
    (record,) = set(records.glob("train-*")) - before
    record.write_bytes(b"")
    adapt(profile="smoke", domains=["nlu"], methods=["lora"], seeds=[5])
    adapt(profile="smoke", domains=["nlu"], methods=["lora"], seeds=[5])
    assert computed().count("train lora nlu  seed 5  4 steps") == 2  # at first, and after the cut


def test_a_bug_is_not_retried_and_the_other_cells_go_on(
    paper: dict[str, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STEPS, "merge", replace(STEPS["merge"], body=f"{__name__}:broken_merge", version=9))
    BROKEN.clear()
    with pytest.raises(FailedRun, match="merge lora ties  seed 0  4 steps: ZeroDivisionError"):
        full_paper(profile="smoke", merge_methods=["ties"])
    printed = capsys.readouterr().out
    assert len(BROKEN) == 3  # lora, dora, lori-s: each once
    assert "not started: a cell that it needs failed" in printed
    assert "in broken_merge" in printed  # the traceback
    assert "evaluate lori-s nlu  seed 0  4 steps  on nlu  cached" in printed
    assert "One adapter per domain" in report_of("smoke")
    assert "merged into one" not in report_of("smoke")
    assert "| lori-s − lora |" in report_of("smoke")  # the rows that are there are compared


def test_completions_whose_scoring_failed_are_scored_and_not_made_again(
    paper: dict[str, int], monkeypatch: pytest.MonkeyPatch, computed: Computed
) -> None:
    chosen = {"domains": ["nlu"], "methods": ["base"], "eval_batch_size": 7}
    with monkeypatch.context() as patched:
        patched.setitem(SCORERS, "nlu", replace(SCORERS["nlu"], summarise=broken_summary))
        with pytest.raises(FailedRun, match="evaluate base nlu  seed 0  on nlu: ZeroDivisionError"):
            adapt(profile="smoke", **chosen)
    computed()
    monkeypatch.setattr(tasks.evaluate, "load_base", None)  # what generates would call it
    adapt(profile="smoke", **chosen)
    assert computed() == ["evaluate base nlu  seed 0  on nlu"]


def broken_summary(*_: object) -> None:
    raise ZeroDivisionError("a bug")


def test_a_cell_that_is_to_be_refreshed_is_computed_with_what_reads_it(
    paper: dict[str, int], computed: Computed
) -> None:
    adapt(profile="smoke", domains=["nlu"], methods=["lora"], refresh=["train lora"])
    assert computed() == [
        "evaluate lora nlu  seed 0  4 steps  on nlu",
        "evaluate lora nlu  seed 0  4 steps  on nlu validation",
        "train lora nlu  seed 0  4 steps",
    ]
    adapt(profile="smoke", domains=["nlu"], methods=["lora"], refresh=["all"])
    assert len(computed()) == 6  # its rows of three splits, it, and its scores on two
    adapt(profile="smoke", domains=["nlu"], methods=["lora"])
    assert computed() == []


def test_what_lost_its_record_in_prefect_is_found_in_mlflow(
    paper: dict[str, int], monkeypatch: pytest.MonkeyPatch, computed: Computed
) -> None:
    records = Path(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value())
    for record in records.glob("train-*"):
        record.unlink()
    monkeypatch.setitem(STEPS, "train", replace(STEPS["train"], body=f"{__name__}:broken_merge"))
    adapt(profile="smoke", domains=["nlu"], methods=["lora"])  # no body of a training runs


BROKEN: list[str] = []


def broken_merge(config: object, *, key: str, **inputs: object) -> None:
    BROKEN.append(key)
    raise ZeroDivisionError("a bug")


def test_a_killed_worker_is_replaced_and_its_cell_tried_again(
    paper: dict[str, int], monkeypatch: pytest.MonkeyPatch, computed: Computed
) -> None:
    monkeypatch.setenv("LORI_EXECUTOR", "pool")
    monkeypatch.setenv("LORI_WORKERS", "1")
    killed: list[int] = []

    def kill_the_first_busy_worker() -> None:
        busy = wait_until(lambda: pool.shared_pool().busy, "for a busy worker")
        busy[0].process.send_signal(signal.SIGKILL)
        killed.append(busy[0].process.pid)

    killer = threading.Thread(target=kill_the_first_busy_worker)
    killer.start()
    adapt(profile="smoke", domains=["nlu"], methods=["lora"], rank=2)
    killer.join()
    pool.close_shared_pool()
    assert killed
    assert computed() == [
        "evaluate lora nlu  seed 0  4 steps  on nlu",
        "evaluate lora nlu  seed 0  4 steps  on nlu validation",
        "train lora nlu  seed 0  4 steps",
    ]
