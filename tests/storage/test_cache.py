import errno
import logging
import os
import pickle
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from local_server import Server
from urllib3 import Timeout

from maskrcnn_lit.storage.cache import Cache, Prefetch, lookahead
from maskrcnn_lit.storage.sources import Remote

pytest_plugins = ("local_server",)

LIMIT = 100_000  # bytes


def content(key: str) -> bytes:
    """2 to 8 kB that only this key has."""
    return key.encode() * (2000 + 6000 * (sum(key.encode()) % 7) // 7 // len(key))


def refuse() -> bytes:
    raise AssertionError("it should be in the cache")


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in entries(folder))


def test_what_was_read_is_kept(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 1)
    assert cache.read("a", lambda: b"A") == b"A"
    assert cache.read("b", bytes) == b""
    for other in (cache, Cache(tmp_path / "cache", 1), pickle.loads(pickle.dumps(cache))):
        assert other.read("a", refuse) == b"A"
        assert other.read("b", refuse) == b""
        other.fill("a", refuse)
    assert int((tmp_path / "cache" / "size").read_text()) == stored(tmp_path / "cache")


def test_without_room_nothing_is_written(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 0)
    cache.fill("a", refuse)
    assert cache.read("a", lambda: b"A") == b"A"
    assert not (tmp_path / "cache").exists()
    small = Cache(tmp_path / "cache", 100 / 1e9)
    assert small.read("a", lambda: bytes(200)) == bytes(200)
    assert entries(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "damage", [lambda old: old[:-1], lambda old: b"", lambda old: old[:5], lambda old: old + b"x"]
)
@pytest.mark.parametrize("use", ["read", "fill"])
def test_a_damaged_entry_is_fetched_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], use: str
):
    cache = Cache(tmp_path, 1)
    cache.read("a", lambda: b"content")
    (path,) = entries(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    getattr(cache, use)("a", lambda: b"content")
    assert cache.read("a", refuse) == b"content"


def test_an_entry_with_another_byte_is_fetched_again(tmp_path: Path):
    cache = Cache(tmp_path, 1)
    cache.read("a", lambda: b"content")
    (path,) = entries(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"T")
    assert cache.read("a", lambda: b"content") == b"content" == cache.read("a", refuse)


def test_what_was_used_least_recently_goes_first(tmp_path: Path):
    cache = Cache(tmp_path, LIMIT / 1e9)
    for i in range(9):
        cache.read(str(i), lambda: bytes(10_000))
        os.utime(cache._path(str(i)), ns=(i, i))
    cache.read("0", refuse)
    cache.fill("1", refuse)
    cache.read("9", lambda: bytes(10_000))
    assert stored(tmp_path) <= LIMIT
    for key in "0189":
        assert cache.read(key, refuse) == bytes(10_000)
    with pytest.raises(AssertionError):
        cache.read("2", refuse)


@pytest.mark.parametrize("text", ["", "nonsense", "12", None])
def test_a_lost_count_is_made_again(tmp_path: Path, text: str | None):
    cache = Cache(tmp_path, LIMIT / 1e9)
    cache.read("a", lambda: bytes(5000))
    if text is None:
        (tmp_path / "size").unlink()
    else:
        (tmp_path / "size").write_text(text)
    cache.read("b", lambda: bytes(5000))
    assert int((tmp_path / "size").read_text()) == stored(tmp_path)


def test_a_file_that_a_killed_process_left_does_not_count_and_goes(tmp_path: Path):
    cache = Cache(tmp_path, LIMIT / 1e9)
    cache.read("a", lambda: b"content")
    left = entries(tmp_path)[0].with_name(".half")
    left.write_bytes(bytes(1000))
    os.utime(left, ns=(1, 1))
    for i in range(30):
        cache.read(str(i), lambda: bytes(9_000))
    assert not left.exists()


@pytest.mark.long
def test_processes_and_threads_write_and_throw_out_at_once(tmp_path: Path):
    """Ten times as much as there is room for: every read gives the right bytes, and the bound
    holds.
    """
    keys = [f"key{i}" for i in range(200)]

    def work(seed: int) -> None:
        order = random.Random(seed).choices(keys, k=200)
        cache = Cache(tmp_path, LIMIT / 1e9)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda key: cache.read(key, lambda: content(key)), order))
        if found != [content(key) for key in order] or not cache._writes:
            raise AssertionError("other bytes")

    children = []
    for seed in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(seed)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    work(3)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert 0 < stored(tmp_path) <= LIMIT
    assert int((tmp_path / "size").read_text()) == stored(tmp_path)


