"""The report is one run: its files, its figures, and what it says of itself."""

import csv
import math
import re
from dataclasses import replace

import pytest

from helpers.report_inputs import INTERVALS, found, named, pair_of, report, scores
from helpers.stores import Store, runs_of
from lori.evaluation.claims import Claim, Rule, judge
from lori.evaluation.intervals import Interval
from lori.evaluation.row_names import RowName
from tasks import tracking
from tasks.report import charts_png
from tasks.report.charts import interference_heats, overlap_heats, sparsity_heats
from tasks.report.paper_tables import ablations_table
from tasks.report.write import Cell
from tasks.results import Handle


def test_a_merge_of_the_ablations_has_a_norm_and_no_entries_that_train() -> None:
    labels = {"method": "lora", "setting": "weight of concat", "value": "0.5", "seed": 0}
    made = Handle("adapter", "key", "merge", "merge", "models:/m-1", "0", {"update_norm": 3.25}, {})
    (row,) = ablations_table([Cell("ablations", labels, made, [scores("merge", "nlu", 70.0)])], []).rows
    assert (row["num_trainable"], row["update_norm"]) == (None, 3.25)


def test_the_report_is_one_run_whose_files_are_replaced(sqlite_store: Store, cells: list[Cell]) -> None:
    first, _ = report(sqlite_store, cells)
    second, markdown = report(sqlite_store, cells[1:], wall_seconds=5.0)
    assert (second.run_id, second.key) == (first.run_id, first.key)
    assert sum(run.data.tags["lori.role"] == "report" for run in runs_of(sqlite_store)) == 1
    files = tracking.fetch(sqlite_store.runtime, second)
    names = {"README.md", "index.html", "figures.html", "figures.sha256", "effort.json", "single.png", "merging.png"}
    names |= {"single.csv", "merging.csv", "cells.csv"}  # of each table that has rows
    assert {path.name for path in files.iterdir()} == names
    text = (files / "README.md").read_text()
    assert re.sub(r"(!\[.*\n|All figures).*\n\n", "", text) == markdown  # Prefect has no place for pictures
    assert not tracking.is_available(sqlite_store.runtime, first)


