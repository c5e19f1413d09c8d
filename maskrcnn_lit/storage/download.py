"""Files from the web, through urllib3: retried, gone on with where a connection broke, checked,
kept when right.

`fetch` is for published weights, `download` for one large file that a later run goes on with, `get`
for small ones.
"""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from http.client import responses
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch.hub
from tqdm import tqdm
from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, Timeout
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import file_digest, locked

RETRIES = 5

BACKOFF = 0.5  # seconds: 0, 1, 2, 4 and 8 between the tries

TIMEOUT = Timeout(connect=10, read=30)  # seconds without a sign of the server

# Not found is retried: a server behind a load balancer says it now and then of files that it has.
RETRIED = (404, 408, 429, 500, 502, 503, 504)

CHUNK = 2**14  # bytes: of the last one nothing is kept when the connection breaks


def fetch(url: str, digest: str, algorithm: str = "sha256") -> Path:
    """The file of `url` in torch's cache ($TORCH_HOME/hub/checkpoints), downloaded if it is not
    there yet.

    Args:
        digest: the first hexadecimal digits of the file's hash by `algorithm`.

    Raises: UserError: the file cannot be fetched, or its hash differs. A file with another hash is
        never kept.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file() and file_digest(path, algorithm).startswith(digest):
        return path
    arriving = path.with_name(
        f".{path.name}.{os.getpid()}"
    )  # the name is given once the hash is right
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, arriving)
        _check_digest(arriving, digest, algorithm, url, path)
        os.replace(arriving, path)
    except (OSError, HTTPError) as error:  # no network, a server's error, a connection that broke
        raise UserError(
            f"{url} cannot be fetched ({reason(error)}): without a network, copy the file "
            f"from elsewhere to {path}, or give its path instead of the name"
        ) from error
    finally:
        _remove(arriving)
    return path


def download(url: str, path: Path, digest: str, algorithm: str) -> None:
    """The file of `url` as `path`, unless that is there. An interrupted download stays in
    `path`.part, and goes on.

    Args:
        digest: the file's hash by `algorithm`, in hexadecimal digits.

    Raises: UserError: the file cannot be fetched or written, or its hash differs. A file with
        another hash is never kept.
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
            ):  # it was begun with another file
                _remove(part)
                _receive(url, part)
            _check_digest(part, digest, algorithm, url, path)
            os.replace(part, path)
            _remove(part)
    except (OSError, HTTPError) as error:
        kept = part.stat().st_size / 1e6 if part.is_file() else 0
        what = (
            f"{kept:.1f} MB arrived and are kept in {part}: run it again to go on"
            if kept
            else "nothing arrived"
        )
        raise UserError(
            f"{url} cannot be fetched ({reason(error)}); {what}, or copy the file from elsewhere to {path}"
        ) from error


def get(url: str, fault: Callable[[bytes], str | None] | None = None) -> bytes:
    """The content of `url`.

    Args: fault: tells what is wrong with a content, or None: one that is wrong is asked for again,
        as after an error.

    Raises:
        FileNotFoundError: after all retries the server says that there is no such file.
        OSError: anything else that still went wrong; the message is a few words.
    """
    retries = _retries()
    while True:
        try:
            response = _ask(url, retries)
        except HTTPError as error:
            raise OSError(reason(error)) from error
        _check_status(response)
        found = fault(response.data) if fault else None
        if found is None:
            return response.data
        try:
            retries = (response.retries or retries).increment("GET", url, error=HTTPError(found))
        except MaxRetryError:
            raise OSError(found) from None
        retries.sleep()


def reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, ProtocolError) and error.args:
        error = error.args[0] if isinstance(error.args[0], Exception) else Exception(error.args[0])
    text = re.sub(r"^(\w+\(host=.*?\)|None): ", "", " ".join(str(error).split()))
    return text or type(error).__name__


