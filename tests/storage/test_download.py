import hashlib
import logging
import os
import resource
import socket
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import urllib3
from local_server import FAULTS, SWITCHED, Server
from raw_server import Send, raw_server
from urllib3 import Timeout

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage import download as fetching
from maskrcnn_lit.storage.download import (
    RETRIES,
    AbandonedError,
    Bounds,
    check_inflated,
    download,
    fetch,
    file_digest,
    get,
)

pytest_plugins = ("local_server",)

CONTENT = bytes(range(256)) * 1000


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def told(error: pytest.ExceptionInfo[UserError], url: str) -> str:
    """One sentence about the url."""
    message = str(error.value)
    assert url in message
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_a_file_is_fetched_once(server: Server, downloads: Path):
    url, digest = server.offer(CONTENT)
    for _ in range(3):
        path = fetch(url, digest)
        assert path == downloads / "weights.pth"
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/weights.pth"]
    assert files(downloads) == ["weights.pth"]


@pytest.mark.parametrize("digits", [6, 8, 64])
def test_the_first_digits_of_a_hash_do(server: Server, downloads: Path, digits: int):
    url, digest = server.offer(CONTENT)
    assert fetch(url, digest[:digits]).read_bytes() == CONTENT


def test_md5(server: Server, downloads: Path):
    url, sha256 = server.offer(CONTENT)
    assert fetch(url, hashlib.md5(CONTENT).hexdigest()[:6], "md5").read_bytes() == CONTENT
    assert fetch(url, hashlib.md5(CONTENT).hexdigest()[:6], "md5").exists()
    assert len(server.asked) == 1
    with pytest.raises(UserError, match="expected md5"):
        fetch(url, sha256[:6], "md5")


def test_another_hash_is_refused_and_the_file_not_kept(server: Server, downloads: Path):
    url, digest = server.offer(CONTENT)
    wrong = "0" * 8
    for _ in range(2):
        with pytest.raises(
            UserError, match=rf"expected sha256 {wrong}, got {digest[:8]}; try again"
        ) as error:
            fetch(url, wrong)
        told(error, url)
        assert files(downloads) == []
    assert len(server.asked) == 2


