"""What the documentation shows is what the run gave, and what it points at is there."""

import json
import re
import runpy

import pytest
import yaml

from helpers.documents import example_in
from helpers.rows import read_rows, real_data_dir
from lori.base_models.resolve import BASE_MODELS
from lori.recipes.scale_numbers import LEARNING_RATES, MERGE_WEIGHTS
from tasks.machine import ROOT


def test_the_generated_parts_of_the_documentation_are_up_to_date():
    script = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for name, parts in script["PARTS"].items():
        text = (ROOT / name).read_text()
        assert all(f"<!-- {mark} -->\n" in text for mark in parts), name
        assert script["filled"](text, parts) == text, f"{name}: run python docs/generate.py"


def test_the_readmes_verdicts_are_those_of_the_report():
    [claim] = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| Merged by concat")]
    report = (ROOT / "docs/scale-model-report/README.md").read_text()
    [row] = [line for line in report.splitlines() if "| lori-d concat − lora concat |" in line and "Merged by" in line]
    verdict, difference = row.split(" | ")[1], row.split(" | ")[3]
    assert verdict in claim
    assert difference in claim


def test_the_readme_fits_on_a_few_screens():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    assert len(readme.encode()) <= 10_000


def test_every_environment_variable_of_the_code_is_documented():
    own = {"LORI_HOME", "LORI_JOBS", "LORI_STACK"}  # of installations (operations.md), and between our own processes
    own |= {"LORI_FLOW_RUN", "LORI_LAUNCHER", "LORI_PROGRESS_FILE"}
    sources = [path.read_text() for folder in ("lori", "tasks", "flows") for path in (ROOT / folder).rglob("*.py")]
    used = {name for text in sources for name in re.findall(r"[\"']((?:LORI)_[A-Z_]+)[\"'\]]", text)}
    listed = set(re.findall(r"`(LORI_[A-Z_]+)`", (ROOT / "docs/studies.md").read_text()))
    assert used - own == listed


def test_the_export_to_the_harness_in_the_docs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data_dir = real_data_dir(tmp_path / "data")
    exec(compile(example_in("docs/real-paper.md", "harness"), "real-paper.md", "exec"), {})
    assert "lori_math" in capsys.readouterr().out
    exported = (tmp_path / "harness" / "lori_math.jsonl").read_text().splitlines()
    assert len(exported) == len(read_rows(data_dir, "gsm8k/test.jsonl"))


def test_the_documentation_names_every_view():
    views = yaml.safe_load((ROOT / "mlflow/views.yaml").read_text())["views"].values()
    listed = re.findall(r"^\| (\d\d [^|]+?) \|", (ROOT / "docs/mlflow.md").read_text(), re.MULTILINE)
    assert listed == [view["name"] for view in views]


def test_links_to_files_lead_somewhere():
    readmes = [ROOT / folder / "README.md" for folder in (".", "mlflow", "benchmarks")]
    for document in [*readmes, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_learning_rates_and_weights_are_the_ones_that_the_search_chose():
    found = json.loads((ROOT / "benchmarks" / "choose_recipe.json").read_text())
    assert found["base_model"] == BASE_MODELS["scale"].identity, "the base model changed: choose again"
    assert {method: rate for method, rate in LEARNING_RATES.items() if method != "base"} == found["learning_rates"]
    assert {" ".join(names): weight for names, weight in MERGE_WEIGHTS.items()} == found["merge_weights"]


def test_a_copied_report_takes_the_place_of_the_one_before_without_what_is_large(tmp_path):
    report, target = tmp_path / "report", tmp_path / "docs"
    for folder in (report, target, target / "ablations"):
        folder.mkdir()
    texts = {
        "single.csv": "method\nlora\n",
        "effort.json": "[]",
        "single.png": "",
        "figures.html": "",
        "cells.csv": "",
    }
    texts["README.md"] = "# Results\n\nAll figures: [figures.html](figures.html).\n\n## Tables\n"
    for name, text in texts.items():
        (report / name).write_text(text)
    (target / "merging.csv").write_text("an earlier report's")
    script = runpy.run_path(str(ROOT / "docs" / "copy_report.py"))
    script["copy_report"].__globals__["TARGET"] = target
    for folder in ("", "ablations"):
        script["copy_report"](report, folder)
        copied = [path.name for path in (target / folder).iterdir() if path.is_file()]
        assert sorted(copied) == ["README.md", "single.csv", "single.png"]
        assert (target / folder / "README.md").read_text() == "# Results\n\n## Tables\n"
    (report / "README.md").write_text(
        texts["README.md"].replace("## Tables", "![Scores](single.png)\\\n*Scores.*\n\n## Tables")
    )
    script["copy_report"](report, "rates", pictures=False)
    assert sorted(path.name for path in (target / "rates").iterdir()) == ["README.md", "single.csv"]
    assert (target / "rates" / "README.md").read_text() == "# Results\n\n## Tables\n"
    with pytest.raises(FileNotFoundError):
        script["copy_report"](tmp_path / "no-report")
    assert (target / "single.csv").exists()
