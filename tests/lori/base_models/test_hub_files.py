"""Base models of the hub: found there or in its cache, and what is said when they are not."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer

import pytest

from helpers.bases import LLAMA, config_of, write_base
from helpers.hub import COMMIT, Hub
from helpers.waiting import PATIENCE
from lori.base_models.resolve import BASE_MODELS


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a base model."""
    return write_base(tmp_path_factory.mktemp("bases") / "llama", config_of("llama"))


ASK = """
import json, sys
from lori.base_models.loading import check_base, load_base, load_tokenizer
from lori.base_models.resolve import base_model
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
