"""Adapters on the hub: what is pushed, and who may not push, against a stand-in of the hub."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL
from test_hub import COMMIT, Hub
from waiting import PATIENCE

RUN = """
import json, os, sys
from flows.deployments import full_paper
for namespace, token in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    asked = {"profile": "smoke", "tables": ["single"], "domains": ["nlu"], "methods": ["base", "lora"]}
    state = full_paper(**asked, push_to=namespace, return_state=True)
    print("ANSWER", json.dumps(state.message if state.is_failed() else state.result()))
"""
USERS = {
    "writer": {"name": "me", "orgs": [{"name": "lab"}, {"name": "full"}], "auth": {"accessToken": {"role": "write"}}},
    "reader": {"name": "me", "orgs": [], "auth": {"accessToken": {"role": "read"}}},
    "labs": {
        "name": "me",
        "orgs": [{"name": "lab"}],
        "auth": {
            "accessToken": {
                "role": "fineGrained",
                "fineGrained": {
                    "global": [],
                    "scoped": [
                        {"entity": {"type": "user", "name": "me"}, "permissions": ["repo.content.read"]},
                        {"entity": {"type": "org", "name": "lab"}, "permissions": ["repo.content.read", "repo.write"]},
                    ],
                },
            }
        },
    },
}


class WritableHub(Hub):
    """The routes by which repositories are made and filled; `full` takes no more of them."""

    created: list[dict[str, Any]] = []  # noqa: RUF012
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}  # noqa: RUF012 message and files

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            user = USERS.get(self.headers["Authorization"].removeprefix("Bearer "))
            return self.answer(200 if user else 401, content=json.dumps(user or {}).encode())
        return self.answer(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            if asked["organization"] == "full":
                return self.tell(403, {"error": "No room"})
            self.created.append(asked)
            return self.tell(200, {"url": f"http://{self.headers['Host']}/{asked['organization']}/{asked['name']}"})
        if path == "/api/validate-yaml":  # of the card
            return self.tell(200, {"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.tell(200, {"files": files})
        if path.endswith("/commit/main"):
            header, *files = [json.loads(line)["value"] for line in body.decode().splitlines()]
            read = {file["path"]: base64.b64decode(file["content"]) for file in files}
            self.commits.setdefault(path.split("/models/")[1].removesuffix("/commit/main"), []).append(
                (header["summary"], read)
            )
            return self.tell(
                200,
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/lab/x/commit/{COMMIT}",
                },
            )
        return self.answer(404)

    def tell(self, status: int, about: dict[str, Any]) -> None:
        content = json.dumps(about).encode()
        self.answer(status, content=content)
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[str]:
    WritableHub.created.clear()
    WritableHub.commits.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), WritableHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_adapters_are_pushed_with_their_card_by_who_may(hub: str, prefect_api: None, tmp_path: Path) -> None:
    asked = [
        ("me", ""),
        ("me", "forged"),
        ("me", "reader"),
        ("other", "writer"),
        ("me", "labs"),
        ("lab", "labs"),
        ("full", "writer"),
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LORI_", "MLFLOW_"))}
    settings = {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": hub, "NO_PROXY": "127.0.0.1"}
    stores = {"LORI_DIR": str(tmp_path), "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(tmp_path)}
    environment = {**clean, **settings, **stores, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(
        command, input=json.dumps(asked), env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    answers = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(answers) == len(asked), done.stderr[-3000:]
    without, forged, reader, stranger, elsewhere, pushed, refused = answers
    assert without.endswith("push_to=me needs a token that may write there: set HF_TOKEN, or leave push_to out.")
    assert "The hub refuses HF_TOKEN, and push_to=me needs it" in forged
    assert reader.endswith("This one can only read.")
    assert elsewhere == reader
    assert stranger.endswith("push_to=other: HF_TOKEN is of me, lab, full. Name one of them.")
    assert pushed["cached"] == 0, f"{pushed}: an earlier one has computed although nothing may be pushed"
    assert refused.startswith("0 cells computed")
    assert "push lora-nlu-seed0-4_steps: " in refused

    name = "lori-scale-r6.lora-4_steps.nlu-seed-0"
    assert [(repo["organization"], repo["name"], repo["visibility"]) for repo in WritableHub.created] == [
        ("lab", name, "private")
    ]
    ((message, files),) = WritableHub.commits[f"lab/{name}"]
    assert message.startswith("train-v")
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= files.keys()
    assert "MLmodel" not in files
    assert files["README.md"].startswith(b"---\nbase_model: scale\n")
    assert b"| `nlu/accuracy` |" in files["README.md"]
