"""Image bytes from a folder (TEMPORARY, the whole comes from branch sources)."""

from pathlib import Path
from typing import Protocol

from maskrcnn_lit.data.image import safe_path
from maskrcnn_lit.errors import UserError


class Source(Protocol):
    where: str
    local: bool

    def read(self, name: str) -> bytes: ...
    def stamp(self, name: str) -> tuple[int, int] | None: ...


class Folder:
    local = True

    def __init__(self, path: Path) -> None:
        self.folder, self.where = path, str(path)

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def stamp(self, name: str) -> tuple[int, int] | None:
        try:
            found = self.path(name).stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def path(self, name: str) -> Path:
        if (path := safe_path(self.folder, name)) is None:
            raise UserError(f"file name {name!r} leaves {self.where}: data.on_bad=skip drops it")
        return path


def join(root: str | Path | None, path: str) -> str:
    return str(Path(root or ".") / path)


def open_images(where: str, cache_dir: Path, cache_gb: float) -> Source:
    if not Path(where).is_dir():
        raise UserError(f"there is no image folder {where}: check the path in data.*.images")
    return Folder(Path(where))


def open_annotations(where: str, cache_dir: Path, cache_gb: float) -> tuple[Source, str]:
    return Folder(Path(where).parent), Path(where).name