def test_figures_are_drawn_again_for_other_numbers_alone(
    sqlite_store: Store, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = {**tracking.provenance(), "lori.dirty": "false"}
    monkeypatch.setattr(tracking, "provenance", lambda: clean)
    drawn: list[str] = []
    draw = charts_png.draw_figures
    monkeypatch.setattr(
        charts_png, "draw_figures", lambda charts, directory: drawn.extend(charts) or draw(charts, directory)
    )
    first, _ = report(sqlite_store, cells)
    pictures = {path.name: path.read_bytes() for path in tracking.fetch(sqlite_store.runtime, first).glob("*.png")}
    again, _ = report(sqlite_store, cells, wall_seconds=5.0)
    assert drawn == ["single", "merging"]
    copied = tracking.fetch(sqlite_store.runtime, again)
    assert {path.name: path.read_bytes() for path in copied.glob("*.png")} == pictures
    assert "0:01:20 by 2 flow runs" in (copied / "README.md").read_text()
    other = replace(
        cells[0], scores=[replace(cells[0].scores[0], metrics={"nlu/accuracy": 9.0, "nlu/accuracy_se": 1.0})]
    )
    changed, _ = report(sqlite_store, [other, *cells[1:]])
    assert drawn == ["single", "merging"] * 2
    assert (tracking.fetch(sqlite_store.runtime, changed) / "single.png").read_bytes() != pictures["single.png"]


def test_the_report_of_other_settings_is_another(sqlite_store: Store, cells: list[Cell]) -> None:
    assert report(sqlite_store, cells)[0].run_id != report(sqlite_store, cells, rank=8)[0].run_id


def test_a_report_of_merges_alone_has_no_other_table(sqlite_store: Store, cells: list[Cell]) -> None:
    _, markdown = report(sqlite_store, cells[2:])
    titles = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert titles == ["## Adapters of all domains merged into one", "## How it was made"]
    assert "Learning rate" not in markdown
    assert "density of magnitude, TIES and DARE merges 0.7" in markdown


def test_the_report_says_what_it_is_of(sqlite_store: Store, cells: list[Cell]) -> None:
    _, markdown = report(sqlite_store, cells)
    # s²/n = 8/2 = 4, the seeds' own errors are 1: √(4 + 1)
    assert f"80.0 [{80 - 1.96 * math.sqrt(5):.1f}, {80 + 1.96 * math.sqrt(5):.1f}]" in markdown
    assert "Base model scale@0123, seeds 0, 1; written 20" in markdown
    assert "3 cells were computed in 0:01:15; training alone, over all adapters, took 0:03:00." in markdown
    assert "| Method | Rank | Alpha | Learning rate | Batch size | Max length | Epochs |" in markdown
    assert "| lora | 6 | 12 | 0.003 | 16 | 160 | nlu 1 |" in markdown
    assert f"torch {tracking.provenance()['lori.torch']}" in markdown
    assert "Continual" not in markdown  # there is no such cell


@pytest.mark.parametrize(("dirty", "warning"), [("true", "**with uncommitted changes**"), ("false", "(3 runs)")])
def test_the_report_names_the_commit_of_its_numbers_and_whether_it_was_clean(
    sqlite_store: Store, cells: list[Cell], dirty: str, warning: str
) -> None:
    from mlflow import MlflowClient

    for cell in cells:
        client = MlflowClient(sqlite_store.runtime.tracking_uri)
        client.set_tag(cell.adapter.run_id, "lori.commit", "0123456789abcdef")
        client.set_tag(cell.adapter.run_id, "lori.dirty", dirty)
    _, markdown = report(sqlite_store, cells)
    (line,) = [line for line in markdown.splitlines() if "commit" in line]
    assert line.startswith("- commit `0123456789ab`")
    assert warning in line
    assert ("uncommitted" in line) == (dirty == "true")


def test_cells_csv_has_every_metric_of_every_seed(sqlite_store: Store, cells: list[Cell]) -> None:
    handle, _ = report(sqlite_store, cells)
    with (tracking.fetch(sqlite_store.runtime, handle) / "cells.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(cells)  # a value and its error each
    assert lines[0]["metric"] == "nlu/accuracy"
    assert (lines[0]["measured"], lines[0]["seed"], lines[0]["run_id"]) == ("78.0", "0", cells[0].adapter.run_id)


def test_cells_csv_tells_the_value_of_a_setting_from_what_was_measured(sqlite_store: Store, cells: list[Cell]) -> None:
    labels = {**cells[0].row, "setting": "sparsity", "value": "0.5"}
    handle, _ = report(sqlite_store, [replace(cells[0], table="ablations", row=labels)])
    with (tracking.fetch(sqlite_store.runtime, handle) / "cells.csv").open() as file:
        line, *_ = csv.DictReader(file)
    assert (line["value"], line["measured"]) == ("0.5", "78.0")


def test_who_computed_the_cells_is_said_after_runs_that_found_them_in_the_cache(
    sqlite_store: Store, cells: list[Cell]
) -> None:
    report(sqlite_store, cells, num_computed=7, num_cached=0)
    for _ in range(2):
        _, markdown = report(sqlite_store, cells, wall_seconds=1.0, num_computed=0, num_cached=7)
        assert "7 cells were computed in 0:01:15; training alone" in markdown
    _, markdown = report(sqlite_store, cells, wall_seconds=5.0, num_computed=2, num_cached=5)
    assert "9 cells were computed in 0:01:20 by 2 flow runs" in markdown
    assert re.findall(r"^- (\d cells computed in \S+) until 20", markdown, re.MULTILINE) == [
        "7 cells computed in 0:01:15",
        "2 cells computed in 0:00:05",
    ]
    _, markdown = report(sqlite_store, cells, rank=8, num_computed=0, num_cached=7)
    assert "All 7 cells came from the cache; training alone" in markdown  # of another study


def test_the_report_opens_with_a_sentence_a_claim_and_what_it_takes_to_decide(
    sqlite_store: Store, cells: list[Cell]
) -> None:
    _, markdown = report(sqlite_store, cells, intervals=INTERVALS, name="scale", sparsity=0.8)
    opening = markdown.partition("\n\n## ")[0].splitlines()
    assert [line for line in opening if line[:1].isdigit()] == [
        "1. **Cannot tell:** LoRI-D and LoRI-S match LoRA on single domains, with a half and a twentieth of its"
        " trainable entries (LoRI-D, compared with LoRA: +1.0 points [-1.5, +2.5];"
        " LoRI-S, compared with LoRA: +3.0 points [+1.0, +5.0]).",
        "2. **Cannot tell:** Merged by concat, LoRI-D's adapters keep more than LoRA's"
        " (LoRI-D, compared with LoRA, both merged by concat: not computed).",
        "3. **Cannot tell:** After another domain, LoRI-S keeps more of safety than LoRA (LoRI-S, compared with LoRA,"
        " both on the first domain after another: +9.0 points [+2.0, +16.0]).",
    ]
    # 75 s for 3 of the 7 cells of 2 seeds: 25 · 7 / 2 · 3 = 262.5 s
    assert opening[-1] == (
        "This report has 2 seeds; a verdict takes 5. `python -m flows claims --profile scale -p sparsity=0.8`"
        " computes the 3 that are missing: about 4 minutes at the pace of this study."
    )
    _, other = report(sqlite_store, cells, intervals=INTERVALS, name="scale", base_model="tiny@01", num_computed=0)
    assert "`python -m flows claims --profile scale -p base_model=tiny` computes the 3 that are missing.\n" in other
    _, smoke = report(sqlite_store, cells, intervals=INTERVALS)
    assert "`python -m flows claims --profile scale` computes one that means something" in smoke
    many = [replace(cells[0], row={**cells[0].row, "seed": seed}) for seed in range(5)]
    assert "a verdict takes" not in report(sqlite_store, many, intervals=INTERVALS, name="scale")[1]


def test_each_claim_has_its_rules_and_what_tells_why(sqlite_store: Store, cells: list[Cell]) -> None:
    handle, markdown = report(sqlite_store, cells, intervals=INTERVALS)
    headings = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert headings[:3] == [
        "## The paper's claims",
        "## Why: one thing changed at a time",
        "## What else to know about the claims",
    ]
    claims = [line for line in markdown.splitlines() if " | > " in line]
    assert claims == [
        "| 1 | LoRI-D, compared with LoRA | +1.0 [-1.5, +2.5] | > -1 | cannot tell | 5 |",
        "| 1 | LoRI-S, compared with LoRA | +3.0 [+1.0, +5.0] | > -1 | holds | 5 |",
        "| 2 | LoRI-D, compared with LoRA, both merged by concat | – | > 0 | cannot tell | – |",  # not computed
        "| 3 | LoRI-S, compared with LoRA, both on the first domain after another"
        " | +9.0 [+2.0, +16.0] | > 0 | cannot tell | 4 |",  # too few seeds
    ]
    why, context = (markdown.partition(heading)[2].partition("\n## ")[0] for heading in headings[1:3])
    assert "| 1 | LoRI-S with an A drawn anew, compared with LoRI-S | -4.0 [-6.0, -2.0] | differs | 5 |" in why
    assert "| 1 | LoRI-S with a trained A, compared with LoRI-S | -1.0 [-3.0, +1.0] | no difference seen | 5 |" in why
    assert "| 1 | LoRI-S with a random mask, compared with LoRI-S | -4.0 [-6.0, -2.0] | cannot tell | 4 |" in why
    assert "| 1 | LoRI-S, compared with DoRA | +1.0 [+0.5, +1.5] | differs | 5 |" in context
    assert "| lori-s kept − lora kept | +9.0 [+2.0, +16.0] | – | +9.0 [+2.0, +16.0] |" in markdown
    files = tracking.fetch(sqlite_store.runtime, handle)
    with (files / "claims.csv").open() as file:
        first, *_ = csv.DictReader(file)
    assert [first[name] for name in ("verdict", "pair", "difference_low", "result")] == [
        "cannot tell", "lori-d − lora", "-1.5", "cannot tell",
    ]  # fmt: skip
    with (files / "differences.csv").open() as file:
        first, *_ = csv.DictReader(file)
    assert [first[name] for name in ("pair", "nlu", "nlu_low", "nlu_high", "safety", "safety_low")] == [
        "lori-d − lora", "1.0", "-1.5", "2.5", "", "",
    ]  # fmt: skip
    with (files / "intervals.csv").open() as file:
        assert [line["row"] for line in csv.DictReader(file)] == ["lori-d", "lori-d"]


def test_interference_is_a_row_a_pair_of_domains_and_a_panel_a_method(sqlite_store: Store, cells: list[Cell]) -> None:
    pairs = {
        "lora": [pair_of(["nlu", "math"], 0.2, None), pair_of(["nlu", "math"], 0.1, None)],
        "lori-s": [pair_of(["nlu", "math"], 0.01, 1.2), pair_of(["nlu", "code"], 0.02, 0.9)],
    }
    handle, markdown = report(sqlite_store, cells, pairs=pairs)
    assert "| lora | nlu × math | +0.1500 | 0.0500 | 0.0400 | – |" in markdown  # the mean of two seeds
    assert "| lori-s | nlu × code | +0.0200 | 0.0500 | 0.0400 | 0.90 |" in markdown
    files = tracking.fetch(sqlite_store.runtime, handle)
    assert (files / "interference.png").stat().st_size > 5000
    caption = "Cosine of two domains' updates, in magnitude, by layer and projection"
    assert f"![{caption}](interference.png)\\\n*{caption}.*\n\n" in (files / "README.md").read_text()


def test_a_heat_map_has_layers_in_their_order_and_gaps_where_a_layer_has_no_such_module() -> None:
    (heat,) = interference_heats({"lora": [pair_of(["nlu", "math"], 0.2, None)]})
    values = heat.values
    assert (heat.layers, heat.projections) == (["0", "1", "10"], ["q_proj", "up_proj"])
    assert values[:2, 0].tolist() == [0.2, 0.2]  # the magnitude of ±0.2
    assert math.isnan(values[0, 1])
    assert values[2, 1] == 0.0


def test_the_sparsity_of_a_domain_is_that_of_its_own_side_of_each_pair() -> None:
    pairs = {"lori-s": [pair_of(["nlu", "math"], 0.1, 1.0), pair_of(["math", "code"], 0.1, 1.0)]}
    sparsity = {heat.title: heat.values[0, 0] for heat in sparsity_heats(pairs, "lori-s")}
    assert sparsity == pytest.approx({"nlu": 90.0, "math": 85.0, "code": 80.0})  # math keeps 0.2 and 0.1
    assert sparsity_heats({"lori-s": [pair_of(["nlu", "math"], 0.1, None)]}, "lori-s") == []
    assert interference_heats({}) == []
    (overlap,) = overlap_heats({**pairs, "lora": [pair_of(["nlu", "math"], 0.1, None)]})  # which has no masks
    assert (overlap.title, overlap.ends) == ("lori-s", (-3.0, 3.0))
    assert overlap.values[:2, 0].tolist() == [-3.0, 3.0]


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (found(0, 2), found(-0.9, 1), "holds"),  # each is above −1
        (found(0, 2), found(-4, -1.1), "does not hold"),
        (found(-9, 9), found(-4, -1.1), "does not hold"),
        (found(0, 2), found(-1.1, 3), "cannot tell"),
        (found(0, 2), found(0, 2, num_seeds=4), "cannot tell"),
        (found(0, 2), None, "cannot tell"),
    ],
)
def test_a_claim_holds_if_all_of_its_rules_do(one: Interval, other: Interval | None, verdict: str) -> None:
    claim = Claim("?", tuple(Rule(RowName.parse(pair), -1.0) for pair in ("a − b", "c − b")))
    intervals = named({"a − b": {"mean": one}, **({"c − b": {"mean": other}} if other else {})})
    assert judge(claim, intervals)[0] == verdict
