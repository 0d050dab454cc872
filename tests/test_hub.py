"""Base models of the hub: found there or in its cache, and what is said when they are not."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from bases import LLAMA, config_of, write_base
from waiting import PATIENCE

from lori.base_models.resolve import BASE_MODELS


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a base model."""
    return write_base(tmp_path_factory.mktemp("bases") / "llama", config_of("llama"))


COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASK = """
import json, sys
from lori.base_models.loading import check_base, load_base, load_tokenizer
from lori.base_models.resolve import base_model, identity
answers = {}
for name in sys.argv[1:]:
    try:
        check_base(base_model(name))
        base = base_model(name).identity
        answers[name] = [base, base_model(base).projections, base_model(base).revision]
    except (RuntimeError, ValueError) as error:
        answers[name] = [type(error).__name__, str(error)]
if "load" in sys.argv[1]:
    load_base(base_model(sys.argv[1]))
print(json.dumps(answers))
"""


def ask(tmp_path, *names, **environment):
    """What a process with another hub answers for each name: huggingface_hub reads its settings when imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_HOME": str(tmp_path / "hub"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-c", ASK, *names]
    done = subprocess.run(command, env={**clean, **settings}, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def cached(tmp_path, name, folder):
    """`folder` as the snapshot of main in the hub's cache."""
    place = tmp_path / "hub" / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    return place / "snapshots" / COMMIT


def test_a_cached_hub_id_needs_no_hub_and_one_that_is_not_cached_says_so(llama, tmp_path):
    cached(tmp_path, "org/load", llama)
    (cached(tmp_path, "org/half", llama) / "model.safetensors").unlink()
    names = ("org/load", f"org/load@{COMMIT}", "org/load@other", "org/none", "org/half", "mistral-7b")
    answers = ask(tmp_path, *names, HF_HUB_OFFLINE="1")
    expected = [f"org/load@{COMMIT}", list(LLAMA), COMMIT]
    assert answers["org/load"] == answers[f"org/load@{COMMIT}"] == expected
    for name in names[2:]:
        assert answers[name][0] == "BaseUnavailable"
        source = BASE_MODELS[name].source if name in BASE_MODELS else name.partition("@")[0]
        assert re.match(rf"{source} is not in the hub's cache and can't be fetched .* the folder of", answers[name][1])


class Hub(BaseHTTPRequestHandler):
    """The routes of the hub that are asked, for repositories that are folders or errors."""

    errors = {  # noqa: RUF012
        "org/gated": (401, "GatedRepo"),
        "org/forbidden": (403, "GatedRepo"),
        "org/bare-401": (401, None),
        "org/bare-403": (403, None),
        "org/missing": (404, "RepoNotFound"),
        "org/missing-401": (401, "RepoNotFound"),
        "org/down": (500, None),
    }
    folders = {}  # noqa: RUF012

    def do_GET(self):
        is_api, org, name, what, revision, *file = self.parts()
        repository = f"{org}/{name}"
        if repository == "org/silent":
            return self.connection.close()
        if repository in self.errors:
            # The hub tells everyone which files a gated model has
            if self.errors[repository][1] != "GatedRepo" or not is_api:
                return self.answer(*self.errors[repository])
            return self.answer(200, content=self.listing({"config.json": b"{}"}, what))
        if revision not in ("main", COMMIT):
            return self.answer(404, "RevisionNotFound")
        files = {path.name: path.read_bytes() for path in self.folders[repository].iterdir()}
        if is_api:
            return self.answer(200, content=self.listing(files, what))
        return self.answer(200, content=files[file[0]]) if file[0] in files else self.answer(404, "EntryNotFound")

    do_HEAD = do_GET

    def parts(self):
        """`/api/models/org/name/revision/main` or `/org/name/resolve/main/file`, taken apart."""
        parts = self.path.partition("?")[0].strip("/").split("/")
        return [True, *parts[2:]] if parts[0] == "api" else [False, *parts]

    def listing(self, files, what):
        tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
        siblings = [{"rfilename": name} for name in files]
        return json.dumps(tree if what == "tree" else {"id": "m", "sha": COMMIT, "siblings": siblings}).encode()

    def answer(self, status, code=None, content=b""):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hash(content) & 0xFFFFFFFF:x}"',
            "Content-Length": len(content),
        }
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        """Quietly."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hubs_answers_are_told_in_a_sentence(llama, hub, tmp_path):
    pickled = shutil.copytree(llama, tmp_path / "bin")
    os.rename(pickled / "model.safetensors", pickled / "pytorch_model.bin")
    Hub.folders = {"org/good": llama, "org/bin": pickled}
    names = ("org/good", f"org/good@{COMMIT}", "org/good@other", "org/bin", "org/silent", *Hub.errors)
    answers = ask(tmp_path, *names, HF_ENDPOINT=hub)
    assert answers["org/good"] == answers[f"org/good@{COMMIT}"] == [f"org/good@{COMMIT}", list(LLAMA), COMMIT]
    assert not list((tmp_path / "hub").glob("**/snapshots/**/*.safetensors")), "the check fetched weights"
    expected = {
        "org/good@other": ("ValueError", r"org/good has no revision 'other'"),
        "org/bin": ("ValueError", r"org/bin has no model\.safetensors, and only safetensors are read"),
        "org/missing": ("ValueError", r"There is no model 'org/missing' on the hub.*check the name.*HF_TOKEN"),
        "org/missing-401": ("ValueError", r"There is no model 'org/missing-401' on the hub"),
        "org/silent": (
            "BaseUnavailable",
            r"org/silent is not in the hub's cache and can't be fetched \(.+\): try again",
        ),
        "org/down": ("BaseUnavailable", r"org/down is not in the hub's cache and can't be fetched \(status 500\)"),
    }
    gated = ("org/gated", "org/forbidden", "org/bare-401", "org/bare-403")
    sentence = "{0} is gated, and HF_TOKEN is unset .* at https://huggingface.co/{0}, or name the folder of a copy"
    expected |= {name: ("BaseUnavailable", sentence.format(name)) for name in gated}
    for name, (kind, message) in expected.items():
        assert answers[name][0] == kind, answers[name]
        assert re.search(message, answers[name][1]), answers[name]
