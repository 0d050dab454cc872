"""Where the paper's datasets come from, and what is said of one that cannot be had: against a hub of our own."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from rows import real_data_dir, written_files
from waiting import PATIENCE

from lori.config import DataConfig
from lori.datasets.paper_examples import paper_rows
from lori.datasets.paper_sources import SOURCES, DataUnavailable, check_sources

NLU_SETS = ("boolq", "piqa", "social_i_qa", "arc-challenge", "arc-easy", "openbookqa", "hellaswag", "winogrande")
BY_NAME = {(source.name, source.split): source for source in SOURCES}


# the table


def test_the_test_sets_are_as_large_as_the_papers():
    sizes = [BY_NAME[name, "test"].num_rows for name in (*NLU_SETS, "gsm8k", "humaneval")]
    assert sizes == [
        (3270,), (1838,), (1954,), (1172,), (2376,), (500,), (10042,), (1267,), (1319,), (164,),
    ]  # fmt: skip
    assert BY_NAME["gsm8k", "train"].num_rows == (7473,)
    assert 330 in BY_NAME["hexphi", "test"].num_rows


def test_every_set_names_its_commit_but_the_one_whose_is_not_known():
    commit = re.compile(r"\b[0-9a-f]{40}\b")
    assert [source.name for source in SOURCES if not commit.search(f"{source.revision} {source.url}")] == [
        "commonsense"
    ]


# a data folder


@pytest.mark.parametrize(
    ("path", "domain", "split"),
    [
        ("commonsense/hellaswag/test.json", "nlu", "test"),
        ("gsm8k/train.jsonl", "math", "train"),
        ("xstest/xstest_prompts.csv", "safety", "test"),
    ],
)
def test_a_set_that_the_folder_lacks_is_named_before_and_when_it_is_read(tmp_path, path, domain, split):
    folder = real_data_dir(tmp_path, None)
    every = ["nlu", "math", "code", "safety"]
    check_sources(every, folder)
    (folder / path).unlink()
    told = f"{folder / path} is missing: {domain} needs it to {split}"
    with pytest.raises(DataUnavailable, match=told):
        paper_rows(DataConfig("paper", domain, split, None), folder)
    with pytest.raises(DataUnavailable, match=told):
        check_sources(every, folder)
    check_sources(["code"], folder)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(DataUnavailable, match=r"no/such/folder/codealpaca/train\.json is missing"):
        check_sources(["code"], Path("no/such/folder"))


# the hub

NEWEST = "0123456789" * 4
ANSWERS = {  # by dataset, what the hub says: status and X-Error-Code, as huggingface.co sends them
    "LLM-Tuning-Safety/HEx-PHI": (403, "GatedRepo"),
    "sahil2801/CodeAlpaca-20k": (404, "RepoNotFound"),
    "openai/gsm8k": (404, "RevisionNotFound"),
}


def as_parquet(rows: list[dict], num_rows: int) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([rows[index % len(rows)] for index in range(num_rows)]), file)
    return file.getvalue()


WRITTEN = written_files()
FUNCTIONS = [json.loads(line) for line in WRITTEN["humaneval/HumanEval.jsonl"].splitlines()]
FILES = {
    "zwhe99/commonsense_170k": (
        "data/train-00000-of-00001.parquet",
        as_parquet(json.loads(WRITTEN["commonsense/train.json"]), 7),
    ),
    "openai/openai_humaneval": ("openai_humaneval/test-00000-of-00001.parquet", as_parquet(FUNCTIONS, 164)),
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub, and of a file server, as a download asks for."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = next((name for name in (*ANSWERS, *FILES) if f"datasets/{name}/" in path), None)
        if path == "/whole.json":
            self.reply(200, WRITTEN["saferpaca/train.json"].encode())
        elif path == "/cut.json":
            self.reply(200, b"[{", {"Content-Length": "100"})
        elif name is None or name in ANSWERS:
            status, code = ANSWERS.get(name or "", (404, ""))
            self.reply(status, b"{}", {"X-Error-Code": code})
        elif "/revision/" in path:
            self.reply(200, json.dumps({"id": name, "sha": NEWEST, "siblings": []}).encode())
        elif "/tree/" in path:
            listed = {FILES[name][0]: len(FILES[name][1]), "another-set.parquet": 10**12}
            tree = [{"type": "file", "path": file, "size": size, "oid": "1" * 40} for file, size in listed.items()]
            self.reply(200, json.dumps(tree).encode())
        elif "/resolve/" in path:
            commit = path.partition("/resolve/")[2].partition("/")[0]
            self.reply(200, FILES[name][1], {"ETag": '"1"', "X-Repo-Commit": commit})
        else:
            self.reply(200, b"{}")  # auth-check

    do_HEAD = do_GET

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# Each line of the input is an expression: what it gives, or the error that it raises
CHILD = """
import json, sys
from dataclasses import replace
from lori.config import DataConfig
from lori.datasets.paper_examples import *
from lori.datasets.paper_sources import _check_fetchable as check

