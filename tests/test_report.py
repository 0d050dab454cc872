"""The report says what the handles say: nothing more, nothing rounded away in the CSV, and how sure it is."""

import base64
import csv
import html
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from stores import Store, open_run, runs_of

from flows.study.comparison import comparison
from flows.study.run import Study
from flows.tables import STAGES, continual_learning, control_rows, single_domain
from lori.evaluation.claims import CLAIMS, MIN_SEEDS, Claim, Rule, judge
from lori.evaluation.intervals import Interval, Intervals, from_metrics, to_metrics
from lori.evaluation.row_names import RowName
from lori.evaluation.scoring import mean_of
from lori.recipes.checked_profile import profile
from tasks import tracking
from tasks.report import charts_png
from tasks.report.analysis_tables import matched_table, norms_table
from tasks.report.charts import by_module, charts_of, interference_heats, overlap_heats, sparsity_heats
from tasks.report.comparison_tables import paper_table
from tasks.report.page import to_html
from tasks.report.paper_tables import ablations_table, continual_table, merging_table, single_table, sweep_table
from tasks.report.table import Estimate, Table, combine, to_csv, to_markdown
from tasks.report.write import Analyses, Cell, write_report
from tasks.result_files import Pairs
from tasks.results import Handle

HEADLINES = {"nlu": "nlu/accuracy", "math": "math/accuracy", "safety": "safety/refusal_rate"}
SETTINGS = {
    "name": "smoke",
    "base_model": "scale@0123",
    "seeds": (0, 1),
    "rank": 6,
    "wall_seconds": 75.0,
    "num_computed": 3,
    "num_cached": 4,
}
CONFIG = {
    "base_model": "scale@0123", "rank": 6, "alpha": 12, "learning_rate": 0.003, "num_epochs": 1, "batch_size": 16,
    "max_length": 160,
}  # fmt: skip


def adapter(run_id: str, *, num_trainable: int = 100, **config: Any) -> Handle:
    metrics = {"num_trainable": float(num_trainable), "train_seconds": 60.0}
    return Handle("adapter", "key", f"adapter-{run_id}", run_id, "models:/m-1", "0", metrics, {**CONFIG, **config})


def scores(run_id: str, domain: str, value: float, error: float = 1.0, **more: float) -> Handle:
    metrics = {HEADLINES[domain]: value, f"{HEADLINES[domain]}_se": error, **more}
    return Handle("scores", "key", f"scores-{domain}", run_id, f"runs:/{run_id}/scores", "0", metrics)


def single(method: str, domain: str, value: float, *, seed: int = 0, num_trainable: int = 100, **more: float) -> Cell:
    run_id = f"{method}-{domain}-{seed}"
    trained = adapter(run_id, num_trainable=num_trainable, method=method, domain=domain)
    row = {"method": method, "domain": domain, "seed": seed}
    return Cell("single", row, trained, [scores(run_id, domain, value, **more)])


def test_one_seed_keeps_the_error_of_its_test_set() -> None:
    assert combine([80.0], [2.0]) == Estimate(80.0, 2.0, 1)


def test_seeds_add_their_spread_to_the_error_of_the_test_set_that_they_share() -> None:
    # s² = ((79−81)² + (81−81)² + (83−81)²) / 2 = 4; error² = 4/3 + (1² + 2² + 2²)/3 = 13/3
    estimate = combine([79.0, 81.0, 83.0], [1.0, 2.0, 2.0])
    assert estimate.mean == 81.0
    assert estimate.error == pytest.approx(math.sqrt(13 / 3))


def test_seeds_that_agree_are_no_surer_than_the_test_set_allows() -> None:
    assert combine([80.0, 80.0], [2.0, 2.0]) == Estimate(80.0, 2.0, 2)


def test_the_error_of_a_mean_over_domains_is_of_independent_test_sets() -> None:
    assert mean_of([(80.0, 3.0), (60.0, 4.0)]) == (70.0, 2.5)  # √(3² + 4²) / 2


