"""Files that name or hold many images: a zip, a list in a text file, a COCO json.

Names become paths below a folder of pictures (`predict`), so none may point outside of its folder.
"""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.download import IMAGE
from maskrcnn_lit.storage.files import safe_path
from maskrcnn_lit.storage.zip_source import Zip

ZIP, LIST, JSON = (".zip",), (".txt",), (".json",)

_LONGEST_LIST = 2**28  # bytes of a list


class CocoImage(NamedTuple):
    """An entry of "images" of a COCO json."""

    id: int
    name: str
    file: Path


def zip_names(archive: Zip) -> list[str]:
    """The names of the files of a zip, sorted, without hidden ones.

    Raises: UserError: it is damaged, or a name points outside of the zip.
    """
    if not zipfile.is_zipfile(archive.file):
        raise UserError(f"{archive.file} is not a complete zip: download or copy it again")
    names = archive.names()
    for name in names:
        if safe_path(Path(), name) is None:
            raise UserError(
                f"{archive.file} has a file {name!r}, which points outside of the zip: unpack it "
                "where you trust it, and give the folder"
            )
    return [name for name in names if not is_hidden(name)]


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder on the way to it, begins with a dot. `name` is normalized."""
    return any(part.startswith(".") for part in name.split("/"))


def read_member(archive: Zip, name: str) -> bytes:
    """The content of a file in a zip. OSError: it is damaged or too large."""
    stamp = archive.stamp(name)
    if stamp is not None and stamp[0] > IMAGE.size:
        raise OSError(f"it has {stamp[0] / 1e6:.0f} MB, more than {IMAGE.size / 1e6:.0f} MB")
    return archive.read(name)


def read_list(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers, without empty ones and those that begin with #.

    Raises: UserError: it is not a text, or no line names a source.
    """
    try:
        if path.stat().st_size > _LONGEST_LIST:
            raise ValueError(f"{path.stat().st_size} bytes")
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a list ({error}): give a text file with one image a line"
        ) from None
    named = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    named = [(number, line) for number, line in named if line and not line.startswith("#")]
    if not named:
        raise UserError(f"{path} names no image: write one image, folder or video a line")
    return named


def coco_images(path: Path) -> list[CocoImage]:
    """The images of a COCO json with their ids. Their files are below the first of `_folders` that
    has the file of the first image.

    Raises: UserError: it is not a COCO json, a name points outside of the folder, or none is there.
    """
    entries = _image_entries(path)
    images = []
    for number, entry in enumerate(entries):
        name, image_id = entry.get("file_name"), entry.get("id")
        if not isinstance(name, str) or type(image_id) is not int:
            raise UserError(
                f"{path}: images[{number}] has no file_name and id: give a COCO json of images"
            )
        if safe_path(Path(), name) is None:
            raise UserError(
                f"{path}: images[{number}] has the file name {name!r}, which points outside of "
                "its folder: fix the json"
            )
        images.append((image_id, name))
    folders = _folders(path)
    folder = next((folder for folder in folders if (folder / images[0][1]).is_file()), None)
    if folder is None:
        looked = ", ".join(map(str, folders))
        raise UserError(
            f"{path}: its first image {images[0][1]} is in none of {looked}: move the json beside "
            "its images, or give their folder as source"
        )
    return [CocoImage(image_id, name, folder / name) for image_id, name in images]


def _image_entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): give a COCO json") from None
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"{path} has no list of images: give a COCO json, which has the key 'images'"
        )
    if not entries:
        raise UserError(f"{path} lists no images: give a COCO json with images")
    return entries


def _folders(path: Path) -> list[Path]:
    """Where the images of a COCO json may be: beside it, or as COCO has them, DIR/val2017 for
    DIR/annotations/instances_val2017.json.
    """
    around, part = path.absolute().parent.parent, path.stem.rpartition("_")[2]
    beside = path.parent
    return [beside, beside / "images", around / part, around / "images", around]
