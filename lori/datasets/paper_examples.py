"""The rows of the paper's datasets as examples, in the words of a prompt style.

Rows are taken as they are: none is dropped, repeated prompts stay, and no character changes. So `datasets` reads
parquet, which says what is a text; JSON and CSV are read here, as it would make a date of the text "2020-01-01
00:00:00" and nothing of the request "None".
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lori.choices.domains import Example, domain
from lori.config import DataConfig
from lori.datasets.paper_sources import SOURCES, DataUnavailable, Source, check_sources, files_of
from lori.datasets.prompts import (
    ANSWER_MARK,
    NUMBER,
    PROMPT_STYLES,
    PromptStyle,
    check_prompt_style,
    instruction_prompt,
    math_prompt,
    math_response,
    request_prompt,
)

__all__ = [
    "SOURCES",
    "DataUnavailable",
    "Source",
    "check_sources",
    "origins",
    "paper_rows",
    "rows_digest",
    "source_rows",
    "with_digest",
]
Row = dict[str, Any]
Built = tuple[str, str, Any]  # prompt, response, answer
Stamps = tuple[tuple[str, int, int], ...]  # path, time of the last change in ns, bytes
SPLITS = ("train", "test")
SURROGATE = re.compile(r"[\ud800-\udfff]")


def paper_rows(config: DataConfig, data_dir: Path | None) -> list[Example]:
    """The rows of a domain's split, from `data_dir` or else fetched: of each of its sets the first `num_rows`.

    Raises:
        ValueError: for an unknown domain, split or prompt style; for a row that is not as upstream's, with its place;
            if the rows are not those that `config.sha256` stands for.
        DataUnavailable: if a set is missing or cannot be fetched, or a fetched one has not as many rows as it should.
    """
    check_prompt_style(config.prompt_style)
    examples = [
        example
        for source in _sources(config)
        for example in source_rows(source, config.prompt_style, data_dir)[: config.num_rows]
    ]
    if config.sha256 is not None and config.sha256 != (digest := rows_digest(examples)):
        raise ValueError(
            f"The rows of {config.domain}/{config.split} have changed: their digest is {digest}, and not"
            f" {config.sha256} as when this run began. Bring those rows back, or start a new run on these."
        )
    return examples


def source_rows(source: Source, prompt_style: str, data_dir: Path | None) -> list[Example]:
    """All rows of one set. An id is the set, the split and the row's place in its file.

    Test rows have an answer, and those of GSM8K: a row to train on needs none.
    """
    style = PROMPT_STYLES[prompt_style]
    examples: list[Example] = []
    num_rows = Counter[str]()
    for path, index, row in _placed_rows(source, data_dir):
        group = f"{source.name}/{source.split}" + (f"/{path.stem}" if "*" in source.path else "")
        try:
            built = BUILD[source.kind](_checked(row, source), source, style)
        except ValueError as error:
            raise ValueError(f"{path}, row {index}: {error}.") from None
        if built:
            examples.append(Example(f"{group}/{num_rows[group]}", source.name, *built))
        num_rows[group] += 1
    if not examples:
        raise DataUnavailable(f"{files_of(source, data_dir)[0]} has no rows. Bring it back, {source.instead}.")
    if data_dir is None and source.num_rows and num_rows.total() not in source.num_rows:
        raise DataUnavailable(
            f"{source.origin} has {num_rows.total()} rows, expected {' or '.join(map(str, source.num_rows))}: it has"
            f" changed, or was not fetched as a whole. Delete {files_of(source, None)[0]} and try again,"
            f" {source.instead}."
        )
    return examples


def rows_digest(examples: Sequence[Example]) -> str:
    """SHA-256 of every field of every row, in order: of the bytes that `data.save_rows` writes."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{json.dumps(vars(example), sort_keys=True)}\n".encode())
    return digest.hexdigest()


def with_digest(config: DataConfig, data_dir: Path | None) -> DataConfig:
    """`config` with the digest of its rows, so that other rows are another result. It raises what `paper_rows` does.

    Rows are read again only where a file has changed.
    """
    paths = [path for source in _sources(config) for path in files_of(source, data_dir)]
    stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
    return replace(config, sha256=_digest(replace(config, sha256=None), data_dir, stamps))


@lru_cache(maxsize=64)
def _digest(config: DataConfig, data_dir: Path | None, _stamps: Stamps) -> str:
    return rows_digest(paper_rows(config, data_dir))


def origins(config: DataConfig, data_dir: Path | None) -> dict[str, list[str]]:
    """By set, the files that its rows are read from; a fetched one's path holds the commit."""
    return {source.name: [str(path) for path in files_of(source, data_dir)] for source in _sources(config)}