def test_a_file_that_was_kept_and_is_damaged_is_fetched_again(server: Server, downloads: Path):
    url, digest = server.offer(CONTENT)
    fetch(url, digest)
    for damaged in (CONTENT[:-1], b"", CONTENT[:-1] + b"!"):
        (downloads / "weights.pth").write_bytes(damaged)
        assert fetch(url, digest).read_bytes() == CONTENT
    assert len(server.asked) == 4
    assert files(downloads) == ["weights.pth"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_is_one_sentence(server: Server, downloads: Path, fault: str):
    url = f"{server.address}/{fault}.pth"
    with pytest.raises(UserError) as error:
        fetch(url, "12345678")
    message = told(error, url)
    assert f"copy the file from elsewhere to {downloads / fault}.pth" in message
    assert "cannot be downloaded" in message
    assert (
        fault not in ("404", "500")
        or {"404": "Not Found", "500": "Internal Server Error"}[fault] in message
    )
    assert files(downloads) == [], "nothing is left behind"


def test_no_network_is_one_sentence(
    downloads: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/folder/weights.pth"
    monkeypatch.setenv("no_proxy", "*")
    for url in (nobody, "http://host.invalid/folder/weights.pth"):
        with pytest.raises(
            UserError,
            match=r"cannot be downloaded .*without a network, copy the file from elsewhere",
        ) as e:
            fetch(url, "12345678")
        assert str(downloads / "weights.pth") in told(e, url)
        assert files(downloads) == []


def test_a_file_that_was_copied_by_hand_needs_no_network(downloads: Path):
    downloads.mkdir(parents=True)
    (downloads / "weights.pth").write_bytes(CONTENT)
    assert (
        fetch("http://host.invalid/weights.pth", hashlib.sha256(CONTENT).hexdigest()[:8])
        == downloads / "weights.pth"
    )


def test_a_cache_that_cannot_be_written_is_one_sentence(server: Server, downloads: Path):
    downloads.parent.mkdir(parents=True)
    downloads.write_text("a file where the folder should be")
    url, digest = server.offer(CONTENT)
    with pytest.raises(UserError, match="cannot be downloaded") as error:
        fetch(url, digest)
    told(error, url)


def test_a_progress_bar_is_shown(
    server: Server, downloads: Path, capfd: pytest.CaptureFixture[str]
):
    url, digest = server.offer(CONTENT)
    fetch(url, digest)
    shown = capfd.readouterr()
    assert "100%" in shown.err
    assert shown.out == ""
    fetch(url, digest)
    assert capfd.readouterr().err == ""


def test_an_interrupted_download_leaves_nothing_behind(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object) -> str:
        assert files(downloads) != []
        raise KeyboardInterrupt

    url, digest = server.offer(CONTENT)
    monkeypatch.setattr("maskrcnn_lit.storage.download.file_digest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(url, digest)
    assert files(downloads) == []


def test_a_digest_is_that_of_hashlib(tmp_path: Path):
    (tmp_path / "a").write_bytes(CONTENT)
    for algorithm in ("sha256", "md5"):
        assert file_digest(tmp_path / "a", algorithm) == hashlib.new(algorithm, CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What servers said in Retry-After, which nobody waits for here."""
    told: list[str] = []
    monkeypatch.setattr(urllib3.Retry, "parse_retry_after", lambda _, text: told.append(text) or 0)
    return told


@pytest.fixture
def short(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a server that stalls."""
    monkeypatch.setattr("maskrcnn_lit.storage.download.TIMEOUT", Timeout(connect=5, read=0.2))


def sound(content: bytes) -> str | None:
    return None if content == CONTENT else "not as it should be"


@pytest.mark.parametrize("fault", SWITCHED)
def test_a_fault_that_passes_is_not_seen(
    server: Server, short: None, fault: str, no_waiting: list[str]
):
    url, _ = server.offer(CONTENT)
    server.fail(fault, times=2)
    assert get(url, sound) == CONTENT
    assert len(server.asked) == 3
    assert no_waiting == (["7", "7"] if fault == "503" else [])


@pytest.mark.long
@pytest.mark.parametrize("fault", SWITCHED)
def test_a_fault_that_stays_is_told_in_a_few_words(server: Server, short: None, fault: str):
    url, _ = server.offer(CONTENT)
    server.fail(fault, times=100)
    with pytest.raises(FileNotFoundError if fault == "404" else OSError) as error:
        get(url, sound)
    expected = {
        "404": "HTTP 404 Not Found",
        "500": "HTTP 500 Internal Server Error",
        "503": "HTTP 503 Service Unavailable",
        "says_nothing": "Connection aborted.",
        "stalls": "Read timed out. (read timeout=0.2)",
        "stalls_in_the_body": "Read timed out.",
        "html": "not as it should be",
        "cut": "not as it should be",
    }
    message = str(error.value)
    assert message == expected.get(fault, message)
    assert len(message) < 120
    assert "host=" not in message
    assert fault != "breaks_in_the_body" or "Connection broken" in message
    assert len(server.asked) == RETRIES + 1


def test_what_will_not_pass_is_not_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch):
    url, _ = server.offer(CONTENT)
    monkeypatch.setattr("maskrcnn_lit.storage.download.RETRIED", ())
    server.fail("500")
    with pytest.raises(OSError, match="HTTP 500"):
        get(url)
    assert len(server.asked) == 1


def test_connections_are_kept_and_not_shared_with_a_fork(server: Server):
    url, _ = server.offer(CONTENT)
    get(url)
    assert fetching._pool(url) is fetching._pool(url)
    child = os.fork()
    if child == 0:
        os._exit(get(url) != CONTENT)
    assert os.waitpid(child, 0)[1] == 0
    assert get(url) == CONTENT


def test_the_proxy_of_the_environment_is_used(
    impatient: None, server: Server, monkeypatch: pytest.MonkeyPatch
):
    server.offer(CONTENT)
    monkeypatch.setenv("http_proxy", server.address)
    assert get("http://host.invalid/folder/weights.pth") == CONTENT
    assert server.asked == ["http://host.invalid/folder/weights.pth"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(f"{server.address}/weights.pth") == CONTENT
    assert server.asked[1:] == ["/weights.pth"]


MD5 = hashlib.md5(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


def download_archive(url: str, folder: Path) -> bytes:
    download(url, folder / "archive.zip", MD5, "md5")
    left = [name for name in files(folder) if name != ".archive.zip.lock"]
    assert left == ["archive.zip"], "nothing else is left"
    return (folder / "archive.zip").read_bytes()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["breaks_in_the_body", "stalls_in_the_body"])
def test_a_download_goes_on_where_its_connection_broke(
    server: Server, short: None, fault: str, ranges: bool, tmp_path: Path
):
    url, _ = server.offer(CONTENT, "archive.zip")
    server.ranges = ranges
    server.fail(fault, times=3)
    assert download_archive(url, tmp_path) == CONTENT
    begins = [int(text[6:-1]) if text else 0 for text in server.ranges_asked]
    assert len(begins) == 4
    assert begins == sorted(begins)
    assert 0 < begins[1] <= HALF
    assert not ranges or begins[1] < begins[2] < begins[3], "three halves of what was left"
    download(url, tmp_path / "archive.zip", MD5, "md5")
    assert len(server.asked) == 4, "it is there"


def test_a_download_says_that_it_tries_again(
    server: Server, short: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    url, _ = server.offer(CONTENT, "archive.zip")
    server.fail("503", times=2)
    with caplog.at_level(logging.INFO):
        assert download_archive(url, tmp_path) == CONTENT
    told = [text for text in caplog.messages if text.startswith("retrying ")]
    assert len(told) == 2
    assert told[0].startswith("retrying (1 of ")
    assert told[0].endswith(": HTTP 503")


@pytest.mark.parametrize("fault", ["404", "500", "503", "says_nothing", "stalls"])
def test_a_download_outlives_other_faults(server: Server, short: None, fault: str, tmp_path: Path):
    url, _ = server.offer(CONTENT, "archive.zip")
    server.fail(fault, times=2)
    assert download_archive(url, tmp_path) == CONTENT


def begin(server: Server, folder: Path) -> str:
    """A download whose connection broke after half of it, for good."""
    url, _ = server.offer(CONTENT, "archive.zip")
    server.fail("breaks_in_the_body", times=1)
    failing, server.before = (
        iter(range(1)),
        lambda path: next(failing, None) is None and server.fail("500", 100),
    )
    with pytest.raises(UserError) as error:
        download(url, folder / "archive.zip", MD5, "md5")
    part = folder / "archive.zip.part"
    message = told(error, url)
    assert "HTTP 500 Internal Server Error" in message
    assert f"are in {part}: run the command again to continue" in message
    assert CONTENT.startswith(part.read_bytes())
    assert 0 < part.stat().st_size <= HALF
    server.before = None
    server.fail("")
    server.asked.clear()
    server.ranges_asked.clear()
    return url


@pytest.mark.parametrize("tags", [True, False])
def test_another_run_goes_on(server: Server, tmp_path: Path, tags: bool):
    server.tags = tags
    url = begin(server, tmp_path)
    had = (tmp_path / "archive.zip.part").stat().st_size
    assert download_archive(url, tmp_path) == CONTENT
    assert server.ranges_asked == [f"bytes={had}-"]


def test_a_server_without_ranges_sends_all_of_it(server: Server, tmp_path: Path):
    url = begin(server, tmp_path)
    server.ranges = False
    assert download_archive(url, tmp_path) == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("tags", [True, False])
def test_a_file_that_changed_on_the_server_is_begun_anew(
    server: Server, tmp_path: Path, tags: bool
):
    """Told by its ETag at once; without one, the hash of the two halves is wrong."""
    server.tags = tags
    url = begin(server, tmp_path)
    part = tmp_path / "archive.zip.part"
    part.write_bytes(b"?" * part.stat().st_size)  # as if it had been another one before
    if tags:
        (tmp_path / "archive.zip.part.version").write_text('"another"')
    assert download_archive(url, tmp_path) == CONTENT
    assert len(server.asked) == (1 if tags else 2)


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 10])
def test_a_part_that_is_as_long_as_the_file_or_longer(server: Server, tmp_path: Path, size: int):
    url, _ = server.offer(CONTENT, "archive.zip")
    (tmp_path / "archive.zip.part").write_bytes((CONTENT + bytes(10))[:size])
    assert download_archive(url, tmp_path) == CONTENT


def test_a_download_with_another_hash_is_not_kept(server: Server, tmp_path: Path):
    url, _ = server.offer(CONTENT + b"!", "archive.zip")
    with pytest.raises(UserError, match=f"expected md5 {MD5}, got .*; try again, or copy") as error:
        download(url, tmp_path / "archive.zip", MD5, "md5")
    told(error, url)
    assert files(tmp_path) == [".archive.zip.lock"]


def test_an_interrupted_download_is_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url, _ = server.offer(CONTENT, "archive.zip")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("maskrcnn_lit.storage.download.file_digest", interrupt)
        (tmp_path / "archive.zip.part").write_bytes(CONTENT[:HALF])
        download(url, tmp_path / "archive.zip", MD5, "md5")
    assert not (tmp_path / "archive.zip").exists()
    assert download_archive(url, tmp_path) == CONTENT
    assert [text for text in server.ranges_asked] == [f"bytes={HALF}-", f"bytes={len(CONTENT)}-"]


def test_of_two_that_download_the_same_one_waits(server: Server, tmp_path: Path):
    url, _ = server.offer(CONTENT, "archive.zip")
    server.delay = 0.05
    arguments: Any = (url, tmp_path / "archive.zip", MD5, "md5")
    threads = [threading.Thread(target=download, args=arguments) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert download_archive(url, tmp_path) == CONTENT
    assert len(server.asked) == 1


def test_a_folder_that_cannot_be_written_is_told(server: Server, tmp_path: Path):
    url, _ = server.offer(CONTENT, "archive.zip")
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"cannot be downloaded .*nothing arrived, or copy the file"
    ) as error:
        download(url, tmp_path / "file" / "archive.zip", MD5, "md5")
    told(error, url)


@pytest.fixture
def hasty(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow answer is given up after half a second, and its headers after as much."""
    monkeypatch.setattr("maskrcnn_lit.storage.download.PATIENCE", 0.5)
    monkeypatch.setattr("maskrcnn_lit.storage.download.HEADERS", 0.5)


def inflating(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


@pytest.mark.long
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_inflates_a_thousand_times_is_refused(hasty: None, chunked: bool):
    """1 GB of zeros in 1 MB: little more than INFLATED_FREELY of it is ever in memory."""
    body = inflating(1024)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n%s\r\n\r\n" % length
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    with (
        raw_server(lambda send: send(head + chunks)) as (url, asked),
        pytest.raises(AbandonedError, match="over 100 times"),
    ):
        get(url)
    assert len(asked) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_body_that_inflates_as_text_does_is_read(hasty: None):
    content = b'{"bbox": [0.5, 0.25]}, ' * 100_000
    body = zlib.compress(content)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n"
    with raw_server(lambda send: send(head % len(body) + body)) as (url, _):
        assert get(url) == content
    two = zlib.compress(content[:999], wbits=31) + zlib.compress(content[999:], wbits=31)
    head = head.replace(b"deflate", b"gzip")
    with raw_server(lambda send: send(head % len(two) + two)) as (url, _):
        assert get(url) == content


@pytest.mark.parametrize("change", ["cut", "flipped", "brotli"])
def test_a_compressed_body_that_is_damaged_is_an_error(hasty: None, change: str):
    body, encoding = zlib.compress(CONTENT, wbits=31), b"gzip"
    if change == "cut":
        body = body[:-20]
    elif change == "flipped":
        body = body[:50] + bytes([body[50] ^ 1]) + body[51:]
    else:
        encoding = b"br"
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
    with (
        raw_server(lambda send: send(head % (encoding, len(body)) + body)) as (url, _),
        pytest.raises(OSError, match=r"ends within|cannot be decompressed|Content-Encoding br"),
    ):
        get(url)


def test_inflation_is_bounded_only_where_it_is_large():
    check_inflated(1, 1000)
    check_inflated(10**6, 10**8)
    with pytest.raises(AbandonedError, match=r"1\.0 MB inflate to 101 MB"):
        check_inflated(10**6, 101 * 10**6)


def without_end(head: bytes, piece: bytes, pause: float) -> Any:
    def answer(send: Send) -> None:
        send(head)
        for _ in range(10**6):
            send(piece)
            time.sleep(pause)

    return answer


OPEN, LONG = b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "piece"), [(OPEN, b"x"), (LONG, b"x"), (CHUNKS, b"1\r\nx\r\n"), (CHUNKS, b"1")]
)
def test_an_answer_of_a_byte_now_and_then_is_given_up(hasty: None, head: bytes, piece: bytes):
    """Also one in the length of a chunk. It is not asked for again."""
    began = time.monotonic()
    with raw_server(without_end(head, piece, 0.05)) as (url, asked):
        with pytest.raises(AbandonedError, match=r"bytes arrived in 0\.5 s"):
            get(url)
        assert len(asked) == 1
        assert time.monotonic() - began < 4


@pytest.mark.long
def test_headers_that_do_not_end_are_given_up(
    hasty: None, short: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("maskrcnn_lit.storage.download.RETRIES", 1)
    head = b"HTTP/1.1 200 OK\r\nX: "
    with (
        raw_server(without_end(head, b"x", 0.05)) as (url, asked),
        pytest.raises(OSError, match=r"headers were not complete after 0\.5 s"),
    ):
        get(url)
    assert len(asked) == 2


@pytest.mark.long
def test_an_answer_without_end_is_cut_by_size_and_by_time(hasty: None):
    with raw_server(without_end(OPEN, bytes(10**6), 0)) as (url, asked):
        with pytest.raises(AbandonedError, match="is larger than 20 MB"):
            get(url, bounds=Bounds(2 * 10**7, 60))
        assert len(asked) == 1
    with (
        raw_server(without_end(OPEN, bytes(10**4), 0.02)) as (url, _),
        pytest.raises(AbandonedError, match=r"was not complete after 0\.8 s"),
    ):
        get(url, bounds=Bounds(10**9, 0.8))


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"302 Found"])
def test_the_body_of_an_answer_that_is_not_used_is_not_read(hasty: None, status: bytes):
    head = b"HTTP/1.1 %s\r\nLocation: /b.png\r\n\r\n" % status
    sent = [0]

    def answer(send: Send) -> None:
        send(head)
        with suppress(OSError):
            for _ in range(200):
                send(bytes(10**6))
                sent[0] += 10**6

    with raw_server(answer) as (url, asked), pytest.raises(OSError):
        get(url)
    assert len(asked) > 2
    assert sent[0] < 2 * 10**7 * len(asked)


@pytest.mark.long
def test_a_download_that_is_too_slow_keeps_what_it_has(hasty: None, tmp_path: Path):
    def answer(send: Send) -> None:
        send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(2**15))
        without_end(b"", b"x", 0.05)(send)

    with raw_server(answer) as (url, _), pytest.raises(UserError) as error:
        download(url, tmp_path / "a.bin", "0" * 40, "sha1")
    assert "bytes arrived in 0.5 s" in told(error, url)
    assert "run the command again to continue" in str(error.value)
    assert (tmp_path / "a.bin.part").stat().st_size >= 2**15