def test_a_table_has_its_numbers_on_the_right_and_says_where_seeds_are_missing() -> None:
    rows = [
        {"name": "a", "n": 1234, "x": Estimate(81.25, 1.5, 2)},
        {"name": "b|c", "n": 5, "x": Estimate(3.0, 0.5, 1)},
    ]
    assert to_markdown(Table("T", {"name": "Name", "n": "N", "x": "X"}, [*rows, {"name": "d"}])) == (
        "| Name | N | X |\n| :--- | ---: | ---: |\n| a | 1,234 | 81.2 [78.3, 84.2] |\n"
        "| b\\|c | 5 | 3.0 [2.0, 4.0] (n = 1) |\n"
        "| d | – | – |"
    )


def test_csv_keeps_every_digit() -> None:
    table = Table("T", {"name": "Name", "x": "X"}, [{"name": "a", "x": Estimate(1 / 3, 0.1, 2)}, {"name": "b"}])
    low, high = 1 / 3 - 1.96 * 0.1, 1 / 3 + 1.96 * 0.1
    assert to_csv(table) == f"name,x,x_se,x_low,x_high,x_seeds\na,{1 / 3},0.1,{low},{high},2\nb,,,,,0\n"


def test_single_table_has_a_row_a_method_and_relates_sizes_to_lora() -> None:
    over_refusal = {"safety/over_refusal_rate": 4.0, "safety/over_refusal_rate_se": 1.0}
    cells = [
        single("lora", "nlu", 80.0, num_trainable=1000),
        single("lora", "safety", 90.0, num_trainable=1000, **over_refusal),
        single("lori-d", "nlu", 79.0, num_trainable=525),
    ]
    lora, lori_d = single_table(cells, cells).rows
    assert lora["nlu/accuracy"] == Estimate(80.0, 1.0, 1)
    assert lora["safety/over_refusal_rate"] == Estimate(4.0, 1.0, 1)
    assert (lori_d["num_trainable"], lori_d["share"]) == (525, "52.50%")
    assert lori_d["safety/refusal_rate"] is None


def test_single_table_without_lora_relates_to_nothing() -> None:
    (row,) = single_table([single("base", "nlu", 50.0, num_trainable=0)], []).rows
    assert (row["num_trainable"], row["share"]) == (0, None)


def merged(method: str, merge: str, values: dict[str, float], weights: tuple[float, ...] = (0.5, 0.5)) -> Cell:
    run_id = f"{method}-{merge}"
    row = {"method": method, "merge": merge, "weights": weights, "seed": 0}
    measured = [scores(run_id, domain, value) for domain, value in values.items()]
    return Cell("merging", row, adapter(run_id, method=merge, density=0.7), measured)


def test_merging_table_puts_the_unmerged_adapters_above_their_merges() -> None:
    of_merges = [merged("lora", "concat", {"nlu": 70.0, "math": 40.0}), merged("lora", "ties", {"nlu": 60.0})]
    cells = [single("lora", "nlu", 80.0), single("lora", "math", 50.0), single("full", "nlu", 99.0), *of_merges]
    unmerged, concat, ties = merging_table(of_merges, cells).rows
    assert unmerged["merge"] == "none (an adapter each)"
    assert unmerged["mean"] == Estimate(65.0, math.sqrt(0.5), 1)  # √(1² + 1²) / 2
    assert (concat["merge"], concat["weights"], concat["mean"]) == ("concat", "0.5", Estimate(55.0, math.sqrt(0.5), 1))
    assert ties["mean"] is None  # a mean over fewer domains would not compare
    uneven = [merged("lora", "concat", {"nlu": 70.0}, weights=(0.4, 0.3))]
    assert merging_table(uneven, uneven).rows[0]["weights"] == "0.4, 0.3"


def test_continual_table_compares_the_first_domain_before_and_after() -> None:
    over = {"safety/over_refusal_rate": 3.0, "safety/over_refusal_rate_se": 1.0}
    row = {"method": "lori-s", "first_domain": "safety", "new_domain": "nlu", "seed": 0}
    measured = [
        scores("before", "safety", 90.0),
        scores("after", "safety", 70.0, **over),
        scores("after", "nlu", 60.0),
    ]
    (line,) = continual_table([Cell("continual", row, adapter("after"), measured)], []).rows
    assert line == {
        "method": "lori-s",
        "domains": "safety → nlu",
        "first_before": Estimate(90.0, 1.0, 1),
        "first_after": Estimate(70.0, 1.0, 1),
        "over_refusal_before": None,
        "over_refusal_after": Estimate(3.0, 1.0, 1),
        "new_after": Estimate(60.0, 1.0, 1),
    }


