"""The names of compared rows: a record and its text say the same, and the texts are those of earlier results."""

import pytest
from flows.adapt import single_domain
from flows.claims import claimed, controls
from flows.continual import continual_learning
from flows.merge import merging

from flows.ablate import continual_ablations, mask_ablations, merge_ablations
from flows.study.checks import note_cell
from flows.study.comparison import comparison
from flows.study.run import Study
from lori.choices.profiles import ABLATIONS
from lori.config import Hardware
from lori.evaluation.claims import CLAIMS
from lori.evaluation.row_names import RowName
from lori.recipes.checked_profile import profile
from tasks.engine.cells import Cells

LORA, LORI_S = RowName("lora"), RowName("lori-s")
KEPT = RowName("lori-s", measured="kept")
NAMES = {
    "lori-s": LORI_S,
    "lori-s concat": RowName("lori-s", merge="concat"),
    "lori-s sparsity 0.5": RowName("lori-s", setting="sparsity", value="0.5"),
    "lori-s calibration rows all": RowName("lori-s", setting="calibration rows", value="all"),
    "lori-s weight of concat 0.5": RowName("lori-s", merge="concat", setting="weight", value="0.5"),
    "lori-s safety → nlu, rows 96": RowName(
        "lori-s", first_domain="safety", new_domain="nlu", setting="rows", value="96"
    ),
    "lori-s kept": KEPT,
    "lori-s kept nlu": RowName("lori-s", measured="kept", new_domain="nlu"),
    "lori-s over-refusal": RowName("lori-s", is_over_refusal=True),
    "lori-s concat over-refusal": RowName("lori-s", merge="concat", is_over_refusal=True),
    "lori-s kept nlu over-refusal": RowName("lori-s", measured="kept", new_domain="nlu", is_over_refusal=True),
    "lori-s − lora": RowName("lori-s", minus=LORA),
    "lori-s concat − lori-s less lora concat − lora": RowName(
        "lori-s", merge="concat", minus=LORI_S, less=RowName("lora", merge="concat", minus=LORA)
    ),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_a_record_and_a_text(text: str) -> None:
    assert RowName.parse(text) == NAMES[text]
    assert str(NAMES[text]) == text


def test_a_difference_has_two_sides() -> None:
    of_pairs = RowName.parse("a kept − b kept less c − d")
    assert [*map(str, of_pairs.sides)] == ["a kept − b kept", "c − d"]
    assert [*map(str, of_pairs.sides[0].sides)] == ["a kept", "b kept"]


def test_the_labels_of_a_tables_row_name_it() -> None:
    merge = {"method": "lora", "merge": "concat", "weights": (0.5, 0.5), "seed": 0}
    assert str(RowName.of(merge)) == "lora concat"
    ablation = {"method": "lora", "setting": "safety → nlu, rows", "value": "all", "domain": "nlu"}
    assert str(RowName.of(ablation)) == "lora safety → nlu, rows all"


def test_all_names_that_a_study_compares_are_read_back_as_they_were_written() -> None:
    chosen = profile("smoke", domains=["safety", "nlu", "math"])
    study = claimed(Study(chosen, Hardware(), plan_only=True, cells=Cells(submit=note_cell)))
    rows = [
        *(row for stage in (single_domain, merging, continual_learning) for row in stage(study)),
        *controls(study, None),
        *mask_ablations(study.varied(methods=("lori-s",)), ABLATIONS),
        *merge_ablations(study, [0.5, 1.0]),
        *continual_ablations(study, [16]),
    ]
    config = comparison(study.cells, rows).config
    names = {*config.rows, *config.pairs, *(str(pair) for claim in CLAIMS for pair in claim.pairs)}
    assert {str(RowName.parse(name)) for name in names} == names
    parsed = {RowName.parse(name) for name in names}
    assert len(parsed) == len(names)
    assert {RowName.parse(str(name)) for name in parsed} == parsed
    expected = {
        "lori-s sparsity 0.5 over-refusal",
        "lori-s calibration rows all",
        "lori-s weight of concat 1 − lori-s",
        "lori-s adapters of concat 2",
        "lori-s norms of concat matched",
        "lori-s safety → math, rows 16",
        "lori-s before math over-refusal",
        "lori-s concat − lori-s",
    }
    assert expected - names == set()
