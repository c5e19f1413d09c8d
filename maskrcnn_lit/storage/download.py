"""Downloads with urllib3: retried, resumed after a broken connection, and verified.

`fetch` is for published weights, `download` for a large file that a later run can resume, `get` for
small files. Responses are limited in size and time: see `Bounds`.
"""

import io
import logging
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from http import HTTPStatus
from http.client import responses
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import file_digest, locked, move_into_place, temporary_file
from maskrcnn_lit.terminal.progress import Counter

RETRIES = 5

BACKOFF = 0.5  # seconds between tries: 0, 1, 2, 4 and 8

_log = logging.getLogger(__name__)

TIMEOUT = Timeout(connect=10, read=30)  # seconds without data from the server

# 404 is retried: servers behind a load balancer sometimes return it for existing files.
RETRIED = (404, 408, 429, 500, 502, 503, 504)

CHUNK = 2**14  # bytes: a broken connection loses the last chunk

HEADERS = 30.0  # seconds until the headers of a response must be complete

# A response with less than SLOWEST bytes per second during PATIENCE seconds is abandoned.
PATIENCE, SLOWEST = 20.0, 500

# A decompressed body, or member of a zip, above INFLATED_FREELY bytes may be at most INFLATED times
# its compressed size: images and jsons are below, a decompression bomb is a thousand times larger.
INFLATED_FREELY, INFLATED = 2**26, 100


T = TypeVar("T")


class Bounds(NamedTuple):
    """Limits of a response: bytes of its decoded body, and seconds until it is complete."""

    size: int
    seconds: float


IMAGE = Bounds(2**29, 600)

JSON = Bounds(2**32, 3600)

FILE = Bounds(2**38, float("inf"))  # written to the disk, and resumed after a break


class AbandonedError(OSError):
    """A response was abandoned: too slow, too long or too large. It is not retried."""


def fetch(url: str, digest: str, algorithm: str = "sha256") -> Path:
    """The file of `url` in torch's cache ($TORCH_HOME/hub/checkpoints), downloaded if missing.

    Args:
        digest: the first hexadecimal digits of the file's hash by `algorithm`.

    Raises: UserError: the file cannot be downloaded, or its hash differs. A file with another hash
    is deleted.
    """
    import torch.hub  # takes a second, and not every command needs it

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file() and file_digest(path, algorithm).startswith(digest):
        return path
    try:
        with temporary_file(path) as arriving:
            try:
                _receive(url, arriving)
                _check_digest(arriving, digest, algorithm, url, path)
                move_into_place(arriving, path)
            finally:
                _remove(arriving)
    except (OSError, HTTPError) as error:  # no network, a server error, a broken connection
        raise UserError(
            f"{url} cannot be downloaded ({reason(error)}): without a network, copy the file "
            f"from elsewhere to {path}, or give its path instead of the name"
        ) from error
    return path


def download(url: str, path: Path, digest: str, algorithm: str) -> None:
    """Download `url` to `path`, unless that exists. An interrupted download stays in `path`.part
    and is resumed.

    Args:
        digest: the file's hash by `algorithm`, in hexadecimal digits.

    Raises: UserError: the file cannot be downloaded or written, or its hash differs. A file with
    another hash is deleted.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")):
            if path.is_file():  # another process was faster
                return
            continued = part.is_file()
            _receive(url, part)
            if (
                continued and file_digest(part, algorithm) != digest
            ):  # the part belongs to another file
                _remove(part)
                _receive(url, part)
            _check_digest(part, digest, algorithm, url, path)
            move_into_place(part, path)
            _remove(part)
    except (OSError, HTTPError) as error:
        arrived = part.stat().st_size / 1e6 if part.is_file() else 0
        message = (
            f"{arrived:.1f} MB are in {part}: run the command again to continue"
            if arrived
            else "nothing arrived"
        )
        raise UserError(
            f"{url} cannot be downloaded ({reason(error)}); {message}, or copy the file from "
            f"elsewhere to {path}"
        ) from error


def get(
    url: str, fault: Callable[[bytes], str | None] | None = None, bounds: Bounds = IMAGE
) -> bytes:
    """The content of `url`.

    Args: fault: returns the fault of a content, or None; faulty content is retried like an error.
    bounds: limits of the response.

    Raises:
        FileNotFoundError: the server reports a missing file after all retries.
        AbandonedError: the response exceeded its bounds; it is not retried.
        OSError: any other error after all retries; the message is a few words.
    """
    retries = _retries()
    while True:
        try:
            response = _ask(url, retries, preload_content=False)
        except HTTPError as error:
            raise OSError(reason(error)) from error
        retries = response.retries or retries
        try:
            with response:
                _check_status(response)
                body = io.BytesIO()
                for chunk in _stream(response, bounds):
                    body.write(chunk)
            content = body.getvalue()
            problem = fault(content) if fault else None
            if problem is None:
                return content
            raise HTTPError(problem)
        except HTTPError as error:
            try:
                retries = retries.increment("GET", url, error=error)
            except MaxRetryError:
                raise OSError(reason(error)) from None
        retries.sleep()


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise the outcome of `call`; AbandonedError if it takes more than `seconds` (its
    thread then keeps running).
    """
    done = list[T]()
    failed = list[BaseException]()

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise AbandonedError(f"the response was not complete after {seconds:g} s")
    return done[0]