def progress_bar(**options: Any) -> Any:
    """tqdm's bar, on standard error; in a log file a line every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(mininterval=interval, maxinterval=10 * interval, **options)


def _pool(url: str) -> PoolManager:
    """The connections of this process (sockets do not survive a fork), through the proxy that the
    environment names.
    """
    address = urlsplit(url)
    proxy = getproxies().get(address.scheme)
    return _new_pool(os.getpid(), None if proxy and proxy_bypass(address.hostname or "") else proxy)


@lru_cache(maxsize=8)
def _new_pool(process: int, proxy: str | None) -> PoolManager:
    return ProxyManager(proxy, maxsize=16) if proxy else PoolManager(maxsize=16)


def _ask(url: str, retries: Retry, **options: Any) -> BaseHTTPResponse:
    return _pool(url).request("GET", url, retries=retries, timeout=TIMEOUT, **options)


def _retries() -> Retry:
    return Retry(
        RETRIES,
        status_forcelist=RETRIED,
        backoff_factor=BACKOFF,
        # so that threads whose requests failed together do not come back together
        backoff_jitter=BACKOFF,
        retry_after_max=60,
        raise_on_status=False,  # the last answer is told
    )


def _check_status(response: BaseHTTPResponse) -> None:
    if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    text = (
        f"HTTP {response.status} {response.reason or responses.get(response.status, '')}".rstrip()
    )
    raise (FileNotFoundError if response.status in (404, 410) else OSError)(text)


def _receive(url: str, part: Path) -> None:
    """Complete `part`, which holds the beginning of the file or is not there. A connection that
    breaks is made again and goes on from there; who brings the file further has all retries again.
    """
    retries, furthest = _retries(), 0
    with (
        open(part, "ab") as file,
        progress_bar(unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1]) as bar,
    ):
        while True:
            response = _ask(
                url, retries, headers=_headers(part, file.tell()), preload_content=False
            )
            retries = response.retries or retries
            try:
                with response:
                    if _begin(response, part, file, bar):
                        return
                    for chunk in response.stream(CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
                return
            except HTTPError as error:
                if file.tell() > furthest:
                    retries, furthest = _retries(), file.tell()
                retries = retries.increment("GET", url, error=error)
                retries.sleep()


def _headers(part: Path, have: int) -> dict[str, str]:
    if not have:
        return {}
    version = _version(part)
    # a server whose file is no longer that one sends all of it
    return {"Range": f"bytes={have}-"} | (
        {"If-Range": version.read_text()} if version.is_file() else {}
    )


def _begin(response: BaseHTTPResponse, part: Path, file: BinaryIO, bar: Any) -> bool:
    """Make `file` end where the body of the response begins; true: it is complete and there is no
    body.
    """
    content_range = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        if content_range and content_range[2] == str(file.tell()):
            return True
        _empty(file)
        raise ProtocolError("the server's file is shorter than the part that is here")
    _check_status(response)
    if (
        response.status == HTTPStatus.OK
    ):  # from the beginning: not asked otherwise, no ranges here, or another file
        _empty(file)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        _version(part).unlink(missing_ok=True)
        if version and not version.startswith("W/"):  # a weak one says nothing of bytes
            _version(part).write_text(version)
    elif not content_range or content_range[1] != str(file.tell()):
        _empty(file)
        raise ProtocolError("the server sent another part than was asked for")
    length = response.headers.get("Content-Length")
    bar.reset(file.tell() + int(length) if length else None)
    bar.initial = bar.n = file.tell()
    return False


def _empty(file: BinaryIO) -> None:
    file.truncate(0)
    file.seek(0)


def _version(part: Path) -> Path:
    """Where the server's name for the content of `part` is kept."""
    return part.with_name(f"{part.name}.version")


def _check_digest(arrived: Path, digest: str, algorithm: str, url: str, path: Path) -> None:
    found = file_digest(arrived, algorithm)[: len(digest)]
    if found != digest:
        _remove(arrived)
        raise UserError(
            f"{url} did not come as it was published: its {algorithm} begins with {found}, expected {digest}; "
            f"try again, or copy the file from elsewhere to {path}"
        )


def _remove(part: Path) -> None:
    for path in (part, _version(part)):
        with suppress(OSError):  # there is no folder, when that was the fault
            path.unlink(missing_ok=True)
