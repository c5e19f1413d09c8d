"""The socket of the server, and the whole of it under load on 127.0.0.1."""

import http.client
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from served import bomb, png
from tiny_commands import environment

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.serve.server import allowed_hosts, listen

SERVER = Path(__file__).resolve().parents[1] / "helpers" / "serve_tiny.py"


@pytest.mark.parametrize(
    ("host", "hosts", "expected"),
    [
        ("127.0.0.1", None, ["127.0.0.1", "localhost", "[::1]", "::1"]),
        ("0.0.0.0", None, None),
        ("0.0.0.0", ["lab.example"], ["lab.example"]),
        ("127.0.0.1", ["lab.example"], ["lab.example"]),
    ],
)
def test_who_may_ask(host: str, hosts: list[str] | None, expected: list[str] | None):
    assert allowed_hosts(host, hosts) == expected


def test_a_taken_port_is_a_sentence():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"host=127.0.0.1 port={port} cannot be used"):
            listen("127.0.0.1", port)


def test_a_foreign_address_is_a_sentence():
    with pytest.raises(UserError, match=r"host=192\.0\.2\.1 port=0 cannot be used \([^()]+\): "):
        listen("192.0.2.1", 0)


class Server:
    """A process that serves a model of a few weights."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.process.stdout.readline())
        assert found is not None
        self.port = int(found[1])

    def post(self, body: bytes, connection: http.client.HTTPConnection | None = None) -> int:
        own = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        own.request("POST", "/predict", body)
        answer = own.getresponse()
        answer.read()
        return answer.status

    def get(self, path: str) -> str:
        own = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        own.request("GET", path)
        return own.getresponse().read().decode()

    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.process.terminate()
    running.process.wait(30)


def load(server: Server, count: int, workers: int = 16) -> Counter[int]:
    """The statuses of `count` requests, of which 1 % are malformed in several ways. 503 is asked
    again, as the answer says.
    """
    pictures = [png(size, seed) for seed, size in enumerate([(64, 96), (50, 70), (96, 64)] * 3)]
    wrong = [b"", b"plain text", pictures[0][: len(pictures[0]) // 2], bomb()]
    bodies = [
        wrong[n // 100 % len(wrong)] if n % 100 == 50 else pictures[n % len(pictures)]
        for n in range(count)
    ]
    random.Random(0).shuffle(bodies)
    local = threading.local()

    def send(body: bytes) -> int:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        while (status := server.post(body, local.connection)) == 503:
            time.sleep(0.05)
        return status

    with ThreadPoolExecutor(workers) as pool:
        return Counter(pool.map(send, bodies))


def metric(server: Server, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", server.get("/metrics"), re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def check_load(server: Server, count: int) -> None:
    """Every request has its answer, and the server counts the same."""
    before = metric(server, 'maskrcnn_requests_total{path="/predict",status="200"}')
    wrong = count // 100
    statuses = load(server, count)
    bombs = sum(n // 100 % 4 == 3 for n in range(50, count, 100))
    expected = {200: count - wrong, 413: bombs, 415: wrong - bombs}
    assert statuses == {status: n for status, n in expected.items() if n}
    after = metric(server, 'maskrcnn_requests_total{path="/predict",status="200"}')
    assert after - before == count - wrong
    assert metric(server, "maskrcnn_waiting") == 0


@pytest.mark.process
@pytest.mark.long
def test_200_requests_are_answered(server: Server):
    check_load(server, 200)
    batches = metric(server, "maskrcnn_batch_images_count")
    assert batches < metric(server, "maskrcnn_batch_images_sum") == 200


@pytest.mark.process
@pytest.mark.slow
def test_2000_requests_leave_the_memory_as_it_was(server: Server):
    load(server, 400)
    before = server.megabytes()
    check_load(server, 2000)
    grown = server.megabytes() - before
    print(f"\n{before:.0f} MB before, {grown:+.1f} MB after 2,000 requests")
    assert grown < 20


@pytest.mark.process
@pytest.mark.long
def test_a_bomb_costs_no_memory(server: Server):
    server.post(png())
    before = server.megabytes()
    assert server.post(bomb()) == 413
    assert server.megabytes() - before < 50  # its pixels are 900 million


@pytest.mark.process
@pytest.mark.long
def test_a_slow_sender_and_a_large_body_leave_the_others(server: Server):
    slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    slow.putrequest("POST", "/predict")
    slow.putheader("Content-Length", "1000")
    slow.endheaders(b"begin")
    assert server.post(png()) == 200
    large = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    large.putrequest("POST", "/predict")
    large.putheader("Content-Length", str(10**12))
    large.endheaders(b"begin")
    assert large.getresponse().status == 413
    assert slow.getresponse().status == 408
    slow.close()


@pytest.mark.process
@pytest.mark.long
def test_who_hangs_up_leaves_the_others(server: Server):
    for _ in range(5):
        own = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        own.request("POST", "/predict", png())
        own.close()
    assert server.post(png()) == 200
    assert '"ok"' in server.get("/healthz")
