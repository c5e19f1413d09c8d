"""Image bytes, wherever they are: in a folder, in a zip that stays one, behind http(s), in a
bucket.

`open_images` and `open_annotations` tell by a path or URL which it is. Any number of threads and
forked processes may read the same source; to another process it travels as its path or URL.
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

    where: str  # what messages call it
    local: bool  # whether every file can be looked at before training at little cost

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such file, OSError for anything else,
        UserError for a name that leaves the folder.
        """

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Size in bytes, and a number that changes with the content; None: not there, or, far away,
        unknown.
        """


class Folder:
    """Of this machine, as far as anyone can tell."""

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
    """Files below a URL: http(s), or whatever fsspec knows. They are taken never to change: what
    the cache has of them is not asked for again, unless its reader finds that it is not the file
    (`forget`): proxies answer with pages of their own. Connections are made when they are first
    needed, by each process for itself.
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
        """Have a copy in the cache, for whoever reads it later."""
        url = self._url(name)
        self.cache.fill(url, partial(self._fetch, url))

    def forget(self, name: str) -> None:
        """Have no copy in the cache: what came was not the file. The next reader asks again."""
        self.cache.forget(self._url(name))

    def stamp(self, name: str) -> tuple[int, int] | None:
        """None: asking for it would cost as much as reading."""

    def _url(self, name: str) -> str:
        name = inside(name, self.where)
        if not self._http:
            return f"{self.where}/{name}"
        parts = urlsplit(self.where)  # what follows a ? stays at the end: a signature, say
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
        except (
            Exception
        ) as error:  # of the library that speaks to the bucket: credentials, its server
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
            f"{url} begins with {protocol}://, which is not known: use http, https, s3 or gs"
        ) from None


def join(root: str | Path | None, path: str) -> str:
    """`path` as it is found from `root`, a folder or a URL; a URL or an absolute path stays what it
    is.
    """
    if "://" in str(path) or os.path.isabs(path):
        return str(path)
    return (
        f"{str(root).rstrip('/')}/{path}" if "://" in str(root) else str(Path(root or ".") / path)
    )


def open_images(where: str, cache_dir: Path, cache_gb: float) -> Source:
    """The images of `where`: a URL, a folder, a zip, or a folder that is not there beside a zip of
    its name.

    Args:
        where: see `join`.
        cache_dir, cache_gb: where copies of remote files are kept, and how many gigabytes of them.

    Raises:
        UserError: there is nothing like that.
    """
    if "://" in where:
        return Remote(where, Cache(cache_dir / "remote", cache_gb))
    folder = Path(where)
    if folder.is_dir():
        return Folder(folder)
    archive = folder if folder.suffix == ".zip" else folder.with_name(f"{folder.name}.zip")
    if not archive.is_file():
        raise UserError(
            f"there is no image folder {where}, nor {archive}: check the path in data.*.images"
        )
    return Zip(archive, f"{archive.stem}/" if Zip(archive).holds(archive.stem) else "")


def open_annotations(where: str, cache_dir: Path, cache_gb: float) -> tuple[Source, str]:
    """The source of a json and its name there: a URL, a file, or a member of COCO's archive that
    lies where the json's folder would be. Arguments and errors as of `open_images`.
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
