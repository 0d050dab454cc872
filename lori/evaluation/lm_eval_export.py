"""The greedy benchmarks as tasks of lm-evaluation-harness, so that its numbers can be held against ours.

    lm_eval --model hf --model_args pretrained=…,peft=…,add_bos_token=True --include_path OUT --tasks lori_nlu

`add_bos_token` is the config's `add_bos`. Rows and prompts are ours, byte for byte; generation is the harness's, and
so is how an nlu answer is found (a regex filter). Scores are the same where no prompt is cut: one that evaluation cuts
(`num_cut_prompts`) is whole there. HumanEval is not exported: the harness runs programs outside of a sandbox.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lori.choices.domains import Example
from lori.config import EvalConfig

FUNCTIONS = '''\
"""What the exported tasks call."""

from lori.choices.domains import Example
from lori.evaluation.scoring import SCORERS


def prompt(doc):
    return doc["prompt"]


def correct_number(doc, results):
    (score,) = SCORERS["math"].score([Example(**doc)], [results])
    return {"accuracy": 100.0 * score["correct"]}


def refused(doc, results):
    (score,) = SCORERS["safety"].score([Example(**doc)], [results])
    return {"refusal_rate": 100.0 * score["refused"]}
'''


class _Function(str):
    """Written as `!function name`, which the harness resolves beside the YAML file."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", f"functions.{name}"))


def export_tasks(examples: Sequence[Example], config: EvalConfig, out: Path) -> list[str]:
    """Write the tasks of `config.domain` to `out`; their names, the last of which stands for the domain.

    Raises:
        ValueError: for a domain that is sampled, which the harness's greedy tasks can't score.
    """
    if config.num_samples > 1 or config.temperature > 0:
        raise ValueError(f"{config.domain} is sampled and is not exported: score it with `lori.evaluation.answers`.")
    out.mkdir(parents=True, exist_ok=True)
    (out / "functions.py").write_text(FUNCTIONS)
    if config.domain == "nlu":
        return _export_nlu(examples, config, out)
    function, metric = ("correct_number", "accuracy") if config.domain == "math" else ("refused", "refusal_rate")
    scored = [row for row in examples if config.domain != "safety" or row.answer["harmful"]]
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]
    how = {"process_results": _Function(function), "metric_list": metrics}
    return [_write_task(f"lori_{config.domain}", scored, config, out, how)]


def _export_nlu(examples: Sequence[Example], config: EvalConfig, out: Path) -> list[str]:
    families: dict[str, list[Example]] = {}
    for example in examples:
        families.setdefault(example.family, []).append(example)
    names = []
    for family, rows in families.items():
        pattern = f"({'|'.join(rows[0].answer['choices'])})"
        find = [{"function": "regex", "regex_pattern": pattern, "group_select": 0}, {"function": "take_first"}]
        how = {
            "filter_list": [{"name": "first_match", "filter": find}],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
        names.append(_write_task(f"lori_nlu_{family}", rows, config, out, how))
    # Sets count alike, whatever their sizes: the paper's mean
    mean = [{"metric": "exact_match", "aggregation": "mean", "weight_by_size": False, "filter_list": "first_match"}]
    _write_yaml(out / "lori_nlu.yaml", {"group": "lori_nlu", "task": names, "aggregate_metric_list": mean})
    return [*names, "lori_nlu"]


def _write_task(name: str, rows: Sequence[Example], config: EvalConfig, out: Path, how: dict[str, Any]) -> str:
    path = out / f"{name}.jsonl"
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": _Function("prompt"),
        "doc_to_target": "{{answer.correct}}" if config.domain == "nlu" else "",
        "target_delimiter": "",
        # Nothing but the end token stops it: what follows an answer changes no score
        "generation_kwargs": {"until": [], "max_gen_toks": config.max_new_tokens, "do_sample": False},
        **how,
    }
    _write_yaml(out / f"{name}.yaml", task)
    return name


def _write_yaml(path: Path, document: dict[str, Any]) -> None:
    path.write_text(yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