NO_TABLES = {name: Table(name, {}, []) for name in ("claims", "single", "merging", "continual", "ablations")}


def tracked(store: Store, cell: Cell) -> Cell:
    """The cell on a run that MLflow has."""
    run_id = open_run(store.runtime, cell.adapter.run_id)
    config, metrics = cell.adapter.config, cell.adapter.metrics
    trained = Handle("adapter", "key", cell.adapter.name, run_id, "models:/m-1", "0", metrics, config)
    measured = [Handle("scores", "key", s.name, run_id, f"runs:/{run_id}/s", "0", s.metrics) for s in cell.scores]
    return Cell(cell.table, cell.row, trained, measured)


def report(
    store: Store,
    cells: list[Cell],
    *,
    intervals: Intervals | None = None,
    pairs: Pairs | None = None,
    is_complete: bool = True,
    **settings: Any,
) -> tuple[Handle, str]:
    about = {**SETTINGS, **settings}
    analyses = Analyses(intervals or {}, pairs or {})
    return write_report(cells, analyses, settings=about, is_complete=is_complete, runtime=store.runtime)


@pytest.fixture
def cells(sqlite_store: Store) -> list[Cell]:
    of_seeds = [single("lora", "nlu", value, seed=seed) for seed, value in ((0, 78.0), (1, 82.0))]
    return [tracked(sqlite_store, cell) for cell in [*of_seeds, merged("lora", "concat", {"nlu": 70.0})]]


def test_an_ablation_is_a_row_a_value_with_its_mean() -> None:
    cells = []
    for value, score in (("0.5", 70.0), ("0.9", 80.0)):
        for domain in ("nlu", "math"):
            cell = single("lori-s", domain, score + (domain == "math") * 10.0, num_trainable=50)
            labels = {**cell.row, "setting": "sparsity", "value": value}
            cells.append(replace(cell, table="ablations", row=labels))
    table = ablations_table(cells, cells)
    assert [(row["value"], row["num_trainable"]) for row in table.rows] == [("0.5", 50), ("0.9", 50)]
    assert [row["mean"].mean for row in table.rows if isinstance(row["mean"], Estimate)] == [75.0, 85.0]
    (chart,) = charts_of({**NO_TABLES, "ablations": table})["ablations"]
    assert (chart.title, chart.kind, [series.name for series in chart.series]) == ("sparsity", "lines", ["lori-s"])
    assert [(place, value.mean) for place, value in chart.series[0].points] == [(0.5, 75.0), (0.9, 85.0)]


def test_values_that_would_share_a_place_on_an_axis_are_drawn_as_bars() -> None:
    def kind(*values: str) -> str:
        labels = {**single("lori-s", "nlu", 70.0).row, "setting": "sparsity"}
        rows = [{**labels, "value": value} for value in values]
        cells = [replace(single("lori-s", "nlu", 70.0), table="ablations", row=row) for row in rows]
        (chart,) = charts_of({**NO_TABLES, "ablations": ablations_table(cells, cells)})["ablations"]
        return chart.kind

    assert kind("0.0", "0.5", "0.9", "0.95", "0.99") == "bars"
    assert kind("0.0", "0.5", "0.99") == "lines"


def test_continual_learning_on_fewer_rows_is_drawn_as_what_is_kept_over_what_is_learned() -> None:
    cells = []
    for value, kept, learned in (("96", 90.0, 40.0), ("all", 80.0, 60.0)):
        labels = {"method": "lora", "setting": "safety → math, rows", "value": value, "seed": 0}
        scored = [scores("after", "safety", kept), scores("after", "math", learned)]
        cells.append(Cell("ablations", labels, adapter("after"), scored))
    (chart,) = charts_of({**NO_TABLES, "ablations": ablations_table(cells, cells)})["ablations"]
    assert (chart.title, chart.x_label) == ("safety → math", "math, percent")
    assert [(place, value.mean) for place, value in chart.series[0].points] == [(40.0, 90.0), (60.0, 80.0)]


