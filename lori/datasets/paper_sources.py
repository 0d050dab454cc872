"""Where the paper's datasets come from, and their files: from a data folder, or fetched once and kept."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from huggingface_hub import HfApi, constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

TIMEOUT_SECONDS = 60


class DataUnavailable(RuntimeError):
    """Rows that cannot be had: not in the folder, not permitted, not found, not reachable, or too few."""


@dataclass(frozen=True)
class Source:
    """Where the rows of one set come from, and what they look like there.

    In a data folder they lie at `path`. Else they are the files `files` of the hub's dataset `hub` at the commit
    `revision` (None: its newest one), or the file at `url`, whose commit is in the address. `kind` says how a row
    becomes an example (`BUILD`, paper_examples.py). `num_rows` are the numbers of rows that a fetched set may have,
    where they are known exactly. `choices` are what an answer may be: the family's pattern in the released evaluation.
    """

    domain: str
    split: str
    name: str
    path: str
    kind: str
    columns: tuple[str, ...]
    num_rows: tuple[int, ...] = ()
    hub: str = ""
    files: str = ""
    revision: str | None = None
    url: str = ""
    choices: tuple[str, ...] = ()
    has_header: bool = True

    @property
    def origin(self) -> str:
        """The hub's dataset, or the address."""
        return self.hub or self.url

    @property
    def instead(self) -> str:
        """How to do without fetching it: the end of a sentence."""
        return f"or set LORI_DATA to a folder that has {self.path}"


_GITHUB = "https://raw.githubusercontent.com"
_LLM_ADAPTERS = f"{_GITHUB}/AGI-Edgerunners/LLM-Adapters/816657208af4db747803f87ba40a4c71383fed7a/dataset"
_INSTRUCTION = ("instruction", "input", "output")
_ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
# By set: its folder upstream, the number of its rows (paper) and what an answer may be
_NLU = {
    "boolq": ("boolq", 3270, ("true", "false")),
    "piqa": ("piqa", 1838, ("solution1", "solution2")),
    "social_i_qa": ("social_i_qa", 1954, _ANSWERS),
    "arc-challenge": ("ARC-Challenge", 1172, _ANSWERS),
    "arc-easy": ("ARC-Easy", 2376, _ANSWERS),
    "openbookqa": ("openbookqa", 500, _ANSWERS),
    "hellaswag": ("hellaswag", 10042, ("ending1", "ending2", "ending3", "ending4")),
    "winogrande": ("winogrande", 1267, ("option1", "option2")),
}
SOURCES: tuple[Source, ...] = (
    Source(
        "nlu", "train", "commonsense", "commonsense/train.json", "instruction", _INSTRUCTION, (170_420,),
        hub="zwhe99/commonsense_170k", files="data/train-*.parquet",
    ),
    *(
        Source(
            "nlu", "test", name, f"commonsense/{name}/test.json", "choice", (*_INSTRUCTION, "answer"), (num_rows,),
            url=f"{_LLM_ADAPTERS}/{folder}/test.json", choices=choices,
        )
        for name, (folder, num_rows, choices) in _NLU.items()
    ),
    *(
        Source(
            "math", split, "gsm8k", f"gsm8k/{split}.jsonl", "math", ("question", "answer"), (num_rows,),
            hub="openai/gsm8k", files=f"main/{split}-*.parquet", revision="740312add88f781978c0658806c59bc2815b9866",
        )
        for split, num_rows in (("train", 7473), ("test", 1319))
    ),
    Source(
        "code", "train", "codealpaca", "codealpaca/train.json", "instruction", _INSTRUCTION, (20_022,),
        hub="sahil2801/CodeAlpaca-20k", files="code_alpaca_20k.json",
        revision="152bb5e9a29651266b018106053980070a0521a1",
    ),
    Source(
        "code", "test", "humaneval", "humaneval/HumanEval.jsonl", "function",
        ("prompt", "entry_point", "canonical_solution", "test"), (164,),
        hub="openai/openai_humaneval", files="openai_humaneval/test-*.parquet",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    ),
    Source(  # 20k of Alpaca and 2k about safety: neither says exactly how many
        "safety", "train", "saferpaca", "saferpaca/train.json", "instruction", _INSTRUCTION,
        url=f"{_GITHUB}/vinid/safety-tuned-llamas/36a4b8d5c2177ed165bf61f59b590161394f7f12"
        "/data/training/saferpaca_Instructions_2000.json",
    ),
    Source(  # eleven categories of 30 in the paper; the second has been withdrawn since
        "safety", "test", "hexphi", "hexphi/category_*.csv", "harmful", ("request",), (330, 300),
        hub="LLM-Tuning-Safety/HEx-PHI", files="category_*.csv",
        revision="83128b46334b80cc567bd7a2caf7af11c5b0bab7", has_header=False,
    ),
    Source(  # not in the paper: 250 of its rows are harmless requests (Röttger et al. 2024, XSTest)
        "safety", "test", "xstest", "xstest/xstest_prompts.csv", "harmless", ("prompt", "type", "label"), (450,),
        url=f"{_GITHUB}/paul-rottger/xstest/d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d/xstest_prompts.csv",
    ),
)  # fmt: skip
# What went wrong, the special before the general: a gated dataset is also one that is not found
_REASONS = {
    GatedRepoError: "is gated: accept its terms at https://huggingface.co/datasets/{origin} and set HF_TOKEN",
    RepositoryNotFoundError: "was not found on the hub, or is private: see whether it has moved",
    RevisionNotFoundError: "has no commit {revision}: see whether it was written anew",
    HfHubHTTPError: "cannot be fetched ({error}): try later",
    requests.HTTPError: "cannot be fetched ({error}): see whether it has moved",
    Exception: "could not be reached ({error}): connect",
}


