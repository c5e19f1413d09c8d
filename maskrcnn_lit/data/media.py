"""Images in and out of `predict`: a file, a folder or a glob becomes arrays; an array becomes a file."""

import glob
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_lit.data.image import UnreadableImageError, decode
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.files import atomic_write

_log = logging.getLogger(__name__)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def read_images(source: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, H W 3 uint8 RGB) of each image of `source`: a file, a folder with its subfolders, or a glob (a/**/*.jpg).

    Sorted by name; names are relative to the folder (of a glob: to what stands before the first wildcard), so that no
    two are alike. In folders, files that do not end as images do and hidden ones are passed over. An animated file
    gives its first frame. Pixels are upright by EXIF and have 8 bits, whatever the file has.

    Of a folder or a glob a file that cannot be decoded is passed over, with a warning that names it.

    Raises UserError: at once where there is no image, and for a single file that cannot be decoded.
    """
    return _read(_find(str(source)), skip=not Path(source).is_file())


def _find(source: str) -> list[tuple[str, Path]]:
    path = Path(source)
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        base, found = path, list(path.rglob("*"))
    elif glob.has_magic(source):
        base, found = _before_wildcard(path), [Path(name) for name in glob.glob(source, recursive=True)]
    else:
        raise UserError(f"source={source} does not exist; give an image, a folder or a glob, e.g. 'photos/*.jpg'")
    named = [(file.relative_to(base).as_posix(), file) for file in found if file.suffix.lower() in SUFFIXES]
    images = sorted((name, file) for name, file in named if file.is_file() and not _hidden(name))
    if not images:
        raise UserError(
            f"source={source} holds no image; give an image, a folder or a glob of files that end in "
            f"{', '.join(SUFFIXES)} (quote a glob, so that the shell leaves it alone)"
        )
    return images


def _before_wildcard(path: Path) -> Path:
    while glob.has_magic(str(path)):
        path = path.parent
    return path


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _read(images: list[tuple[str, Path]], skip: bool) -> Iterator[tuple[str, np.ndarray]]:
    for name, path in images:
        try:
            pixels, _ = decode(path.read_bytes())
        except (OSError, UnreadableImageError) as error:
            if not skip:
                raise UserError(f"{path} cannot be read as an image ({error}); give another file") from error
            _log.warning("%s is passed over, it cannot be read as an image (%s)", path, error)
            continue
        yield name, pixels


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an H W 3 uint8 picture as PNG, JPEG or WebP, by the suffix of `path`: the whole file or none."""
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} cannot be written: the name of a picture ends in {', '.join(_FORMATS)}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=95)
    atomic_write(path, buffer.getvalue())
