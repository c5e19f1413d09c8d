"""A COCO instances json, read once and checked entry by entry.

What is wrong with an entry is noted as a `Fault` and the entry left out. What makes the file
useless is a UserError.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from maskrcnn_lit.data.coco.annotations import (
    Columns,
    ImageEntry,
    label_annotations,
    read_annotations,
)
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.faults import BadEntryError, Fault, whole
from maskrcnn_lit.errors import UserError


class Instances(NamedTuple):
    """What a COCO instances json holds, as far as it is sound."""

    categories: tuple[Category, ...]  # by name
    images: list[ImageEntry]  # in the order of the file, as the annotations are
    annotations: Columns
    faults: list[Fault]


def read_instances(data: bytes, where: str) -> Instances:
    """A COCO instances json, annotation by annotation: as Python objects those of train2017 would
    take 3 GB.

    Args:
        data: the file.
        where: its path or URL, for messages.

    Raises:
        UserError: no JSON, or one of the three lists is missing or of no use.
    """
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    columns = None
    try:
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        for key, value in members(text, streamed="annotations"):
            found[key] = value
            if isinstance(value, Entries) and isinstance(
                found.get("images"), list
            ):  # as in the official files
                images = read_images(found["images"], faults)
                columns = read_annotations(value, images, faults)
        _check_lists(found, where)
        if columns is None:
            images = read_images(found["images"], faults)
            columns = read_annotations(found["annotations"], images, faults)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{where} cannot be read as JSON ({error}): expected a COCO instances json"
        ) from None
    except NoObjectError as error:
        raise UserError(
            f"{where} holds a {type(error.value).__name__}, not a COCO instances json, which is an object with the "
            "keys images, annotations and categories (a list is what results look like)"
        ) from None
    categories = read_categories(found["categories"], where)
    label_annotations(columns, categories, images, faults)
    return Instances(categories, images, columns, faults)


def _check_lists(found: dict[str, Any], where: str) -> None:
    missing = [
        k
        for k in ("images", "annotations", "categories")
        if not isinstance(found.get(k), (list, Entries))
    ]
    if missing:
        raise UserError(
            f"{where} is not a COCO instances json: it has no list under {' and '.join(map(repr, missing))}; "
            f"its keys are {', '.join(map(repr, found)) or 'none'}"
        )


def read_categories(entries: list[Any], where: str) -> tuple[Category, ...]:
    """The categories by name. UserError: none, one without id or name, or an id or a name twice."""
    try:
        categories = sorted(
            (Category(whole(e, "id"), str(e["name"])) for e in entries), key=lambda c: c.name
        )
    except (KeyError, TypeError, AttributeError, BadEntryError):
        raise UserError(
            f"a category of {where} lacks a whole number as id, or a name: give each both"
        ) from None
    if not categories:
        raise UserError(f"{where} has no categories: name at least one under 'categories'")
    for what, values in (
        ("name", [c.name for c in categories]),
        ("id", [str(c.id) for c in categories]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise UserError(
                f"two categories of {where} have the same {what} {', '.join(twice)}: make them differ"
            )
    return tuple(categories)


def read_images(entries: list[Any], faults: list[Fault]) -> list[ImageEntry]:
    """The image entries that are whole and of a new id, in the order of the file."""
    images: dict[int, ImageEntry] = {}
    for entry in entries:
        name = str(entry.get("file_name")) if isinstance(entry, dict) else str(entry)[:40]
        try:
            if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
                raise BadEntryError("incomplete image entry", "no file_name")
            image = ImageEntry(
                whole(entry, "id"), whole(entry, "height"), whole(entry, "width"), name, _url(entry)
            )
            if min(image.height, image.width) < 1:
                raise BadEntryError(
                    "incomplete image entry", f"size {image.width} x {image.height}"
                )
            if image.id in images:
                raise BadEntryError(
                    "duplicate image id", f"id {image.id} is that of {images[image.id].name} too"
                )
            images[image.id] = image
        except BadEntryError as bad:
            faults.append(Fault(bad.args[0], name, None, bad.args[1]))
    return list(images.values())


def _url(entry: dict[str, Any]) -> str:
    url = entry.get("coco_url")
    return url if isinstance(url, str) else ""


# The standard library's JSON parser, walked through a large file: its longest array is never there
# as a whole.

_decode = json.JSONDecoder().raw_decode

_space = re.compile(r"[ \t\n\r]*").match


class NoObjectError(Exception):
    """The JSON is another `value` than an object."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Entries:
    """The values of the array that begins at `start` in `text`, each parsed when it is asked for.

    Iterating raises json.JSONDecodeError where the text is no JSON."""

    def __init__(self, text: str, start: int) -> None:
        self.text, self.start = text, start
        self.end: int | None = None  # behind the array, once it has been walked through

    def __iter__(self) -> Iterator[Any]:
        text, position = self.text, _after(self.text, self.start + 1)
        more = not text.startswith("]", position)
        while more:
            entry, position = _decode(text, position)
            yield entry
            position = _after(text, position)
            if more := not text.startswith("]", position):
                position = _expect(",", text, position)
        self.end = position + 1


def members(text: str, streamed: str) -> Iterator[tuple[str, Any]]:
    """Key and value of each member of the object that is the whole of `text`; an array under the
    key `streamed` comes as Entries, which the caller may iterate at once or later.

    Raises:
        json.JSONDecodeError: it is no JSON.
        NoObjectError: it is JSON, but no object.
    """
    position = _after(text, 0)
    if not text.startswith("{", position):
        raise NoObjectError(json.loads(text))
    position = _after(text, position + 1)
    more = not text.startswith("}", position)
    while more:
        key, position = _decode(text, position)
        if not isinstance(key, str):
            raise json.JSONDecodeError(
                "Expecting property name enclosed in double quotes", text, position
            )
        position = _expect(":", text, _after(text, position))
        if key == streamed and text.startswith("[", position):
            entries = Entries(text, position)
            yield key, entries
            if entries.end is None:
                deque(entries, maxlen=0)
            position = entries.end or position
        else:
            value, position = _decode(text, position)
            yield key, value
        position = _after(text, position)
        if more := not text.startswith("}", position):
            position = _expect(",", text, position)
    if _after(text, position + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, position + 1)


def _after(text: str, position: int) -> int:
    """Behind white space."""
    found = _space(text, position)
    return found.end() if found else position


def _expect(sign: str, text: str, position: int) -> int:
    """Behind `sign` and the white space after it."""
    if not text.startswith(sign, position):
        raise json.JSONDecodeError(f"Expecting '{sign}' delimiter", text, position)
    return _after(text, position + 1)