def rows(domain, split): return paper_rows(DataConfig("paper", domain, split, None), None)
def origin(domain, split): return origins(DataConfig("paper", domain, split, None), None)
(saferpaca,) = (source for source in SOURCES if source.name == "saferpaca")
def at(url): return replace(saferpaca, url=url)

def outcome(line):
    try:
        return eval(line)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps([outcome(line) for line in sys.stdin.read().splitlines()]))
"""


def outcomes(lines: list[str], home: Path, endpoint: str, **settings: str) -> list:
    """What each expression gives in a process of its own: huggingface_hub reads its settings when it is imported."""
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    environment = {**os.environ, **ours, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", **settings}
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(lines),
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_what_the_hub_says_becomes_one_sentence_with_what_to_do(hub, tmp_path):
    gated, gated_check, lost, revision, short, moved, cut = outcomes(
        [
            'rows("safety", "test")',
            'check_sources(["safety"], None)',
            'rows("code", "train")',
            'rows("math", "test")',
            'rows("nlu", "train")',
            f'source_rows(at("{hub}/moved.json"), "plain", None)',
            f'source_rows(at("{hub}/cut.json"), "plain", None)',
        ],
        tmp_path,
        hub,
    )
    assert gated == (
        "DataUnavailable: LLM-Tuning-Safety/HEx-PHI is gated: accept its terms at https://huggingface.co/datasets/"
        "LLM-Tuning-Safety/HEx-PHI and set HF_TOKEN, or set LORI_DATA to a folder that has hexphi/category_*.csv."
    )
    assert gated_check.startswith("DataUnavailable: ")
    assert "sahil2801/CodeAlpaca-20k was not found on the hub" in lost
    assert "or set LORI_DATA to a folder that has codealpaca/train.json." in lost
    assert "openai/gsm8k has no commit 740312add88f781978c0658806c59bc2815b9866" in revision
    assert short.startswith("DataUnavailable: zwhe99/commonsense_170k has 7 rows, expected 170420:")
    assert "moved.json cannot be fetched (404" in moved
    assert "cut.json could not be reached" in cut
    assert not list(tmp_path.rglob("cut.json*"))  # nothing half-loaded stays


def test_fetched_rows_know_their_commit_and_are_there_without_the_hub(hub, tmp_path):
    lines = [
        '[example.prompt for example in rows("code", "test")]',
        'origin("code", "test")',
        'origin("nlu", "train")',
        f'len(source_rows(at("{hub}/whole.json"), "plain", None))',
        f'check(at("{hub}/whole.json"))',
    ]
    first = outcomes(lines, tmp_path, hub)
    prompts, pinned, newest, num_saferpaca, checked = first
    assert prompts == [FUNCTIONS[index % len(FUNCTIONS)]["prompt"] for index in range(164)]
    assert "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544" in pinned["humaneval"][0]
    assert NEWEST in newest["commonsense"][0]
    assert num_saferpaca == len(json.loads(WRITTEN["saferpaca/train.json"]))
    assert checked is None
    assert outcomes(lines, tmp_path, hub, HF_HUB_OFFLINE="1") == first


# Either nothing may be asked, or nobody answers at port 9. There the hub's client gives up on rows of a known commit
# after half a minute, so that it is the check that has to be quick.
@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({"HTTPS_PROXY": "http://127.0.0.1:9"}, "ProxyError")],
)
def test_without_a_network_one_sentence_names_the_folder_that_would_do(tmp_path, settings, reason):
    lines = ['rows("nlu", "train")', 'rows("safety", "train")', 'check_sources(["code"], None)']
    told = [
        ("zwhe99/commonsense_170k", "commonsense/train.json"),
        ("https://raw.githubusercontent.com/vinid/", "saferpaca/train.json"),
        ("sahil2801/CodeAlpaca-20k", "codealpaca/train.json"),
    ]
    errors = outcomes(lines, tmp_path, "http://127.0.0.1:9", **settings)
    assert reason in errors[1]
    for (name, path), error in zip(told, errors, strict=True):
        assert error.startswith(f"DataUnavailable: {name}")
        assert " could not be reached (" in error
        assert error.endswith(f"): connect, or set LORI_DATA to a folder that has {path}.")
