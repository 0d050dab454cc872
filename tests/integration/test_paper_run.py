"""The paper's recipe on real rows, small: four domains and every method, through the flows that an 8B base takes.

The base is a random Llama of two layers with a tokenizer trained on the rows, so that the scores mean nothing.
"""

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.deployments import full_paper
from flows.study.run import prepare_study
from helpers.rows import real_data_dir
from helpers.small_base import small_llama
from lori.choices.domains import DOMAINS
from lori.choices.hardware import Hardware
from lori.choices.methods import METHODS
from tasks.machine import local_runtime

Computed = Callable[[], list[str]]
adapt = partial(full_paper, tables=["single"])
WRONG_HARDWARE = [
    ({"plan_only": True}, "Name the GPU to plan for"),
    (
        {"hardware": Hardware(gpu="h100", num_gpus=0), "plan_only": True},
        "num_gpus and micro_batch_tokens are 1 or more",
    ),
    ({"hardware": Hardware(gpu="cpu", num_gpus=2)}, "LORI_EXECUTOR=inline trains on one GPU, not 2"),
]
NLU_SETS = ("boolq", "piqa", "social_i_qa", "arc-challenge", "arc-easy", "openbookqa", "hellaswag", "winogrande")


@pytest.fixture(scope="module")
def place(state_dir: Path) -> dict[str, str]:
    """Where the rows and the base are."""
    data_dir = real_data_dir(state_dir / "rows")
    return {"data_dir": str(data_dir), "base_model": str(small_llama(state_dir / "bases" / "tiny", data_dir))}


PAPERS = ["base", "lori-d", "lori-s"]  # on all domains, with merges and continual learning


@pytest.fixture(scope="module")
def outcome(place: dict[str, str]) -> dict[str, int]:
    """All of the paper for LoRI; every other method on one domain."""
    done = full_paper(profile="paper-smoke", merge_methods=["concat"], methods=PAPERS, **place)
    others = [name for name in METHODS if name not in PAPERS]
    adapt(profile="paper-smoke", methods=others, domains=["math"], **place)
    return done


def scores(method: str, domain: str) -> list[dict]:
    client = MlflowClient(local_runtime().tracking_uri)
    experiment = client.get_experiment_by_name("lori-paper-smoke")
    query = f"tags.`lori.role` = 'train' and tags.`lori.method` = '{method}' and tags.`lori.domain` = '{domain}'"
    return [run.data.metrics for run in client.search_runs([experiment.experiment_id], query)]


def test_every_method_is_trained_and_scored_and_the_papers_on_every_domain(outcome: dict[str, int]) -> None:
    assert outcome["cached"] == 0
    for method, domain in [*product(PAPERS, DOMAINS), *product(METHODS, ["math"])]:
        assert any(DOMAINS[domain].headline in metrics for metrics in scores(method, domain)), (method, domain)


def test_every_row_of_all_eight_sets_is_scored(outcome: dict[str, int]) -> None:
    (metrics, *_) = scores("lori-d", "nlu")
    assert metrics["nlu/num_examples"] == len(NLU_SETS)  # the profile tests one row of each
    assert all(f"nlu/{family}" in metrics for family in NLU_SETS)
    assert "safety/over_refusal_rate" in scores("lori-d", "safety")[0]


def test_a_second_run_finds_everything_and_another_place_is_no_other_result(
    outcome: dict[str, int], place: dict[str, str], tmp_path: Path, computed: Computed
) -> None:
    moved = tmp_path / "tiny"
    moved.symlink_to(place["base_model"])
    adapt(profile="paper-smoke", methods=["lora"], domains=["math"], base_model=str(moved), data_dir=place["data_dir"])
    assert computed() == []


def test_one_other_row_is_another_dataset(
    outcome: dict[str, int], place: dict[str, str], tmp_path: Path, computed: Computed
) -> None:
    other = tmp_path / "rows"
    for path in Path(place["data_dir"]).rglob("*"):
        if path.is_file():
            copy = other / path.relative_to(place["data_dir"])
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    lines = (other / "gsm8k" / "test.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "question": first["question"] + " "})
    (other / "gsm8k" / "test.jsonl").write_text("\n".join(lines))
    adapt(profile="paper-smoke", methods=["lora"], domains=["math"], **{**place, "data_dir": str(other)})
    assert computed() == ["dataset math test  1 rows", "evaluate lora math  seed 0  3 steps  on math"]


def test_the_authors_prompts_are_other_rows(
    outcome: dict[str, int], place: dict[str, str], computed: Computed
) -> None:
    adapt(profile="paper-smoke", methods=["base"], domains=["nlu"], prompt_style="authors", **place)
    assert "dataset nlu test  1 rows" in computed()


def test_a_plan_computes_nothing_and_counts_what_trains(
    place: dict[str, str], capsys: pytest.CaptureFixture[str], computed: Computed
) -> None:
    adapt(
        profile="paper-smoke",
        methods=["lori-d", "lori-s"],
        seeds=[7],
        plan_only=True,
        hardware=Hardware(gpu="cpu"),
        **place,
    )
    printed = capsys.readouterr().out
    assert "lori-s" in printed
    # B of the small base: 2 layers, rank 4, d_out of q, k, v, o, gate, up and down
    assert f"{2 * 4 * (32 + 32 + 32 + 32 + 64 + 64 + 32):,}" in printed


def test_what_cannot_be_used_is_said_before_anything_is_computed(place: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Exception, match="gsm8k"):
        adapt(profile="paper-smoke", domains=["math"], **{**place, "data_dir": str(empty)})
    for wrong, message in WRONG_HARDWARE:
        with pytest.raises(ValueError, match=message):
            adapt(profile="paper-smoke", domains=["math"], **wrong, **place)
    with pytest.raises(ValueError, match=r"tiny has a context of 2048 tokens; math needs 512 .* and 2000 to generate"):
        prepare_study("paper-smoke", domains=["math"], max_new_tokens=2000, **place)
    with pytest.raises(ValueError, match="Unknown base model"):
        adapt(profile="paper-smoke", **{**place, "base_model": "nobody-has-this"})
    with get_client(sync_client=True) as client:
        (refused,) = [run for run in client.read_flow_runs() if run.name == "lori paper-smoke nobody-has-this"]
        cells = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[refused.id])))
    assert cells == []
