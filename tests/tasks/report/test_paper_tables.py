"""The tables say what the handles say: nothing rounded away in the CSV, and how sure it is."""

import math
from dataclasses import replace

import pytest

from helpers.report_inputs import HEADLINES, NO_TABLES, adapter, merged, scores, single
from lori.evaluation.scoring import mean_of
from tasks.report.analysis_tables import matched_table, norms_table
from tasks.report.charts import charts_of
from tasks.report.paper_tables import ablations_table, continual_table, merging_table, single_table, sweep_table
from tasks.report.table import Estimate, Table, combine, to_csv, to_markdown
from tasks.report.write import Cell
from tasks.results import Handle


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


def test_values_that_would_share_a_place_on_an_axis_are_drawn_as_groups() -> None:
    def kind(*values: str) -> str:
        labels = {**single("lori-s", "nlu", 70.0).row, "setting": "sparsity"}
        rows = [{**labels, "value": value} for value in values]
        cells = [replace(single("lori-s", "nlu", 70.0), table="ablations", row=row) for row in rows]
        (chart,) = charts_of({**NO_TABLES, "ablations": ablations_table(cells, cells)})["ablations"]
        return chart.kind

    assert kind("0.0", "0.5", "0.9", "0.95", "0.99") == "groups"
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