def files_of(source: Source, data_dir: Path | None) -> list[Path]:
    """The files of a set, in order: those in `data_dir`, or else fetched unless they were before.

    Files of the hub lie in a folder that is called as the commit.

    Raises:
        DataUnavailable: if they are not there, or cannot be fetched; it says why and what to do.
    """
    if data_dir is not None:
        return _in_folder(source, data_dir)
    try:
        return _from_hub(source) if source.hub else [_download(source.url)]
    except (OSError, HTTPError) as error:
        raise _unavailable(source, error) from error


def check_sources(domains: Sequence[str], data_dir: Path | None) -> None:
    """Whether all rows of `domains` can be had, before any of them is fetched.

    Raises:
        DataUnavailable: for the first set that is not in `data_dir`, or was not fetched before and cannot be now.
    """
    for source in SOURCES:
        if source.domain in domains:
            if data_dir is None:
                _check_fetchable(source)
            else:
                _in_folder(source, data_dir)


def _in_folder(source: Source, data_dir: Path) -> list[Path]:
    """As upstream has them, or as parquet."""
    paths = _ordered(data_dir, source.path) or _ordered(data_dir, str(Path(source.path).with_suffix(".parquet")))
    if not paths:
        raise DataUnavailable(
            f"{data_dir / source.path} is missing: {source.domain} needs it to {source.split} ({source.origin})."
            " Put it there, or name no data folder to fetch all sets."
        )
    return paths


def _ordered(folder: Path, pattern: str) -> list[Path]:
    """category_3 before category_10."""
    return sorted(folder.glob(pattern), key=lambda path: [int(run) for run in re.findall(r"\d+", path.name)])


def _from_hub(source: Source, *, cached_only: bool = False) -> list[Path]:
    folder = snapshot_download(
        source.hub,
        repo_type="dataset",
        revision=source.revision,
        allow_patterns=source.files,
        local_files_only=cached_only,
    )
    paths = _ordered(Path(folder), source.files)
    if not paths:
        raise FileNotFoundError(f"it has no file {source.files}")
    return paths


def _cached(url: str) -> Path:
    """Its place in the hub's cache folder, readable: an error in a row names it."""
    parts = urlsplit(url)
    return Path(constants.HF_HOME) / "lori" / parts.netloc / parts.path.lstrip("/")


def _download(url: str) -> Path:
    path = _cached(url)
    if not path.exists():  # the commit is in the address, so that it cannot be out of date
        answer = _ask("GET", url)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(answer.content)
        part.replace(path)
    return path


def _ask(method: str, url: str) -> requests.Response:
    if is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    answer = requests.request(method, url, timeout=TIMEOUT_SECONDS, allow_redirects=True)
    answer.raise_for_status()
    return answer


def _check_fetchable(source: Source) -> None:
    try:
        if _is_cached(source):
            return
        if source.hub:
            HfApi().auth_check(source.hub, repo_type="dataset")
        else:
            _ask("HEAD", source.url)
    except (OSError, HTTPError) as error:
        raise _unavailable(source, error) from error


def _is_cached(source: Source) -> bool:
    if not source.hub:
        return _cached(source.url).exists()
    try:
        return bool(_from_hub(source, cached_only=True))
    except FileNotFoundError:
        return False


def _unavailable(source: Source, error: Exception) -> DataUnavailable:
    reason = next(text for kind, text in _REASONS.items() if isinstance(error, kind))
    first_line = str(error).partition("\n")[0].rstrip(".")
    told = reason.format(origin=source.origin, revision=source.revision, error=first_line)
    return DataUnavailable(f"{source.origin} {told}, {source.instead}.")