def test_one_name_is_fetched_once_by_all(tmp_path: Path, server: Server):
    server.offer(content("a"), "a.jpg")
    server.delay = 0.05
    remote = Remote(server.address, Cache(tmp_path, 1))
    child = os.fork()
    with ThreadPoolExecutor(8) as pool:
        right = set(pool.map(remote.read, ["a.jpg"] * 8)) == {content("a")}
    if child == 0:
        os._exit(not right)
    assert right
    assert os.waitpid(child, 0)[1] == 0
    assert server.asked == ["/a.jpg"]


def test_an_entry_that_is_thrown_out_is_read_to_its_end(tmp_path: Path):
    cache = Cache(tmp_path, LIMIT / 1e9)
    cache.read("a", lambda: bytes(50_000))
    with open(cache._path("a"), "rb") as reader:
        cache.read("b", lambda: bytes(80_000))
        assert not cache._path("a").exists()
        assert len(reader.read()) > 50_000


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_ends_the_writing_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
):
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    cache = Cache(tmp_path, 1)
    cache.read("a", lambda: b"A")
    monkeypatch.setattr("maskrcnn_lit.storage.cache.os.replace", full)
    with caplog.at_level(logging.WARNING):
        for key in "bcd":
            assert cache.read(key, lambda: b"B") == b"B"
    assert len(caplog.messages) == 1
    assert f"{tmp_path} cannot be written ({os.strerror(code)})" in caplog.text
    assert "data.cache_dir=DIR" in caplog.text
    assert cache.read("a", refuse) == b"A"
    assert len(entries(tmp_path)) == 1
    cache.fill("e", refuse)


def test_a_folder_that_cannot_be_made_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache", 1)
    assert [cache.read("a", lambda: b"A") for _ in range(3)] == [b"A"] * 3
    assert len(caplog.messages) == 1
    assert "Not a directory" in caplog.text


def test_eight_requests_are_in_flight(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """The server answers none of them before it has eight. An answer that is late on a busy machine
    is not asked for again.
    """
    patient = Timeout(connect=60, read=60)
    monkeypatch.setattr("maskrcnn_lit.storage.download.TIMEOUT", patient)
    for i in range(16):
        server.offer(content(f"{i}"), f"{i}.jpg")
    eight = threading.Event()
    in_time: list[bool] = []

    def wait_for_eight(path: str) -> None:
        if len(server.asked) >= 8:
            eight.set()
        in_time.append(eight.wait(30))

    server.before = wait_for_eight
    remote = Remote(server.address, Cache(tmp_path, 1))
    ahead = Prefetch(remote.fill)
    ahead.submit([f"{i}.jpg" for i in range(16)])
    assert [remote.read(f"{i}.jpg") for i in range(16)] == [content(f"{i}") for i in range(16)]
    assert all(in_time)
    assert sorted(server.asked) == sorted(f"/{i}.jpg" for i in range(16))
    ahead.close()


def test_a_reader_in_another_process_finds_what_was_fetched_ahead(tmp_path: Path, server: Server):
    server.offer(content("a"), "a.jpg")
    remote = Remote(server.address, Cache(tmp_path, 1))
    ahead = Prefetch(remote.fill)
    ahead.submit(["a.jpg"])
    child = os.fork()  # while it is being fetched
    if child == 0:
        os._exit(remote.read("a.jpg") != content("a"))
    assert os.waitpid(child, 0)[1] == 0
    ahead.close()
    assert server.asked == ["/a.jpg"]


def test_errors_are_left_for_the_reader():
    done: list[str] = []

    def fill(key: str) -> None:
        if key == "bad":
            raise OSError("broken")
        done.append(key)

    ahead = Prefetch(fill, in_flight=1)
    ahead.submit(["bad", "good"])
    ahead.close()
    for thread in ahead._threads:
        thread.join(30)
    assert done in ([], ["good"])
    assert not any(thread.is_alive() for thread in ahead._threads)


def test_closing_waits_for_no_request_and_what_is_too_much_is_left_out():
    begun, hangs, done = threading.Event(), threading.Event(), []

    def fill(key: str) -> None:
        begun.set()
        hangs.wait(30)
        done.append(key)

    ahead = Prefetch(fill, in_flight=1, waiting=2)
    ahead.submit(["0"])
    begun.wait(30)
    ahead.submit(map(str, range(1, 1000)))
    assert ahead._keys.qsize() == 2
    ahead.close()
    hangs.set()
    ahead._threads[0].join(30)
    assert done == ["0"], "what was not begun is forgotten"


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_batches_are_announced_ahead(ahead: int):
    told: list[int] = []
    for k, batch in enumerate(lookahead(range(10), told.append, ahead)):
        assert batch == k
        assert told == list(range(min(10, k + ahead + 1)))
    assert told == list(range(10))
    assert list(lookahead([], told.append, ahead)) == []
