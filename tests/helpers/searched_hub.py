"""A hub that can also be searched."""

import json
import re
from typing import Any

from helpers.hub import COMMIT, Hub


class ScoutedHub(Hub):
    """A hub that can also be searched: of an author, and a collection."""

    errors = {"org/gated": (401, "GatedRepo"), "org/gone": (404, "RepoNotFound")}  # noqa: RUF012
    listed = ("org/good", "org/large", "org/strict", "org/encoder", "org/gated")
    told = {  # noqa: RUF012
        "org/good": {"tags": ["license:mit"]},
        "org/large": {
            "tags": ["license:mit"],
            "safetensors": {"parameters": {"BF16": 70 * 10**9}, "total": 70 * 10**9},
        },
        "org/strict": {"tags": ["license:cc-by-nc-4.0"]},
        "org/encoder": {"tags": ["license:mit"]},
        "org/gated": {"tags": ["license:mit"]},
    }

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            return self.answer(200)
        if path == "/api/models":
            models = [{"id": name, "sha": COMMIT, **self.told[name]} for name in self.listed]
            return self.answer(200, content=json.dumps(models).encode())
        if path == "/api/collections/org/new-0123":
            return self.answer(200, content=json.dumps(self.collection()).encode())
        if path.startswith("/api/collections/"):
            return self.answer(404)
        if re.fullmatch(r"/api/models/[\w-]+/[\w-]+", path):
            self.path = f"{path}/revision/main"
        return super().do_GET() if self.path.count("/") > 2 else self.answer(404)  # what it asks about itself

    do_HEAD = do_GET

    def collection(self) -> dict[str, Any]:
        names = [("model", "org/good"), ("dataset", "org/rows"), ("model", "org/gone")]
        items = [{"_id": id, "id": id, "type": kind, "position": 0} for kind, id in names]
        about = {"title": "New", "owner": {}, "lastUpdated": "2026-01-01T00:00:00.000Z", "theme": "blue"}
        return {"slug": "org/new-0123", "items": items, "position": 0, "private": False, "upvotes": 0, **about}

    def listing(self, files: dict[str, bytes], what: str) -> bytes:
        _, org, name, *_ = self.parts()
        listed = json.loads(super().listing(files, what))
        about = {"id": f"{org}/{name}", **self.told[f"{org}/{name}"]}
        return json.dumps({**listed, **about} if isinstance(listed, dict) else listed).encode()
