"""What is wrong with rows, or with what a user asked for, is said with its place; nothing is half-loaded."""

from pathlib import Path

import pytest

from helpers.rows import read_rows, real_data_dir, write_rows
from lori.config import DataConfig
from lori.datasets.paper_examples import paper_rows
from lori.datasets.paper_sources import SOURCES
from lori.datasets.rows import make_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Our own rows, to be broken."""
    return real_data_dir(tmp_path, None)


BROKEN = {
    "a missing column": ("codealpaca/train.json", {"output": ...}, "row 1: it has no column 'output', expected instr"),
    "a number": ("codealpaca/train.json", {"output": 5}, "row 1: output is 5, expected a text"),
    "nothing": ("saferpaca/train.json", {"instruction": None}, "row 1: instruction is None, expected a text"),
    "an unknown answer": ("commonsense/piqa/test.json", {"answer": "answer1"}, "'answer1', expected one of solution1"),
    "no final number": ("gsm8k/train.jsonl", {"answer": "72"}, "ends in '72', expected a number behind '#### '"),
    "a word for a number": ("gsm8k/test.jsonl", {"answer": "#### seven"}, "row 1: answer ends in '#### seven'"),
    "no tests": ("humaneval/HumanEval.jsonl", {"test": ...}, "row 1: it has no column 'test'"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "change", "told"), BROKEN.values(), ids=BROKEN)
def test_a_malformed_row_is_named_and_nothing_is_loaded(folder, path, change, told):
    rows = read_rows(folder, path)
    changed = {name: value for name, value in {**rows[1], **change}.items() if value is not ...}
    write_rows(folder, path, [rows[0], changed, *rows[2:]])
    (source,) = (source for source in SOURCES if source.path == path)
    with pytest.raises(ValueError, match="row 1") as raised:
        # It lies behind the only row that is asked for
        paper_rows(DataConfig("paper", source.domain, source.split, 1), folder)
    assert str(folder / path) in str(raised.value)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("gsm8k/test.jsonl", '{"question": "q", "answer": "#### 1"}\n{"question": \n', "row 1 is no JSON"),
        ("gsm8k/test.jsonl", "[1]\n", r"row 0: it is \[1\], expected question, answer"),
        ("humaneval/HumanEval.jsonl", "x\n", "row 0 is no JSON"),
        ("codealpaca/train.json", '[{"instruction": "\\ud800", "input": "", "output": ""}]', "holds half a character"),
        ("saferpaca/train.json", '[{"instruction": "cut', "cannot be read: Unterminated string"),
        ("saferpaca/train.json", '{"instruction": "x"}', "holds a dict, expected a list of rows"),
        ("saferpaca/train.json", b'["\xff"]', "cannot be read: 'utf-8' codec"),
        ("hexphi/category_3.csv", "one,two\n", "row 0: it has more than 1 columns, expected request"),
        ("hexphi/category_3.csv", '"never closed\n', "category_3.csv cannot be read: unexpected end"),
        ("xstest/xstest_prompts.csv", "prompt,type,label\nHi,x,unsure\n", "row 0: label is 'unsure', expected safe"),
        ("xstest/xstest_prompts.csv", "prompt,type,label\nHi,x\n", "row 0: label is None, expected a text"),
    ],
)
def test_a_file_that_is_not_upstreams_is_named(folder, path, text, told):
    (folder / path).write_bytes(text.encode() if isinstance(text, str) else text)
    (source,) = (source for source in SOURCES if Path(path).match(source.path))
    with pytest.raises(ValueError, match=told) as raised:
        paper_rows(DataConfig("paper", source.domain, source.split, None), folder)
    assert str(folder / path) in str(raised.value)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (DataConfig("paper", "poetry", "test", None), "Unknown domain 'poetry'"),
        (DataConfig("paper", "math", "validation", None), r"no split 'validation'\. Known: train, test"),
        (DataConfig("paper", "math", "test", None, prompt_style="chat"), "Unknown prompt style 'chat'"),
    ],
)
def test_what_a_user_got_wrong_is_told_the_known_names(folder, bad, told):
    with pytest.raises(ValueError, match=told):
        make_rows(bad, folder)


def test_the_scale_models_rows_need_a_number_and_no_folder(folder):
    assert len(make_rows(DataConfig("miniature", "math", "test", 3), folder)) == 3
    with pytest.raises(ValueError, match="say how many"):
        make_rows(DataConfig("miniature", "math", "test", None))
