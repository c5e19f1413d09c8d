"""A Hugging Face hub on 127.0.0.1: repositories of models in memory, the part of its interface that
`create_repo`, `upload_folder` and `snapshot_download` use.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """files: name of a repository -> path -> content; requests: method and path of each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.private: dict[str, bool] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.requests.append(f"POST {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = (
                f"{wanted['organization']}/{wanted['name']}"
                if wanted.get("organization")
                else wanted["name"]
            )
            self.server.files.setdefault(name, {})
            self.server.private[name] = (
                wanted.get("private") is True or wanted.get("visibility") == "private"
            )
            return self._json({"url": f"{self.server.address}/{name}"})
        if parts == ["api", "validate-yaml"]:  # of a card
            return self._json({"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            rows = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": rows})
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                content = base64.b64decode(row["value"]["content"])
                self.server.files[name][row["value"]["path"]] = content
        return self._json(
            {"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        )

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def _answer(self, *, with_content: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[:2])
        files = self.server.files.get(name)
        if files is None:
            return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
        if api and "tree" in parts:
            return self._json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
                    for path, content in files.items()
                ]
            )
        if api:
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []})
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
        self.send_response(200)
        self.send_header("ETag", f'"{_digest(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            self.wfile.write(content)
        return None

    def _json(self, value: Any, status: int = 200, error: str | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if error is not None:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def fake_hub(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the real one; what it fetches is cached in `folder`."""
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(folder),
        "HF_HUB_OFFLINE": False,
    }.items():
        patch.setattr(constants, name, value)
    patch.setenv("HF_TOKEN", "hf_test")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
