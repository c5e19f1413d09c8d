"""A web server on this machine, and torch's cache of downloads in a folder of the test.

A pytest plugin: a test module that wants its fixtures says `pytest_plugins = ("local_server",)`.
(PYTEST_DONT_REWRITE: it has imported this module by then, and pytest would warn.)
"""

import hashlib
import re
import socket
import struct
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from urllib3 import Timeout

from maskrcnn_lit.storage.sources import ANNOTATION_ARCHIVE

# Names of urls that end in a fault instead of a file.
FAULTS = ("404", "500", "stops", "breaks", "stops_in_a_chunk", "says_nothing", "is_no_web_server")

# What `Server.fail` can switch on for a file that is there.
SWITCHED = (
    "404",
    "500",
    "503",
    "says_nothing",
    "stalls",
    "stalls_in_the_body",
    "breaks_in_the_body",
    "html",
    "cut",
)


@dataclass
class Server:
    """`files` by their names are what it has; what was asked for stands in `asked` and
    `ranges_asked`.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges_asked: list[str | None] = field(default_factory=list)
    ranges: bool = True  # whether it knows Range
    tags: bool = True  # whether it sends an ETag
    delay: float = 0  # seconds before each answer
    before: Callable[[str], object] | None = None  # called before each answer, with what is asked
    stopped: threading.Event = field(default_factory=threading.Event)
    _fault: tuple[str, int, str] = ("", 0, "")
    _failed: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, content: bytes, name: str = "weights.pth") -> tuple[str, str]:
        """The url of a file, and its sha256."""
        self.files[name] = content
        return f"{self.address}/{name}", hashlib.sha256(content).hexdigest()

    def fail(self, fault: str, times: int = 1, files: str = "") -> None:
        """From now on the first `times` requests for each file whose name has `files` in it end in
        `fault`.
        """
        self._fault, self._failed = (fault, times, files), Counter()

    def fault(self, name: str) -> str | None:
        """What the answer to this request for `name` ends in."""
        named = next((fault for fault in FAULTS if name.startswith(f"{fault}.")), None)
        if named or name not in self.files:
            return named or "404"
        fault, times, files = self._fault
        with self._lock:
            self._failed[name] += files in name
            return fault if fault and files in name and self._failed[name] <= times else None


def offer_archive(server: Server, mini: Path, folder: Path) -> str:
    """Offer the annotation archive of coco_mini, as the official one is made; returns its md5."""
    path = folder / ANNOTATION_ARCHIVE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted((mini / "annotations").iterdir()):
            made.write(file, f"annotations/{file.name}")
    content = path.read_bytes()
    path.unlink()
    server.offer(content, ANNOTATION_ARCHIVE)
    return hashlib.md5(content).hexdigest()


def _answer(server: Server, handler: BaseHTTPRequestHandler, name: str) -> None:
    """The file, or the range of it that was asked for."""
    content, tag = server.files[name], f'"{hashlib.md5(server.files[name]).hexdigest()}"'
    wanted = (
        re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")) if server.ranges else None
    )
    begin = int(wanted[1]) if wanted and handler.headers.get("If-Range") in (None, tag) else 0
    if begin and begin >= len(content):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if begin else 200)
    if begin:
        handler.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
    if server.tags:
        handler.send_header("ETag", tag)
    handler.send_header("Content-Length", str(len(content) - begin))
    handler.end_headers()
    half = begin + (len(content) - begin) // 2
    fault = server.fault(name)
    if fault in ("stalls_in_the_body", "breaks_in_the_body"):
        handler.wfile.write(content[begin:half])
        if fault.startswith("stalls"):
            handler.wfile.flush()
            server.stopped.wait(30)
        handler.close_connection = True
    else:
        handler.wfile.write(content[begin:])


def _fail(server: Server, handler: BaseHTTPRequestHandler, fault: str, content: bytes) -> None:
    handler.close_connection = True
    if fault in ("404", "500"):
        handler.send_error(int(fault))
    elif fault == "503":
        handler.wfile.write(
            b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"
            b"Retry-After: 7\r\nContent-Length: 0\r\n\r\n"
        )
    elif fault == "stops_in_a_chunk":
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nthe beginning"
        )
    elif fault == "is_no_web_server":
        handler.wfile.write(b"220 mail ready\r\n")
    elif fault in ("html", "cut"):  # with 200, and whole as far as HTTP can tell
        body = (
            b"<html>Please sign in to this network"
            if fault == "html"
            else content[: len(content) // 2]
        )
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
    elif fault == "stalls":
        server.stopped.wait(30)
    elif fault != "says_nothing":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning")
    if fault == "breaks":
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as by every server in the world

        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            server.asked.append(self.path)
            server.ranges_asked.append(self.headers.get("Range"))
            time.sleep(server.delay)
            if server.before is not None:
                server.before(self.path)
            in_the_body = name in server.files and server._fault[0].endswith(
                "_in_the_body"
            )  # asks by itself
            fault = None if in_the_body else server.fault(name)
            if fault is None:
                return _answer(server, self, name)
            _fail(server, self, fault, server.files.get(name, b""))

        def log_message(self, *_: object) -> None:
            """Nothing: standard error is for what the code under test says."""

    return Handler


def serve() -> Iterator[Server]:
    """A server that runs until the generator is closed."""
    server = Server("")
    running = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    running.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections that it was told to break
    server.address = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy stands between; who fetches does not wait between tries, and not long for an
    answer.
    """
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("maskrcnn_lit.storage.download.BACKOFF", 0)
    monkeypatch.setattr("maskrcnn_lit.storage.download.TIMEOUT", Timeout(connect=5, read=5))


@pytest.fixture
def server(impatient: None) -> Iterator[Server]:
    yield from serve()


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps downloaded weights; not there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"
