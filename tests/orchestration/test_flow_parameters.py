"""What a study is asked for is checked before anything starts."""

from pathlib import Path

import pytest
from prefect import Flow
from prefect.exceptions import ParameterTypeError

from flows.deployments import ablate, full_paper, sweep
from flows.study.run import prepare_study
from lori.choices.hardware import Hardware
from tasks.tracking import TrackingUnavailable


def test_a_sweep_without_validation_rows_is_refused(state_dir: Path) -> None:
    with pytest.raises(ValueError, match="no validation rows"):
        sweep(profile="paper-smoke", base_model="scale")


def test_a_wrong_setting_of_an_ablation_is_refused_before_anything_starts(state_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"0 <= sparsity < 1"):
        ablate(profile="smoke", sparsities=[0.5, 1.0])
    with pytest.raises(ValueError, match=r"continual_rows are a batch of 16 or more, not 3"):
        ablate(profile="smoke", continual_rows=[3])
    with pytest.raises(ValueError, match="There is no weight for merging rslora by "):
        ablate(profile="smoke", methods=["rslora"])


def test_a_flow_that_has_nothing_to_do_says_so_instead_of_completing(state_dir: Path) -> None:
    with pytest.raises(ValueError, match="no row of a table"):
        full_paper(profile="smoke", tables=["continual"], domains=["nlu"])


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("profile", "huge"),
        ("base_model", "llama-9"),
        ("domains", ["nlu", "cooking"]),
        ("methods", ["lorax"]),
        ("merge_methods", ["average"]),
        ("scope", "neuron"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(parameter: str, value: object) -> None:
    with pytest.raises(ValueError, match="Known: "):
        prepare_study(**{"profile": "smoke", parameter: value})


@pytest.mark.parametrize("flow", [full_paper, ablate], ids=lambda flow: flow.name)
def test_every_study_takes_the_rates_that_a_sweep_chose(flow: Flow, state_dir: Path) -> None:
    with pytest.raises(ValueError, match="The learning rate of lora is a positive number, not 0"):
        flow(profile="smoke", learning_rates={"lora": 0.0})


def test_without_mlflow_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingUnavailable, match=r"No MLflow server answers at http://127\.0\.0\.1:9 .*`make serve`"):
        prepare_study("smoke")


def test_a_flow_run_with_an_unknown_name_fails_with_that_sentence(state_dir: Path) -> None:
    with pytest.raises(ParameterTypeError, match=r"methods\.0: Input should be 'base', 'full', 'lora'"):
        full_paper(profile="smoke", methods=["lorax"])


def test_a_learning_rate_that_nothing_trains_at_is_said(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LoRI-D gives LoRI-S its mask; a control has what it controls for its recipe."""
    rates = dict.fromkeys(["lora", "lori-d", "lori-s", "lori-d-trained-a"], 0.01)
    study = {"profile": "smoke", "domains": ["nlu"], "learning_rates": rates}
    for method in ("lori-s", "lori-s-random-mask"):
        full_paper(tables=["single"], **study, methods=[method], plan_only=True, hardware=Hardware(gpu="h100"))
        (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("learning_rates")]
        assert said == "learning_rates changes nothing here for lora, lori-d-trained-a: not trained in this study."


def test_a_cell_to_refresh_that_does_not_exist_is_refused_before_anything_runs(state_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"refresh names no cell of this study: train lorax\. It takes `all`, a step"):
        full_paper(tables=["single"], profile="smoke", domains=["nlu"], methods=["lora"], refresh=["train lorax"])