def test_what_is_kept_is_compared_where_all_have_learned_as_much() -> None:
    measured = {"lora": ((20.0, 90.0), (60.0, 70.0)), "lori-s": ((30.0, 95.0), (40.0, 85.0)), "full": ((50.0, 9.0),)}
    rows = [
        {
            "method": method,
            "setting": "safety → math, rows",
            "value": "96",
            "safety/refusal_rate": Estimate(kept, 1.0, 1),
            "math/accuracy": Estimate(learned, 1.0, 1),
        }
        for method, points in measured.items()
        for learned, kept in points
    ]
    (row,) = matched_table(Table("", {}, rows)).rows
    # all reach 40, where LoRA's line from (20, 90) to (60, 70) is at 80; the third has gone past it
    assert row == {"domains": "safety → math", "reached": "40.0", "lora": "80.0", "lori-s": "85.0", "full": None}
    assert matched_table(Table("", {}, [{"method": "lora", "setting": "rank", "value": "8"}])).rows == []


def test_merges_are_compared_at_the_norm_of_loras() -> None:
    concat = {"setting": "weight of concat", "value": "0.5"}
    measured = {"lora": ((2.0, 50.0), (4.0, 80.0)), "lori-d": ((1.0, 40.0), (3.0, 60.0), (5.0, 20.0))}
    rows = [
        {**concat, "method": method, "update_norm": norm, "mean": Estimate(mean, 1.0, 1)}
        for method, points in measured.items()
        for norm, mean in points
    ]
    others = {"method": "lora", "setting": "adapters of concat", "value": "2"}
    rows += [{**others, "update_norm": 9.0, "mean": Estimate(1.0, 1.0, 1)}]
    # LoRI-D's line is at 50 half way from 40 to 60, and at 40 half way from 60 to 20
    assert norms_table(Table("", {}, rows)).rows == [
        {"merge": "concat", "norm": 2.0, "lora": "50.0", "lori-d": "50.0"},
        {"merge": "concat", "norm": 4.0, "lora": "80.0", "lori-d": "40.0"},
    ]
    far = [{**row, "update_norm": 10.0} if row["method"] == "lori-d" else row for row in rows]
    assert [row["lori-d"] for row in norms_table(Table("", {}, far)).rows] == [None, None]


def test_a_rate_is_chosen_by_refusing_and_helping_among_those_tried_on_everything() -> None:
    def tried(factor: str, domain: str, value: float, **more: float) -> Cell:
        metrics = {f"validation/{name}": score for name, score in {**measured(domain, value), **more}.items()}
        made = Handle("scores", "key", "scores", "run", "runs:/run/scores", "0", metrics, {"domain": domain})
        labels = {"method": "lora", "factor": factor, "rate": f"0.00{factor}", "domain": domain, "seed": 0}
        return Cell("sweep", labels, adapter("run"), [made])

    def measured(domain: str, value: float) -> dict[str, float]:
        return {HEADLINES[domain]: value, f"{HEADLINES[domain]}_se": 1.0}

    over_refusal = {f"validation/safety/over_refusal_rate{end}": value for end, value in (("", 100.0), ("_se", 1.0))}
    cells = [
        tried("1", "math", 60.0),
        tried("1", "safety", 80.0),
        tried("2", "math", 60.0),
        tried("2", "safety", 100.0, **{name.removeprefix("validation/"): each for name, each in over_refusal.items()}),
        tried("4", "math", 99.0),  # its other score failed
    ]
    rows = {row["factor"]: row for row in sweep_table(cells, cells).rows}
    assert {factor: row["chosen"] for factor, row in rows.items()} == {"1": True, "2": False, "4": False}
    assert rows["2"]["safety/validation"] == Estimate(50.0, math.sqrt(2) / 2, 1)  # refuses all: half of it is right
    assert rows["1"]["edge"]
    assert rows["4"]["mean"] is None
    others = [*cells[:2], tried("2", "math", 99.0), tried("2", "nlu", 99.0)]
    assert [row["mean"] for row in sweep_table(others, others).rows] == [None, None]  # of other domains each


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
    names = {"README.md", "index.html", "figures.html", "figures.sha256", "single.png", "merging.png"}
    tables = ("single", "merging", "continual", "paper", "bases", "cells", "claims", "differences", "intervals")
    tables += ("interference", "ablations", "sweep", "matched", "norms")
    names |= {f"{name}.csv" for name in tables}
    assert {path.name for path in files.iterdir()} == names
    text = (files / "README.md").read_text()
    assert re.sub(r"(!\[|All figures).*\n\n", "", text) == markdown  # Prefect has no place for pictures
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
    assert "0:00:05" in (copied / "README.md").read_text()
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
    assert "learning_rate" not in markdown
    assert "density of magnitude, TIES and DARE merges 0.7" in markdown


