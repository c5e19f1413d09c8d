"""Data sets in other forms than one COCO json per part, as COCO jsons in the cache.

A reader turns a folder in its own form into a COCO instances dict (`Part`); `located` writes it to
`cache_dir`/read, once for each state of the folder, and returns where it is. From there on, all
data are COCO jsons. The user's folder is never changed.

    read/<key>/record.json                 the sources with their digests, the image folder
    read/<key>/train.json, val.json, ...   the jsons: `all` for data without parts
    pictures/<key>/                        pictures that the files contain, see `PictureReader`

`key` is the hash of the reader, its options, the folder and the part. The sources are every file in
the folder: names, sizes and times. A change of one of them makes the json again.

The faults of the folder's files are part of the json, under `faults.FINDINGS`, so that
`data.on_bad` and `data check` treat them as those of any json.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from maskrcnn_lit.data.coco.faults import Fault, with_findings
from maskrcnn_lit.data.coco.split import Split, split_content
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import atomic_folder, file_digest, locked, write_json
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json, write_sealed_json

FORMAT = 1  # raise it when a reader reads the same files otherwise

ALL = "all"  # the part of data that have no parts

_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """What a reader returns: a COCO instances dict whose file names start from the folder `images`,
    the faults of entries that it left out, and what it filled in or corrected.
    """

    content: dict[str, Any]
    images: Path
    faults: Sequence[Fault] = ()
    changes: Sequence[Fault] = ()


@runtime_checkable
class Reader(Protocol):
    """Reads one form of data. A frozen dataclass: its fields are its options."""

    def parts(self, root: Path) -> Sequence[str]:
        """Of "train" and "val" those that `root` has; none if the data are not divided."""

    def read(self, root: Path, part: str) -> Part:
        """One of `parts`, or ALL: every image.

        Raises:
            UserError: there is nothing of this form in `root`.
        """

    def sources(self, root: Path) -> Sequence[Path]:
        """The folders and files that `read` reads."""


@runtime_checkable
class PictureReader(Protocol):
    """Reads one form of data whose files contain the pictures: it writes them into the cache."""

    def parts(self, root: Path) -> Sequence[str]:
        """See `Reader`."""

    def sources(self, root: Path) -> Sequence[Path]:
        """See `Reader`."""

    def read_into(self, root: Path, part: str, pictures: Path, gigabytes: float) -> Part:
        """See `Reader.read`. After it, the folder `pictures` has the pictures of `part` alone.

        Raises:
            UserError: there is nothing of this form in `root`, or the pictures need more than
                `gigabytes`.
        """


AnyReader = Reader | PictureReader


@dataclass(frozen=True)
class OneJson:
    """The reader of a COCO json that has no parts."""

    annotations: str
    images: str

    def parts(self, root: Path) -> Sequence[str]:
        return ()

    def read(self, root: Path, part: str) -> Part:
        return Part(load_entries(Path(self.annotations)), Path(self.images))

    def sources(self, root: Path) -> Sequence[Path]:
        return (Path(self.annotations),)


def load_entries(path: Path) -> dict[str, Any]:
    """The parsed json with all keys.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
        return {
            **content,
            "images": list(content["images"]),
            "annotations": list(content["annotations"]),
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise UserError(
            f"{path} cannot be read as a COCO instances json ({reason}): give another file"
        ) from None


class Located(NamedTuple):
    """A json in the cache, and the folder of its images."""

    annotations: Path
    images: Path


def folder_of(root: str | Path | None) -> Path:
    """The folder `data.root` of a reader; None: the working directory.

    Raises:
        UserError: it is a URL, or missing.
    """
    if root is None:
        return Path()
    if "://" in str(root):
        raise UserError(f"data.root={root} must be a folder on this machine: give its path")
    folder = Path(root)
    if not folder.exists():
        raise UserError(f"data.root={root} does not exist: give the folder of the data")
    return folder


def located(
    reader: AnyReader,
    root: Path,
    part: str,
    cache: Path,
    split: Split | None = None,
    cache_gb: float = 50.0,
) -> dict[str, Located]:
    """The jsons of `part` (see `Reader.read`) in `cache`, by part: with `split`, "train" and "val".
    cache_gb: limit for the pictures of a `PictureReader`.

    Raises:
        UserError: see `Reader.read`; the cache cannot be written.
    """
    options = [FORMAT, type(reader).__qualname__, repr(reader), str(root.absolute()), part, split]
    key = hashlib.sha256(repr(options).encode()).hexdigest()[:16]
    folder = cache / "read" / key
    store = _pictures_folder(reader, root, part, cache)
    names = [part] if split is None else ["train", "val"]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            state = digest_of(reader.sources(root))
            images = _present(folder, state, names, store)
            if images is None:
                where = reader.annotations if isinstance(reader, OneJson) else root.absolute()
                _log.info(f"reading {where}; the next run takes it from the cache")
                if isinstance(reader, PictureReader):
                    read = reader.read_into(root, part, store, cache_gb)
                else:
                    read = reader.read(root, part)
                images = _write(folder, state, read, part, split, str(root), store)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(cache)):
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
        raise UserError(
            f"the annotations of {root} cannot be written to {folder} ({error}): free space there, "
            "or set another folder, data.cache_dir=DIR"
        ) from error
    return {name: Located(folder / f"{name}.json", Path(images)) for name in names}