def _sources(config: DataConfig) -> list[Source]:
    domain(config.domain)
    if config.split not in SPLITS:
        raise ValueError(f"The paper's datasets have no split {config.split!r}. Known: {', '.join(SPLITS)}.")
    return [source for source in SOURCES if (source.domain, source.split) == (config.domain, config.split)]


def _instruction_row(row: Row, source: Source, style: PromptStyle) -> Built:
    """A row to train on. An empty response stays one: it teaches to end at once."""
    return instruction_prompt(style, source.split, row["instruction"], row["input"] or ""), row["output"], None


def _choice_row(row: Row, source: Source, style: PromptStyle) -> Built:
    if row["answer"] not in source.choices:
        raise ValueError(f"answer is {row['answer']!r}, expected one of {', '.join(source.choices)}")
    # The released evaluation finds answer1 in "answer10", too
    answer = {"correct": row["answer"], "choices": list(source.choices), "whole_words": False}
    prompt, response, _ = _instruction_row(row, source, style)
    return prompt, response, answer


def _math_row(row: Row, _source: Source, style: PromptStyle) -> Built:
    _, mark, tail = row["answer"].rpartition(ANSWER_MARK)
    if not mark or not NUMBER.fullmatch(tail.strip()):
        raise ValueError(f"answer ends in {row['answer'][-20:]!r}, expected a number behind {ANSWER_MARK!r}")
    answer = {"number": tail.strip().replace(",", "")}
    return math_prompt(row["question"]), math_response(style, row["answer"]), answer


def _function_row(row: Row, _source: Source, style: PromptStyle) -> Built:
    prompt = row["prompt"].strip() if style.strips_functions else row["prompt"]
    return prompt, row["canonical_solution"], {"entry_point": row["entry_point"], "test": row["test"]}


def _harmful_row(row: Row, _source: Source, style: PromptStyle) -> Built:
    return request_prompt(style, row["request"]), "", {"harmful": True}


def _harmless_row(row: Row, _source: Source, style: PromptStyle) -> Built | None:
    """None for XSTest's unsafe rows: the paper's harmful requests are HEx-PHI's."""
    if row["label"] not in ("safe", "unsafe"):
        raise ValueError(f"label is {row['label']!r}, expected safe or unsafe")
    if row["label"] == "unsafe":
        return None
    return request_prompt(style, row["prompt"]), "", {"harmful": False, "cluster": row["type"]}


BUILD: dict[str, Callable[[Row, Source, PromptStyle], Built | None]] = {
    "instruction": _instruction_row,
    "choice": _choice_row,
    "math": _math_row,
    "function": _function_row,
    "harmful": _harmful_row,
    "harmless": _harmless_row,
}


def _placed_rows(source: Source, data_dir: Path | None) -> Iterator[tuple[Path, int, Any]]:
    for path in files_of(source, data_dir):
        try:
            for index, row in enumerate(READERS[path.suffix](path, source)):
                yield path, index, row
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read: {error}.") from None


def _checked(row: Any, source: Source) -> Row:
    """A row that has its columns, which are texts."""
    expected = f"expected {', '.join(source.columns)}"
    if not isinstance(row, dict):
        raise ValueError(f"it is {row!r}, {expected}")
    if None in row:  # where csv puts what has no column
        raise ValueError(f"it has more than {len(row) - 1} columns, {expected}")
    for column in source.columns:
        if column not in row:
            raise ValueError(f"it has no column {column!r}, {expected}")
        if not isinstance(row[column], str) and (column, row[column]) != ("input", None):
            raise ValueError(f"{column} is {row[column]!r}, expected a text")
        if SURROGATE.search(row[column] or ""):
            raise ValueError(f"{column} is {row[column]!r}, which holds half a character")
    return row


def _read_json(path: Path, _source: Source) -> list[Any]:
    rows = json.loads(path.read_bytes())
    if not isinstance(rows, list):
        raise ValueError(f"it holds a {type(rows).__name__}, expected a list of rows")
    return rows


def _read_json_lines(path: Path, _source: Source) -> Iterator[Any]:
    with path.open("rb") as file:
        for index, line in enumerate(line for line in file if line.strip()):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"row {index} is no JSON ({error})") from None


def _read_csv(path: Path, source: Source) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, None if source.has_header else source.columns, strict=True)


def _read_parquet(path: Path, _source: Source) -> list[Row]:
    from datasets import Dataset  # seconds that most data folders do not need

    return Dataset.from_parquet(str(path), keep_in_memory=True).to_list()


READERS: dict[str, Callable[[Path, Source], Iterable[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
