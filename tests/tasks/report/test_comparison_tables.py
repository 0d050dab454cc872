"""What rows, claims and bases are compared with, and how that is shown."""

import base64
import html
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from flows.study.comparison import comparison
from flows.study.run import Study
from flows.tables import STAGES, continual_learning, control_rows, single_domain
from helpers.report_inputs import (
    INTERVALS,
    NO_TABLES,
    named,
    of_base,
    report,
    section,
    single,
    tracked,
)
from helpers.stores import Store, runs_of
from lori.evaluation.claims import CLAIMS, MIN_SEEDS
from lori.evaluation.intervals import Interval, from_metrics, to_metrics
from lori.recipes.checked_profile import profile
from tasks.report import charts_png
from tasks.report.charts import charts_of
from tasks.report.comparison_tables import paper_table
from tasks.report.page import to_html
from tasks.report.paper_tables import single_table
from tasks.report.table import Estimate, Table
from tasks.report.write import Cell


def test_every_rule_and_control_is_a_difference_that_the_flow_of_the_claims_asks_for() -> None:
    chosen = profile("scale", seeds=[*range(MIN_SEEDS)])
    study = Study(chosen).varied(merged=chosen.continual_methods)
    asked: Any = comparison(study.cells, [row for stage in (*STAGES.values(), control_rows) for row in stage(study)])
    for claim in CLAIMS:
        assert set(map(str, claim.pairs)) <= set(asked.config.pairs), claim.text


def test_rows_that_are_missing_take_no_comparison_from_the_others() -> None:
    chosen = profile("scale", domains=["nlu", "math"], methods=["lora", "lori-d", "lori-s"], seeds=[0, 1])
    study = Study(chosen)
    rows = single_domain(study)
    one_seed = {"method": "lori-s", "domain": "math", "seed": 1}
    left = [
        row
        for row in rows
        if row.labels != one_seed and (row.labels["method"], row.labels["domain"]) != ("lori-d", "nlu")
    ]
    asked: Any = comparison(study.cells, left, rows)
    assert asked.config.pairs == ("lori-s − lora",)  # lori-d has one domain less
    assert "lori-d" not in asked.config.rows
    assert {seed for name, seed in zip(asked.config.rows, asked.config.seeds, strict=True) if name == "lori-s"} == {0}


def test_what_is_kept_is_compared_after_the_same_domains_alone() -> None:
    chosen = profile("scale", domains=["safety", "nlu", "math"], methods=["lora", "lori-s"], seeds=[0, 1])
    study = Study(chosen)
    rows = continual_learning(study)
    failed = {"method": "lori-s", "first_domain": "safety", "new_domain": "nlu", "seed": 1}
    asked: Any = comparison(study.cells, [row for row in rows if row.labels != failed], rows)
    places = set(zip(asked.config.rows, asked.config.seeds, strict=True))
    assert {seed for name, seed in places if name == "lori-s kept"} == {0}  # after nlu there is none at seed 1
    assert {seed for name, seed in places if name == "lori-s kept math"} == {0, 1}
    assert {"lori-s kept − lora kept", "lori-s kept math − lora kept math"} <= set(asked.config.pairs)


def test_intervals_are_flat_numbers_and_what_has_no_ends_stays_without() -> None:
    unknown = named({"lora": {"mean": Interval(50.0, -math.inf, math.inf, 1)}})
    numbers = to_metrics({**INTERVALS, **unknown})
    assert all(math.isfinite(number) for number in numbers.values())
    assert numbers["lori-d − lora/nlu/low"] == -1.5
    assert from_metrics(numbers) == {**INTERVALS, **unknown}