def check_inflated(packed: int, size: int) -> None:
    """Raise AbandonedError for content that looks like a decompression bomb.

    Args:
        packed: compressed bytes.
        size: decompressed bytes so far.
    """
    if size > INFLATED_FREELY and size > INFLATED * packed:
        raise AbandonedError(
            f"{packed / 1e6:.1f} MB inflate to {size / 1e6:.0f} MB or more, over {INFLATED} times: "
            "rejected as a decompression bomb"
        )


def _stream(response: BaseHTTPResponse, bounds: Bounds) -> Iterator[bytes]:
    """The decoded body in chunks. AbandonedError: it exceeds its bounds."""
    size = 0
    with _watched(response, bounds.seconds) as received:
        for chunk in _decoded(response, received):
            size += len(chunk)
            if size > bounds.size:
                raise AbandonedError(f"the response is larger than {bounds.size / 1e6:.0f} MB")
            check_inflated(received[0], size)
            yield chunk


def _decoded(response: BaseHTTPResponse, received: list[int]) -> Iterator[bytes]:
    """The body in chunks of up to CHUNK bytes, with its Content-Encoding removed. None is
    requested, but some servers send compressed files as they are stored.

    `received`: the number of received bytes is added to its only item.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise OSError(f"the response has the Content-Encoding {encoding}, which was not requested")
    unpacker = None if encoding in ("", "identity") else zlib.decompressobj(_ANY_HEADER)
    for chunk in response.stream(CHUNK, decode_content=False):
        received[0] += len(chunk)
        if unpacker is None:
            yield chunk
            continue
        while chunk:
            try:
                yield unpacker.decompress(chunk, CHUNK)
            except zlib.error as error:
                raise ProtocolError(f"the response cannot be decompressed: {error}") from None
            chunk = unpacker.unconsumed_tail or unpacker.unused_data
            if unpacker.eof and chunk:  # another member of a gzip
                unpacker = zlib.decompressobj(_ANY_HEADER)
    if unpacker is not None and not unpacker.eof:
        raise ProtocolError("the response ends within its compressed body")


_ANY_HEADER = 32 + zlib.MAX_WBITS  # accept gzip and zlib headers


@contextmanager
def _watched(response: BaseHTTPResponse, seconds: float) -> Iterator[list[int]]:
    """Watch a response in a thread, and close its connection if it is too slow or takes more than
    `seconds`: a socket's time-out restarts with every byte.

    Yields a list with one number, to which the caller adds received bytes.
    """
    ended, verdict, received = threading.Event(), list[str](), [0]

    def look() -> None:
        began, before = time.monotonic(), 0
        while not ended.wait(min(PATIENCE, seconds)):
            came, before = received[0] - before, received[0]
            if came < SLOWEST * PATIENCE:
                verdict.append(f"only {came} bytes arrived in {PATIENCE:g} s, which is too slow")
            elif time.monotonic() - began >= seconds:
                verdict.append(f"the response was not complete after {seconds:g} s")
            if verdict:
                with suppress(Exception):  # it has ended meanwhile
                    response.shutdown()
                return

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield received
    except (HTTPError, OSError) as error:
        if verdict:
            raise AbandonedError(verdict[0]) from error
        raise
    finally:
        ended.set()
        watch.join()
    if verdict:  # a body without length, which ends where its connection does
        raise AbandonedError(verdict[0])


def reason(error: Exception) -> str:
    """A short description of `error`."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, ProtocolError) and error.args:
        error = error.args[0] if isinstance(error.args[0], Exception) else Exception(error.args[0])
    text = re.sub(r"^(\w+\(host=.*?\)|None): ", "", " ".join(str(error).split()))
    return text or type(error).__name__


def _pool(url: str) -> PoolManager:
    """The connections of this process (sockets do not survive a fork), through the proxy that the
    environment names.
    """
    address = urlsplit(url)
    proxy = getproxies().get(address.scheme)
    return _new_pool(os.getpid(), None if proxy and proxy_bypass(address.hostname or "") else proxy)


@lru_cache(maxsize=8)
def _new_pool(process: int, proxy: str | None) -> PoolManager:
    pool = ProxyManager(proxy, maxsize=16) if proxy else PoolManager(maxsize=16)
    pool.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return pool


