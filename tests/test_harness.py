"""lm-evaluation-harness, with its own generation and answer filter, comes to our scores on our tasks."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.choices.domains import Example
from lori.config import EvalConfig
from lori.datasets.rows import make_rows
from lori.evaluation.answers import evaluate
from lori.evaluation.lm_eval_export import export_tasks
from lori.recipes.checked_profile import profile
from lori.recipes.configs import data_config, eval_config

SCALE = profile("scale")


def examples_of(domain: str, num: int) -> list[Example]:
    return make_rows(data_config(SCALE, domain, "test"))[:num]


def true_or_false(num: int) -> list[Example]:
    """Two sets of the paper's form, of unequal sizes."""
    rows = [row for row in examples_of("nlu", 300) if set(row.answer["choices"]) == {"true", "false"}][:num]
    return [
        replace(row, family="even" if n % 4 else "odd", answer={**row.answer, "whole_words": False})
        for n, row in enumerate(rows)
    ]


def both(examples: Sequence[Example], config: EvalConfig, out: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Our metrics, and the harness's results by task."""
    os.environ["HF_DATASETS_CACHE"] = str(out / "cache")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = load_base(BASE_MODELS["scale"]), load_tokenizer(BASE_MODELS["scale"])
    metrics, _ = evaluate(model, tokenizer, examples, config)
    names = export_tasks(examples, config, out)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32, add_bos_token=True)
    tasks = TaskManager(include_path=str(out), include_defaults=False)
    results = simple_evaluate(model=harness, tasks=names[-1:], task_manager=tasks, bootstrap_iters=0)
    assert results
    return metrics, {**results["results"], **results.get("groups", {})}


def test_nlu_is_the_same_mean_of_sets(tmp_path: Path) -> None:
    ours, theirs = both(true_or_false(24), eval_config(SCALE, "nlu"), tmp_path)
    assert 0 < ours["nlu/accuracy"] < 100
    for family in ("odd", "even"):
        assert 100 * theirs[f"lori_nlu_{family}"]["exact_match,first_match"] == pytest.approx(ours[f"nlu/{family}"])
    assert 100 * theirs["lori_nlu"]["exact_match,first_match"] == pytest.approx(ours["nlu/accuracy"])


def test_math_is_the_same_accuracy(tmp_path: Path) -> None:
    ours, theirs = both(examples_of("math", 40), eval_config(SCALE, "math"), tmp_path)
    assert 0 < ours["math/accuracy"] < 100
    assert theirs["lori_math"]["accuracy,none"] == pytest.approx(ours["math/accuracy"])


def test_safety_is_the_same_refusal_rate(tmp_path: Path) -> None:
    ours, theirs = both(examples_of("safety", 30), eval_config(SCALE, "safety"), tmp_path)
    assert 0 < ours["safety/refusal_rate"] < 100
    assert theirs["lori_safety"]["refusal_rate,none"] == pytest.approx(ours["safety/refusal_rate"])


def test_a_sampled_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="code is sampled and is not exported"):
        export_tasks([], eval_config(SCALE, "code"), tmp_path)