def digest_of(sources: Sequence[Path]) -> str:
    """A hash of the names, sizes and times of the files and of those in the folders."""
    digest = hashlib.sha256()
    for source in sources:
        for name, size, changed in _stamps(source):
            digest.update(f"{name}\0{size}\0{changed}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stamps(source: Path) -> Iterator[tuple[str, int, int]]:
    if not source.is_dir():
        stat = source.stat()
        yield source.name, stat.st_size, stat.st_mtime_ns
        return
    for where, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(where, name)
            if os.path.isfile(path):
                stat = os.stat(path)
                yield os.path.relpath(path, source), stat.st_size, stat.st_mtime_ns


def _pictures_folder(reader: AnyReader, root: Path, part: str, cache: Path) -> Path:
    """The folder for the pictures of a `PictureReader`. Its options and a split change none."""
    key = hashlib.sha256(repr([str(root.absolute()), part]).encode()).hexdigest()[:16]
    return cache / "pictures" / f"{type(reader).__name__}-{key}"


def _count(folder: Path) -> int:
    """The number of files below `folder`; 0 if it does not exist."""
    return sum(len(names) for _, _, names in os.walk(folder))


def _present(folder: Path, state: str, names: Sequence[str], store: Path) -> str | None:
    """The image folder of the jsons in `folder`; None if they are missing, damaged or out of
    date, or if a picture in `store` is missing.
    """
    try:
        record = read_sealed_json(folder / "record.json")
        sound = record["state"] == state and record["jsons"] == {
            name: file_digest(folder / f"{name}.json", "sha256") for name in names
        }
        return str(record["images"]) if sound and record["pictures"] == _count(store) else None
    except (OSError, DamagedFileError, KeyError):
        return None


def _write(
    folder: Path, state: str, read: Part, part: str, split: Split | None, where: str, store: Path
) -> str:
    contents = (
        {part: with_findings(read.content, read.faults, read.changes)}
        if split is None
        else _divided(read, split, where)
    )
    images = str(read.images.absolute())
    record = {"state": state, "images": images, "pictures": _count(store)}
    with atomic_folder(folder, replace=True, durable=False) as new:
        for name, one in contents.items():
            write_json(new / f"{name}.json", one, indent=None)
        jsons = {name: file_digest(new / f"{name}.json", "sha256") for name in contents}
        write_sealed_json(new / "record.json", record | {"jsons": jsons})
    return images


def _divided(read: Part, split: Split, where: str) -> dict[str, dict[str, Any]]:
    """The dict of each part with its own findings; those of no image are with "train"."""
    contents = split_content(read.content, split, where)
    names = {image.get("file_name") for image in contents["val"]["images"]}
    return {
        name: with_findings(
            content,
            faults=[one for one in read.faults if (one.image in names) == (name == "val")],
            changes=[one for one in read.changes if (one.image in names) == (name == "val")],
        )
        for name, content in contents.items()
    }