@contextmanager
def _deadline(connection: HTTPConnection) -> Iterator[None]:
    """Close a connection with incomplete headers after HEADERS seconds and raise ProtocolError."""
    late = threading.Event()

    def end() -> None:
        late.set()
        with suppress(OSError):
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(HEADERS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if late.is_set():  # http.client takes the end of the connection for the end of the headers
        raise ProtocolError(f"the headers were not complete after {HEADERS:g} s")


def _undrained(response: Any) -> Any:
    """The response, changed so that a retry or redirect closes its connection instead of reading
    its body.
    """
    vars(response)["drain_conn"] = response.close
    return response


class _HTTPConnection(HTTPConnection):
    def getresponse(self) -> Any:
        with _deadline(self):
            return _undrained(super().getresponse())


class _HTTPSConnection(HTTPSConnection):
    def getresponse(self) -> Any:
        with _deadline(self):
            return _undrained(super().getresponse())


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def _ask(url: str, retries: Retry, **options: Any) -> BaseHTTPResponse:
    return _pool(url).request("GET", url, retries=retries, timeout=TIMEOUT, **options)


class _LoggingRetry(Retry):
    """A Retry that logs each retry, since an unreachable server takes half a minute."""

    def increment(self, *args: Any, **kwargs: Any) -> "_LoggingRetry":
        following = super().increment(*args, **kwargs)
        error, response = kwargs.get("error"), kwargs.get("response")
        why = reason(error) if error is not None else f"HTTP {getattr(response, 'status', '?')}"
        _log.info("retrying (%s of %s times): %s", RETRIES - (following.total or 0), RETRIES, why)
        return following


def _retries(kind: type[Retry] = Retry) -> Retry:
    return kind(
        RETRIES,
        status_forcelist=RETRIED,
        backoff_factor=BACKOFF,
        # jitter, so that threads do not retry at the same time
        backoff_jitter=BACKOFF,
        retry_after_max=60,
        raise_on_status=False,  # the last response is reported
    )


def _check_status(response: BaseHTTPResponse) -> None:
    if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    text = (
        f"HTTP {response.status} {response.reason or responses.get(response.status, '')}".rstrip()
    )
    raise (FileNotFoundError if response.status in (404, 410) else OSError)(text)


def _receive(url: str, part: Path) -> None:
    """Complete `part`, which has the beginning of the file or does not exist. A broken connection
    is resumed; every progress resets the retries.
    """
    retries, furthest = _retries(_LoggingRetry), 0
    with (
        open(part, "ab") as file,
        Counter(url.rsplit("/", 1)[-1], unit="B") as counter,
    ):
        while True:
            response = _ask(
                url, retries, headers=_headers(part, file.tell()), preload_content=False
            )
            retries = response.retries or retries
            try:
                with response:
                    if _begin(response, part, file, counter):
                        return
                    for chunk in _stream(response, FILE):
                        file.write(chunk)
                        counter.advance(len(chunk))
                return
            except HTTPError as error:
                if file.tell() > furthest:
                    retries, furthest = _retries(_LoggingRetry), file.tell()
                retries = retries.increment("GET", url, error=error)
                retries.sleep()


def _headers(part: Path, have: int) -> dict[str, str]:
    if not have:
        return {}
    version = _version(part)
    # the server sends the full file if it has changed
    return {"Range": f"bytes={have}-"} | (
        {"If-Range": version.read_text()} if version.is_file() else {}
    )


def _begin(response: BaseHTTPResponse, part: Path, file: BinaryIO, counter: Counter) -> bool:
    """Truncate `file` to the beginning of the response body; return True if the file is already
    complete.
    """
    content_range = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        if content_range and content_range[2] == str(file.tell()):
            return True
        _empty(file)
        raise ProtocolError("the server's file is shorter than the local part")
    _check_status(response)
    if (
        response.status == HTTPStatus.OK
    ):  # from the beginning: not requested otherwise, no range support, or another file
        _empty(file)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        _version(part).unlink(missing_ok=True)
        if version and not version.startswith("W/"):  # a weak ETag does not identify bytes
            _version(part).write_text(version)
    elif not content_range or content_range[1] != str(file.tell()):
        _empty(file)
        raise ProtocolError("the server sent another range than requested")
    length = response.headers.get("Content-Length")
    counter.restart(file.tell(), file.tell() + int(length) if length else None)
    return False


def _empty(file: BinaryIO) -> None:
    file.truncate(0)
    file.seek(0)


def _version(part: Path) -> Path:
    """The file with the server's ETag for the content of `part`."""
    return part.with_name(f"{part.name}.version")


def _check_digest(arrived: Path, digest: str, algorithm: str, url: str, path: Path) -> None:
    actual = file_digest(arrived, algorithm)[: len(digest)]
    if actual != digest:
        _remove(arrived)
        raise UserError(
            f"checksum mismatch of {url}: expected {algorithm} {digest}, got {actual}; "
            f"try again, or copy the file from elsewhere to {path}"
        )


def _remove(part: Path) -> None:
    for path in (part, _version(part)):
        with suppress(OSError):  # the folder may be missing
            path.unlink(missing_ok=True)
