"""The hub's routes that are asked, served from folders."""

import json
from http.server import BaseHTTPRequestHandler

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