def test_the_report_says_what_it_is_of(sqlite_store: Store, cells: list[Cell]) -> None:
    _, markdown = report(sqlite_store, cells)
    # s²/n = 8/2 = 4, the seeds' own errors are 1: √(4 + 1)
    assert f"80.0 [{80 - 1.96 * math.sqrt(5):.1f}, {80 + 1.96 * math.sqrt(5):.1f}]" in markdown
    assert "Base model scale@0123, seeds 0, 1" in markdown
    assert "3 cells computed and 4 cached in 0:01:15 by the flow run that wrote this; training alone" in markdown
    assert "over all adapters, 0:03:00" in markdown
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


def named(intervals: Mapping[str, Mapping[str, Interval]]) -> Intervals:
    return {RowName.parse(name): found for name, found in intervals.items()}


INTERVALS = named(
    {
        "lori-d": {"nlu": Interval(85.0, 82.0, 88.0, 5), "mean": Interval(85.0, 82.0, 88.0, 5)},
        "lori-d − lora": {"nlu": Interval(1.0, -1.5, 2.5, 5), "mean": Interval(1.0, -1.5, 2.5, 5)},
        "lori-s − lora": {"nlu": Interval(3.0, 1.0, 5.0, 5), "mean": Interval(3.0, 1.0, 5.0, 5)},
        "lori-s-fresh-a − lori-s": {"mean": Interval(-4.0, -6.0, -2.0, 5)},
        "lori-s-trained-a − lori-s": {"mean": Interval(-1.0, -3.0, 1.0, 5)},
        "lori-s-random-mask − lori-s": {"mean": Interval(-4.0, -6.0, -2.0, 4)},
        "lori-s − dora": {"mean": Interval(1.0, 0.5, 1.5, 5)},
        "lori-s kept − lora kept": {"safety": Interval(9.0, 2.0, 16.0, 4), "mean": Interval(9.0, 2.0, 16.0, 4)},
    }
)


def test_the_report_opens_with_the_claims_and_ends_with_every_difference(
    sqlite_store: Store, cells: list[Cell]
) -> None:
    handle, markdown = report(sqlite_store, cells, intervals=INTERVALS)
    headings = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert headings[0] == "## The paper's claims"
    claims = [line for line in markdown.splitlines() if "| > " in line]
    assert [line.split(" | ")[1:] for line in claims] == [
        ["cannot tell", "lori-d − lora", "+1.0 [-1.5, +2.5]", "> -1", "cannot tell", "5 |"],
        ["cannot tell", "lori-s − lora", "+3.0 [+1.0, +5.0]", "> -1", "holds", "5 |"],
        ["cannot tell", "lori-d concat − lora concat", "–", "> 0", "cannot tell", "– |"],  # not computed
        ["cannot tell", "lori-s kept − lora kept", "+9.0 [+2.0, +16.0]", "> 0", "cannot tell", "4 |"],  # too few seeds
    ]
    assert "| – why |  | lori-s-fresh-a − lori-s | -4.0 [-6.0, -2.0] |  | differs | 5 |" in markdown
    assert "| – why |  | lori-s-trained-a − lori-s | -1.0 [-3.0, +1.0] |  | no difference seen | 5 |" in markdown
    assert "| – why |  | lori-s-random-mask − lori-s | -4.0 [-6.0, -2.0] |  | cannot tell | 4 |" in markdown
    assert "| – beside |  | lori-s − dora | +1.0 [+0.5, +1.5] |  | differs | 5 |" in markdown
    assert "| lori-s kept − lora kept | – | +9.0 [+2.0, +16.0] | +9.0 [+2.0, +16.0] |" in markdown
    files = tracking.fetch(sqlite_store.runtime, handle)
    with (files / "differences.csv").open() as file:
        first, *_ = csv.DictReader(file)
    assert [first[name] for name in ("pair", "nlu", "nlu_low", "nlu_high", "safety", "safety_low")] == [
        "lori-d − lora", "1.0", "-1.5", "2.5", "", "",
    ]  # fmt: skip
    with (files / "intervals.csv").open() as file:
        assert [line["row"] for line in csv.DictReader(file)] == ["lori-d", "lori-d"]


