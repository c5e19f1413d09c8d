"""Reads files from a folder, from a zip in place, over http(s), or from a bucket.

`open_images` and `open_annotations` select the source by path or URL. Any number of threads and
forked processes may share a source; pickling transfers only its path or URL.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import fsspec

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.cache import Cache
from maskrcnn_lit.storage.download import IMAGE, JSON, AbandonedError, Bounds, get, within
from maskrcnn_lit.storage.zip_source import Zip, inside

ANNOTATION_ARCHIVE = "annotations_trainval2017.zip"  # as COCO publishes it


class Source(Protocol):
    """Files by their names, which may have slashes."""

    where: str  # its name in messages
    local: bool  # whether checking every file before training is cheap

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError for a missing file, UserError for a name that points outside of
        the folder, OSError for any other error.
        """

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Size in bytes, and a number that changes with the content; None: missing, or remote and
        unknown.
        """


class Folder:
    """Files in a local folder."""

    local = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)

    def path(self, name: str) -> Path:
        return self.folder / inside(name, self.where)

    def read(self, name: str) -> bytes:
        try:
            return self.path(name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from None

    def stamp(self, name: str) -> tuple[int, int] | None:
        try:
            stat = self.path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_size, stat.st_mtime_ns


class Remote:
    """Files below a URL: http(s), or any protocol of fsspec. They are assumed never to change:
    cached files are not requested again, unless a reader finds wrong content, such as a proxy's
    error page (`forget`). Each process connects on first use.
    """

    local = False

    def __init__(self, url: str, cache: Cache, bounds: Bounds = IMAGE) -> None:
        self.where, self.cache, self.bounds = url.rstrip("/"), cache, bounds
        self._connected: dict[int, Any] = {}  # by process
        self._http = urlsplit(url).scheme in ("http", "https")
        if not self._http:
            _check_protocol(url)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connected": {}}

    def read(self, name: str) -> bytes:
        url = self._url(name)
        return self.cache.read(url, partial(self._fetch, url))

    def fill(self, name: str) -> None:
        """Cache the file for later readers."""
        url = self._url(name)
        self.cache.fill(url, partial(self._fetch, url))

    def forget(self, name: str) -> None:
        """Remove the file from the cache because its content is wrong. The next reader requests it
        again.
        """
        self.cache.forget(self._url(name))

    def stamp(self, name: str) -> tuple[int, int] | None:
        """None: requesting it would cost as much as reading."""

    def _url(self, name: str) -> str:
        name = inside(name, self.where)
        if not self._http:
            return f"{self.where}/{name}"
        parts = urlsplit(self.where)  # the query, for example a signature, stays at the end
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))

    def _fetch(self, url: str) -> bytes:
        if self._http:
            return get(url, bounds=self.bounds)
        process, size = os.getpid(), self.bounds.size
        try:
            if process not in self._connected:
                self._connected = {process: fsspec.core.url_to_fs(self.where)[0]}
            cat = partial(self._connected[process].cat_file, url, start=0, end=size + 1)
            content = within(self.bounds.seconds, cat)
        except (OSError, UserError):
            raise
        except Exception as error:  # from the bucket's library: credentials, its server
            raise OSError(f"{url} cannot be read: {error}") from error
        if len(content) > size:
            raise AbandonedError(f"{url} has more than {size / 1e6:.0f} MB")
        return content


def _check_protocol(url: str) -> None:
    protocol = url.split("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise UserError(
            f"{url} needs a package that is not installed: pip install 'maskrcnn_lit[cloud]'"
        ) from error
    except ValueError:
        raise UserError(
            f"{url} uses the unknown protocol {protocol}://: use http, https, s3 or gs"
        ) from None


def join(root: str | Path | None, path: str) -> str:
    """`path` relative to `root`, a folder or a URL; a URL or an absolute path is unchanged."""
    if "://" in str(path) or os.path.isabs(path):
        return str(path)
    return (
        f"{str(root).rstrip('/')}/{path}" if "://" in str(root) else str(Path(root or ".") / path)
    )


def open_images(where: str, cache_dir: Path, cache_gb: float) -> Source:
    """The images of `where`: a URL, a folder, a zip, or a missing folder with a zip of its name.

    Args:
        where: see `join`.
        cache_dir, cache_gb: folder and size limit of the cache for remote files.

    Raises:
        UserError: `where` does not exist.
    """
    if "://" in where:
        return Remote(where, Cache(cache_dir / "remote", cache_gb))
    folder = Path(where)
    if folder.is_dir():
        return Folder(folder)
    archive = folder if folder.suffix == ".zip" else folder.with_name(f"{folder.name}.zip")
    if not archive.is_file():
        raise UserError(
            f"neither the image folder {where} nor {archive} exists: check the path in "
            "data.*.images"
        )
    return Zip(archive, f"{archive.stem}/" if Zip(archive).holds(archive.stem) else "")


def open_annotations(where: str, cache_dir: Path, cache_gb: float) -> tuple[Source, str]:
    """The source of a json and its name there: a URL, a file, or a member of COCO's archive beside
    the json's folder. Arguments and errors as for `open_images`.
    """
    if "://" in where:
        parts = urlsplit(where)
        base, _, name = parts.path.rpartition("/")
        return Remote(
            urlunsplit(parts._replace(path=base)), Cache(cache_dir / "remote", cache_gb), JSON
        ), unquote(name)
    path = Path(where)
    archive = path.parent.parent / ANNOTATION_ARCHIVE
    if not path.is_file() and archive.is_file():
        member = Zip(archive, f"{path.parent.name}/")
        if member.stamp(path.name) is not None:
            return member, path.name
    if not path.exists():
        raise UserError(
            f"there is no annotation file {where}: check the path in data.*.annotations"
        )
    return Folder(path.parent), path.name
