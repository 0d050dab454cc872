"""What the documentation shows is what the run gave, and what it points at is there."""

import ast
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


def test_the_readmes_tables_are_the_reports():
    script = runpy.run_path(str(ROOT / "docs" / "readme_tables.py"))
    assert script["tables"]() in (ROOT / "README.md").read_text()
    assert "| lori-s |" in script["tables"]()
    assert script["benchmark_tables"]() in (ROOT / "benchmarks" / "README.md").read_text()


def test_the_example_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lori").mkdir()
    (tmp_path / "lori" / "scale_model").symlink_to(ROOT / "lori" / "scale_model")  # as in the checkout
    namespace: dict = {}
    exec(compile(example_in("README.md", "example"), "README.md", "exec"), namespace)
    tokens = namespace["tokenizer"]("Say goodbye.", return_tensors="pt")
    assert namespace["model"](**tokens).logits.isfinite().all()
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("adapter_model.safetensors")}
    assert names == {
        *(
            f"adapters/{d}/{method}/adapter_model.safetensors"
            for d in ("greet", "part")
            for method in ("lori-d", "lori-s")
        ),
        "adapters/merged/adapter_model.safetensors",
    }


def test_the_export_to_the_harness_in_the_docs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data_dir = real_data_dir(tmp_path / "data")
    exec(compile(example_in("docs/real-paper.md", "harness"), "real-paper.md", "exec"), {})
    assert "lori_math" in capsys.readouterr().out
    exported = (tmp_path / "harness" / "lori_math.jsonl").read_text().splitlines()
    assert len(exported) == len(read_rows(data_dir, "gsm8k/test.jsonl"))


def test_the_readme_links_to_every_view_of_a_server_at_home():
    readme = (ROOT / "README.md").read_text()
    page = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey="
    for key, view in yaml.safe_load((ROOT / "mlflow/views.yaml").read_text())["views"].items():
        assert f"| [{view['name']}]({page}{key}&compareRunsMode=" in readme


def test_links_to_files_lead_somewhere():
    readmes = [ROOT / folder / "README.md" for folder in (".", "mlflow", "benchmarks")]
    for document in [*readmes, *(ROOT / "docs").rglob("*.md")]:
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


def test_the_readme_says_of_every_package_what_its_docstring_says():
    listed = dict(re.findall(r"^([a-z_/]+)/ +(\S.*)$", (ROOT / "README.md").read_text(), re.MULTILINE))
    packages = {path.parent for folder in ("lori", "tasks", "flows") for path in (ROOT / folder).rglob("__init__.py")}
    assert listed.keys() == {str(package.relative_to(ROOT)) for package in packages}
    for package, says in listed.items():
        docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
        assert " ".join(docstring.split()).startswith(says), package