def pair_of(domains: list[str], cosine: float, overlap: float | None) -> dict[str, Any]:
    modules = {
        f"model.layers.{layer}.{name}": {
            "cosine": sign * cosine,
            "kept": [0.1, 0.2] if overlap else None,
            "z": sign * 3.0 if overlap else None,
        }
        for layer, name, sign in ((1, "q_proj", 1), (0, "q_proj", -1), (10, "mlp.up_proj", 0))
    }
    return {
        "domains": domains,
        "cosine": cosine,
        "alignment": 0.05,
        "chance": 0.04,
        "overlap": overlap,
        "modules": modules,
    }


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
    assert "![|cosine of ΔW| by layer and projection](interference.png)" in (files / "README.md").read_text()


def test_a_heat_map_has_layers_in_their_order_and_gaps_where_a_layer_has_no_such_module() -> None:
    pairs = [pair_of(["nlu", "math"], 0.2, None)]
    values, layers, projections = by_module(pairs, lambda module: abs(module["cosine"]))
    assert (layers, projections) == (["0", "1", "10"], ["q_proj", "up_proj"])
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


def found(low: float, high: float, num_seeds: int = 5) -> Interval:
    return Interval((low + high) / 2, float(low), float(high), num_seeds)


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
    long, short = 20 * '"x', 13 * '"x"'  # 40 and 39 characters, each quotation mark six of the page's
    page = to_html(f"# Results\n\n| a | b |\n| --- | ---: |\n| **{long}** | {short} |\n", tmp_path)
    assert f'<td class="long"><strong>{html.escape(long)}</strong></td>' in page
    assert f'<td style="text-align:right">{html.escape(short)}</td>' in page


def test_the_report_leaves_nothing_in_the_working_directory(
    sqlite_store: Store, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report(sqlite_store, cells)
    assert not list(Path.cwd().iterdir())


def of_base(store: Store, base: str, cells: list[Cell], **settings: Any) -> str:
    """The Markdown of a complete report on another base."""
    return report(store, cells, base_model=base, **settings)[1]


def section(markdown: str) -> list[list[str]]:
    lines = markdown.partition("## Beside other base models\n\n")[2].partition("\n\n")[0].splitlines()
    return [[text.strip() for text in line.strip("|").split("|")] for line in lines if "---" not in line]


def test_a_base_is_shown_beside_the_newest_report_of_each_other(sqlite_store: Store, cells: list[Cell]) -> None:
    better = tracked(sqlite_store, single("lora", "nlu", 90.0))
    assert "Beside other" not in of_base(sqlite_store, "first@1", cells)
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
    assert "Beside other" not in of_base(sqlite_store, "second@1", cells)
    assert "Some cells failed" not in of_base(sqlite_store, "first@1", cells)  # made whole
    assert "Beside other" in of_base(sqlite_store, "second@1", cells)


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


def test_a_figure_has_a_bar_for_each_number_of_its_table(tmp_path: Path) -> None:
    cells = [single("lora", "nlu", 80.0), single("lori-s", "nlu", 60.0), single("lori-s", "math", 40.0)]
    axes = Figure().subplots()
    (chart,) = charts_of({**NO_TABLES, "single": single_table(cells, [])})["single"]
    charts_png.draw(axes, chart)
    drawn = [bars for bars in axes.containers if isinstance(bars, BarContainer)]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in drawn}
    assert heights == {"lora": [80.0], "lori-s": [60.0, 40.0]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["NLU accuracy ↑", "Math accuracy ↑"]