def test_html_is_one_file_with_aligned_numbers_and_nothing_to_load(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    page = to_html("# Results\n\n![A](a.png)\n\n| a | b |\n| :--- | ---: |\n| <b> | 1 |\n", tmp_path)
    assert f'src="data:image/png;base64,{base64.b64encode(b"picture").decode()}"' in page
    assert "<title>Results</title>" in page
    assert '<td style="text-align:right">1</td>' in page
    assert "&lt;b&gt;" in page
    assert "http" not in page
    assert "<script" not in page


def test_html_breaks_the_lines_of_long_cells_alone(tmp_path: Path) -> None:
    long, short = 10 * '"x "', 13 * '"x"'  # 40 and 39 characters, each quotation mark six of the page's
    page = to_html(f"# Results\n\n| a | b |\n| --- | ---: |\n| **{long}** | {short[:23]} |\n", tmp_path)
    assert f'<td class="long"><strong>{html.escape(long)}</strong></td>' in page
    assert f'<td style="text-align:right">{html.escape(short[:23])}</td>' in page
    page = to_html(f"# Results\n\n| a |\n| --- |\n| {short} |\n", tmp_path)
    assert f'<td class="unbroken">{html.escape(short)}</td>' in page  # a word of 39 characters


def test_the_report_leaves_nothing_in_the_working_directory(
    sqlite_store: Store, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report(sqlite_store, cells)
    assert not list(Path.cwd().iterdir())


def test_a_base_is_shown_beside_the_newest_report_of_each_other(sqlite_store: Store, cells: list[Cell]) -> None:
    better = tracked(sqlite_store, single("lora", "nlu", 90.0))
    assert "Compared with other" not in of_base(sqlite_store, "first@1", cells)
    of_base(sqlite_store, "second@1", [better], seeds=(0,))
    titles, *rows = section(of_base(sqlite_store, "third@1", cells))
    assert titles == ["Merge", "Base model", "lora", "Settings", "MLflow run"]
    assert [row[:4] for row in rows] == [
        ["none (an adapter each)", "third@1", "80.0 [75.6, 84.4]", "this report"],  # 78 and 82: ± 1.96 √(8/2 + 1)
        ["none (an adapter each)", "first@1", "80.0 [75.6, 84.4]", "the same"],
        ["none (an adapter each)", "second@1", "90.0 [88.0, 92.0] (n = 1)", "seeds [0]"],
        ["concat", "third@1", "70.0 [68.0, 72.0] (n = 1)", "this report"],
        ["concat", "first@1", "70.0 [68.0, 72.0] (n = 1)", "the same"],
        ["concat", "second@1", "–", "seeds [0]"],
    ]
    reports = [run for run in runs_of(sqlite_store) if run.data.tags.get("lori.role") == "report"]
    runs = {run.data.tags["lori.base_model"]: run.info.run_id for run in reports}
    assert rows[1][4] == runs["first@1"]


def test_of_a_base_with_several_reports_the_one_with_the_same_settings_is_shown(
    sqlite_store: Store, cells: list[Cell]
) -> None:
    of_base(sqlite_store, "first@1", cells)
    of_base(sqlite_store, "first@1", cells, rank=8)
    assert [row[3] for row in section(of_base(sqlite_store, "second@1", cells))[1:3]] == ["this report", "the same"]
    rank_16 = section(of_base(sqlite_store, "second@1", cells, rank=16))
    assert [row[3] for row in rank_16[1:3]] == ["this report", "rank 8"]  # the newer of two that differ


def test_an_incomplete_report_says_so_and_is_compared_with_nothing(sqlite_store: Store, cells: list[Cell]) -> None:
    assert "Some cells failed" in report(sqlite_store, cells, base_model="first@1", is_complete=False)[1]
    assert "Compared with other" not in of_base(sqlite_store, "second@1", cells)
    assert "Some cells failed" not in of_base(sqlite_store, "first@1", cells)  # made whole
    assert "Compared with other" in of_base(sqlite_store, "second@1", cells)


def test_results_of_another_version_are_marked(sqlite_store: Store, cells: list[Cell]) -> None:
    older = replace(cells[0], adapter=replace(cells[0].adapter, key="train-v1-0123"))
    of_base(sqlite_store, "first@1", [older, *cells[1:]])
    assert section(of_base(sqlite_store, "second@1", cells))[2][3] == "train-v1"


def test_the_means_of_a_report_are_metrics_of_its_run(sqlite_store: Store, cells: list[Cell]) -> None:
    handle, _ = report(sqlite_store, cells)
    (run,) = [run for run in runs_of(sqlite_store) if run.info.run_id == handle.run_id]
    assert run.data.metrics == {
        "mean/lora/none": 80.0,
        "mean/lora/none_se": math.sqrt(5),
        "mean/lora/none_seeds": 2,
        "mean/lora/concat": 70.0,
        "mean/lora/concat_se": 1.0,
        "mean/lora/concat_seeds": 1,
    }


def test_the_papers_figures_stand_beside_ours_where_we_have_the_same_quantity() -> None:
    def passed(method: str, num_trainable: int, percent: float) -> dict[str, Any]:
        return {"method": method, "num_trainable": num_trainable, "code/pass_at_1": Estimate(percent, 1.0, 1)}

    single_rows = [passed("lora", 1000, 20.0), passed("lori-d", 500, 30.0), passed("lori-s", 50, 25.0)]
    refused = [
        ("lori-d", "concat", 80.0),
        ("lori-s", "linear", 90.0),
        ("lori-d", "none (an adapter each)", 99.0),
        ("lora", "ties", 95.0),
    ]
    merging_rows = [
        {"method": method, "merge": merge, "safety/refusal_rate": Estimate(value, 1.0, 1)}
        for method, merge, value in refused
    ]
    tables = {"single": Table("S", {}, single_rows), "merging": Table("M", {}, merging_rows)}
    found = [(row["paper"], row["here"], row["difference"]) for row in paper_table(tables).rows]
    assert found == [
        ("52.5", "50.00", "-2.50"),
        ("5.25", "5.00", "-0.25"),
        ("17.3", "50.00", "+32.70"),  # 30 is half as much again as 20
        ("86.6", "90.00", "+3.40"),
    ]
    nothing = {"single": Table("S", {}, []), "merging": Table("M", {}, [])}
    assert paper_table(nothing).rows == []


def test_an_intervals_bar_ends_where_percentages_do() -> None:
    low, high = charts_png._errors([Estimate(50.0, 10.0, 1), Estimate(99.0, 1.0, 1), Estimate(0.0, 2.0, 1)])
    assert low == pytest.approx([19.6, 1.96, 0.0])
    assert high == pytest.approx([19.6, 1.0, 3.92])


def test_a_figure_has_a_dot_for_each_number_of_its_table_and_shows_no_more_than_they_reach() -> None:
    cells = [single("lora", "nlu", 80.0), single("lori-s", "nlu", 86.0), single("lori-s", "math", 84.0)]
    axes = Figure().subplots()
    (chart,) = charts_of({**NO_TABLES, "single": single_table(cells, [])})["single"]
    charts_png.draw(axes, chart)
    drawn = [bars for bars in axes.containers if isinstance(bars, ErrorbarContainer)]
    heights = {bars.get_label(): np.asarray(bars.lines[0].get_ydata()).tolist() for bars in drawn}
    assert heights == {"lora": [80.0], "lori-s": [86.0, 84.0]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["NLU accuracy ↑", "Math accuracy ↑"]
    # each is 1.96 to both sides: from 78.04 to 87.96, and a point of room
    assert axes.get_ylim() == pytest.approx((77.04, 88.96))
