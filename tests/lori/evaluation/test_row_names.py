"""The names of compared rows: a record and its text say the same, and the texts are those of earlier results."""

import pytest

from flows.ablate import continual_ablations, mask_ablations, merge_ablations
from flows.study.comparison import comparison
from flows.study.run import Study
from flows.tables import STAGES, control_rows
from lori.choices.profiles import ABLATIONS
from lori.evaluation.claims import CLAIMS
from lori.evaluation.row_names import RowName
from lori.recipes.checked_profile import profile

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
    study = Study(chosen).varied(merged=chosen.continual_methods)
    rows = [
        *(row for stage in (*STAGES.values(), control_rows) for row in stage(study)),
        *mask_ablations(study.varied(methods=("lori-s",)), ABLATIONS),
        *merge_ablations(study, [0.5, 1.0]),
        *continual_ablations(study, [16]),
    ]
    compared = comparison(study.cells, rows)
    assert compared
    config = compared.config
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lori-s", "LoRI-S"),
        ("lori-d-trained-a concat", "LoRI-D with a trained A merged by concat"),
        ("lora-fa sparsity 0.5", "lora-fa with sparsity 0.5"),
        ("lori-d − lora", "LoRI-D, compared with LoRA"),
        ("lori-d concat − lora concat", "LoRI-D, compared with LoRA, both merged by concat"),
        ("lori-d concat − lori-d", "LoRI-D merged by concat, compared with LoRI-D"),
        (
            "lori-s kept nlu − lora kept nlu",
            "LoRI-S, compared with LoRA, both on the first domain after another (nlu)",
        ),
        ("lori-s over-refusal − full over-refusal", "LoRI-S, compared with full fine-tuning, both in over-refusal"),
        (
            "lori-d concat − lori-d less lora concat − lora",
            "LoRI-D's change once merged by concat, compared with LoRA's",
        ),
        (
            "lori-s kept − lori-s before less lora kept − lora before",
            "LoRI-S's change on the first domain after another, compared with LoRA's",
        ),
    ],
)
def test_a_name_is_words_for_readers_of_the_paper(text: str, words: str) -> None:
    assert RowName.parse(text).in_words == words
