"""The examples in docs/ run from any folder, learn, and leave adapters that PEFT loads."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from lori import SCALE_MODEL_DIR
from tasks.machine import ROOT


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    example = [sys.executable, str(ROOT / "docs" / command[0]), *command[1:]]
    return subprocess.run(example, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_example_learns_each_domain_and_merges(tmp_path):
    said = run(tmp_path, "example.py")
    losses = re.findall(r"(lori-[ds]) (\w+): loss ([\d.]+) -> ([\d.]+)", said)
    assert [(method, domain) for method, domain, _, _ in losses] == [
        ("lori-d", "colour"),
        ("lori-s", "colour"),
        ("lori-d", "animal"),
        ("lori-s", "animal"),
    ]
    assert all(float(last) < 0.1 < 5 < float(first) for _, _, first, last in losses)
    answers = re.findall(r"^(\w+): (.*) -> (.*)$", said, re.MULTILINE)
    assert [(domain, trained) for domain, _, trained in answers] == [("colour", "blue"), ("animal", "tiger")]
    assert not {untrained for _, untrained, _ in answers} & {"blue", "tiger"}
    base = AutoModelForCausalLM.from_pretrained(SCALE_MODEL_DIR)
    merged = PeftModel.from_pretrained(base, str(tmp_path / "adapters" / "merged"))
    assert merged.peft_config["default"].r == 2 * 32  # concat adds up the ranks


def test_the_example_reads_rows_from_a_file(tmp_path):
    rows = [("What is it made of?", " glass"), ("Where does it live?", " in the river")] * 4
    lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    said = run(tmp_path, "example_jsonl.py", "rows.jsonl", "adapter")
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", said)]
    assert len(losses) == 20
    assert losses[-1] < 0.1 < 5 < losses[0]
    assert "What is it made of? ->  glass" in said
    assert "Where does it live? ->  in the river" in said
    AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))  # finds the base by itself
