"""A web server on this machine, and torch's cache of downloads in a folder of the test.

A pytest plugin: a test module that wants its fixtures says `pytest_plugins = ("local_server",)`.
(PYTEST_DONT_REWRITE: it has imported this module by then, and pytest would warn.)
"""

import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest


class Server(NamedTuple):
    """`files` by their names are what it has; what was asked for stands in `asked`."""

    address: str
    files: dict[str, bytes]
    asked: list[str]

    def offer(self, content: bytes, name: str = "weights.pth") -> tuple[str, str]:
        """The url of a file, and its sha256."""
        self.files[name] = content
        return f"{self.address}/{name}", hashlib.sha256(content).hexdigest()


# Names of urls that end in a fault instead of a file.
FAULTS = ("404", "500", "stops", "breaks", "stops_in_a_chunk", "says_nothing", "is_no_web_server")


def _fail(handler: BaseHTTPRequestHandler, fault: str) -> None:
    handler.close_connection = True
    if fault in ("404", "500"):
        handler.send_error(int(fault))
    elif fault == "stops_in_a_chunk":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nthe beginning")
    elif fault == "is_no_web_server":
        handler.wfile.write(b"220 mail ready\r\n")
    elif fault != "says_nothing":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning")
    if fault == "breaks":
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            asked.append(self.path)
            fault = next((fault for fault in FAULTS if name.startswith(f"{fault}.")), None)
            content = files.get(name)
            if fault is not None or content is None:
                return _fail(self, fault or "404")
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: standard error is for what the code under test says."""

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections that it was told to break
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Server(f"http://127.0.0.1:{running.server_port}", files, asked)
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps downloaded weights; not there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"
