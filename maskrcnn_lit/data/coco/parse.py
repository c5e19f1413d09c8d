"""Parses a COCO instances json and checks it entry by entry.

An invalid entry is left out and recorded as a `Fault`; a correction is recorded as a change. A file
without usable lists is a UserError.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from itertools import count
from types import MappingProxyType
from typing import Any, NamedTuple

from maskrcnn_lit.data.coco.annotations import (
    SUPER,
    Columns,
    ImageEntry,
    give_category_ids,
    label_annotations,
    read_annotations,
    read_void,
)
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.faults import (
    BadEntryError,
    Fault,
    findings_of,
    identifier,
    integer,
    printable,
    shown,
)
from maskrcnn_lit.data.coco.formats import describe_content, describe_file
from maskrcnn_lit.errors import UserError

# file name -> height and width of the image; None if it cannot be read
Measure = Callable[[str], tuple[int, int] | None]

_NONE = ("", "none", "None")  # what stands for no supercategory
FREQUENCIES = ("r", "c", "f")  # of LVIS's classes: rare, common, frequent

LONGEST = 1_000_000  # limit for a side in pixels, and

MOST_PIXELS = 2**31 - 1  # limit for an image: pycocotools counts in 32 bits


class Instances(NamedTuple):
    """The valid entries of a COCO instances json."""

    categories: tuple[Category, ...]  # by name
    images: list[ImageEntry]  # in the order of the file, like the annotations
    annotations: Columns
    faults: list[Fault]
    changes: list[Fault]  # what is read otherwise than it is written
    measured: list[
        tuple[str, int, int]
    ]  # name, height, width (0: unknown) of images without a size, measured from their files
    frequencies: Mapping[str, str] = MappingProxyType(
        {}
    )  # LVIS: class -> r, c or f (rare, common, frequent)


class _Images(NamedTuple):
    entries: list[ImageEntry]
    measured: list[tuple[str, int, int]]


def read_instances(data: bytes, where: str, measure: Measure | None = None) -> Instances:
    """Parse a COCO instances json, one annotation at a time: train2017 as Python objects would take
    3 GB.

    Args:
        data: the file.
        where: its path or URL, for messages.
        measure: returns the size of an image whose entry has none; None: a missing size is a fault.

    Raises:
        UserError: the file is not JSON, or one of the three lists is missing or unusable.
    """
    content: dict[str, Any] = {}
    faults: list[Fault] = []
    changes: list[Fault] = []
    columns = None
    try:
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        for key, value in members(text, streamed="annotations"):
            content[key] = value
            if isinstance(value, Entries) and isinstance(
                content.get("images"), list
            ):  # as in the official files
                images = _read_images(content["images"], faults, changes, measure)
                columns = read_annotations(value, images.entries, faults, changes)
        _check_lists(content, where)
        if columns is None:
            images = _read_images(content["images"], faults, changes, measure)
            columns = read_annotations(content["annotations"], images.entries, faults, changes)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        description = describe_file(where) or "expected a COCO instances json"
        raise UserError(f"{where} cannot be read as JSON ({error}): {description}") from None
    except NoObjectError as error:
        raise UserError(
            f"{where} contains a {type(error.value).__name__}, but a COCO instances json is an "
            "object with the keys images, annotations and categories: "
            f"{describe_content(error.value) or 'give the annotation file'}"
        ) from None
    used = {columns.category_texts.get(code, code) for code in set(columns.labels)}
    categories, keys = read_categories(content["categories"], where, used, changes)
    for entries in (faults, changes):
        give_category_ids(columns, categories, keys, entries)
    label_annotations(columns, categories, images.entries, faults, keys)
    for entries, own in zip((faults, changes), findings_of(content), strict=True):
        entries += own
    labels = {category.id: label for label, category in enumerate(categories, 1)}
    known = {key: labels[number] for key, number in keys.items()}
    listed = [_with_labels(image, known) for image in images.entries]
    frequencies = _frequencies(content["categories"], {category.name for category in categories})
    return Instances(categories, listed, columns, faults, changes, images.measured, frequencies)


def _with_labels(image: ImageEntry, labels: dict[int | str, int]) -> ImageEntry:
    """LVIS's category ids of an image as labels."""
    if image.negatives is None:
        return image
    negatives, incompletes = (
        tuple(labels[key] for key in keys if key in labels)
        for keys in (image.negatives, image.incompletes)
    )
    return image._replace(negatives=negatives, incompletes=incompletes)


def _frequencies(entries: list[Any], names: Set[str]) -> dict[str, str]:
    return {
        str(entry["name"]): entry["frequency"]
        for entry in entries
        if entry.get("frequency") in FREQUENCIES and str(entry["name"]) in names
    }


def _check_lists(content: dict[str, Any], where: str) -> None:
    missing = [
        k
        for k in ("images", "annotations", "categories")
        if not isinstance(content.get(k), (list, Entries))
    ]
    if missing:
        hint = describe_content(content)
        raise UserError(
            f"{where} is not a COCO instances json: it has no list under "
            f"{' and '.join(map(repr, missing))}; "
            f"its keys are {', '.join(map(repr, content)) or 'none'}{f'; {hint}' if hint else ''}"
        )


def read_categories(
    entries: list[Any], where: str, used: Set[int | str], changes: list[Fault]
) -> tuple[tuple[Category, ...], dict[int | str, int]]:
    """The categories sorted by name, and the mapping from category ids in annotations to their ids.

    A duplicate name is allowed if only one of the categories is used (exporters write a
    supercategory with the name of its class): the others are left out, which is a change. Text ids
    get numbers.

    Args:
        used: the category ids that occur in the annotations.

    Raises:
        UserError: no category, a category without id or name, or a duplicate id or used name.
    """
    named: dict[int | str, str] = {}
    for entry in entries:
        try:
            key, name = identifier(entry, "id"), _category_name(entry["name"])
        except (KeyError, TypeError, AttributeError, BadEntryError):
            raise UserError(
                f"a category of {where} has no integer id or no name: give every category both"
            ) from None
        if named.setdefault(key, name) != name:
            raise UserError(
                f"two categories of {where} have the same id {shown(key)}: give each its own id"
            )
    if not named:
        raise UserError(f"{where} has no categories: add at least one under 'categories'")
    names = list(named.values())
    for name in sorted({name for name in names if names.count(name) > 1}):
        same = [key for key in named if named[key] == name]
        keep = [key for key in same if key in used] or same[:1]
        if len(keep) > 1:
            raise UserError(
                f"two categories of {where} have the same name {name}: give each its own name"
            )
        for key in set(same) - set(keep):
            del named[key]
            detail = (
                f"id {shown(key)} has the same name as id {shown(keep[0])} and no "
                "annotation: "
                "left out"
            )
            changes.append(Fault("category twice", f"category {name}", None, detail))
    _leave_out_super(entries, named, used, changes)
    numbers = _numbered(named)
    for key in named:
        if isinstance(key, str):
            detail = f"the id {shown(key)} is text; it is {numbers[key]} here"
            changes.append(Fault("id that is text", f"category {named[key]}", None, detail))
    table = sorted((Category(numbers[key], named[key]) for key in named), key=lambda c: c.name)
    return tuple(table), numbers


def _leave_out_super(
    entries: list[Any], named: dict[int | str, str], used: Set[int | str], changes: list[Fault]
) -> None:
    """Remove the categories that only group others, as Roboflow writes them: without annotations,
    without a supercategory of their own, and the supercategory of another one.
    """
    parents = {identifier(entry, "id"): str(entry.get("supercategory") or "") for entry in entries}
    for key in set(named) - set(used):
        name = named[key]
        groups = any(parents[other] == name for other, title in named.items() if title != name)
        if groups and parents[key] in _NONE:
            del named[key]
            detail = f"id {shown(key)} only groups other categories: left out"
            changes.append(Fault(SUPER, f"category {name}", None, detail))


def _category_name(value: Any) -> str:
    if isinstance(value, (bool, list, dict)) or value is None or not printable(str(value)):
        raise BadEntryError("category", "no name")
    return str(value)


def _numbered(keys: Collection[int | str]) -> dict[int | str, int]:
    """Each id as a number: text ids get the smallest free numbers from 1."""
    taken = set(keys)
    free = (number for number in count(1) if number not in taken)
    return {key: next(free) if isinstance(key, str) else key for key in keys}


def read_images(entries: list[Any], faults: list[Fault]) -> list[ImageEntry]:
    """The complete image entries with unique ids, in the order of the file."""
    return _read_images(entries, faults, [], None).entries


def _read_images(
    entries: list[Any], faults: list[Fault], changes: list[Fault], measure: Measure | None
) -> _Images:
    images: dict[int | str, ImageEntry] = {}
    measured: list[tuple[str, int, int]] = []
    for entry_index, entry in enumerate(entries):
        name = _shown_name(entry)
        try:
            size = _size(entry, measure)
            if size is not None:
                measured.append((name, *size))
            image = _read_image(entry, entry_index, size)
            key = image.id if image.key is None else image.key
            if key in images:
                raise BadEntryError(
                    "duplicate image id", f"id {shown(key)} is that of {images[key].name} too"
                )
        except BadEntryError as bad:
            faults.append(Fault(bad.args[0], name, None, bad.args[1]))
            continue
        images[key] = image
        if size is not None:
            detail = f"the file gives {image.width} x {image.height}"
            changes.append(Fault("no image size", name, None, detail))
        quoted = [key for key in ("height", "width") if isinstance(entry.get(key), str)]
        quoted += ["id"] if isinstance(entry["id"], str) and image.key is None else []
        if quoted:
            changes.append(Fault("number in quotes", name, None, ", ".join(quoted)))
    numbers = _numbered(images)
    for key, image in images.items():
        if isinstance(key, str):
            detail = f"the id {shown(key)} is text; it is {numbers[key]} here"
            changes.append(Fault("id that is text", image.name, None, detail))
    return _Images([image._replace(id=numbers[key]) for key, image in images.items()], measured)


def _shown_name(entry: Any) -> str:
    """The name of an image for messages."""
    name = _file_name(entry) if isinstance(entry, dict) else entry
    return name if isinstance(name, str) and printable(name) else shown(name)


def _file_name(entry: dict[str, Any]) -> Any:
    """The file name; without one, as in LVIS, the last two parts of coco_url:
    train2017/000000391895.jpg.
    """
    if "file_name" in entry or not _url(entry):
        return entry.get("file_name")
    return "/".join(_url(entry).split("?")[0].split("/")[-2:])


def _size(entry: Any, measure: Measure | None) -> tuple[int, int] | None:
    """Measured height and width for an entry without a size, 0 if unknown; None: the entry has
    one.
    """
    if not isinstance(entry, dict) or not isinstance(_file_name(entry), str):
        return None
    if all(entry.get(side) not in (None, 0, "", "0") for side in ("height", "width")):
        return None
    size = measure(_file_name(entry)) if measure is not None else None
    return (0, 0) if size is None else size


def _read_image(entry: Any, entry_index: int, size: tuple[int, int] | None) -> ImageEntry:
    """Parse one entry; a text id is stored in `key`, with `id` 0."""
    if not isinstance(entry, dict) or not isinstance(_file_name(entry), str):
        raise BadEntryError("incomplete image entry", "no file_name")
    name = _file_name(entry)
    if not printable(name):
        raise BadEntryError(
            "incomplete image entry", "file_name is not valid text: it has a lone surrogate"
        )
    key = identifier(entry, "id")
    if size == (0, 0):
        detail = "no height and width, and no image file to measure them"
        raise BadEntryError("incomplete image entry", detail)
    height, width = size or (integer(entry, "height"), integer(entry, "width"))
    if min(height, width) < 1:
        raise BadEntryError("incomplete image entry", f"size {width} x {height}")
    if max(height, width) > LONGEST or height * width > MOST_PIXELS:
        raise BadEntryError("image too large", f"size {width} x {height}")
    void = entry.get("ignore")
    if void is not None:
        void = read_void(void, height, width)
    number, text = (0, key) if isinstance(key, str) else (key, None)
    negatives = _ids(entry, "neg_category_ids") if "neg_category_ids" in entry else None
    incompletes = _ids(entry, "not_exhaustive_category_ids")
    return ImageEntry(
        number, height, width, name, _url(entry), entry_index, text, void, negatives, incompletes
    )


def _ids(entry: dict[str, Any], key: str) -> tuple[Any, ...]:
    values = entry.get(key)
    if values is not None and not isinstance(values, list):
        raise BadEntryError("incomplete image entry", f"{key} {shown(values)} is not a list")
    return tuple(value for value in values or () if isinstance(value, (int, str)))


def _url(entry: dict[str, Any]) -> str:
    url = entry.get("coco_url")
    return url if isinstance(url, str) and printable(url) else ""


# The standard library's JSON parser, applied step by step to a large file: the longest array is
# never fully in memory.

_raw_decode = json.JSONDecoder().raw_decode

_space = re.compile(r"[ \t\n\r]*").match


def _decode(text: str, position: int) -> tuple[Any, int]:
    """The value that begins at `position`, and its end."""
    try:
        return _raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer of more than 4,300 digits
        raise json.JSONDecodeError(str(error), text, position) from None


class NoObjectError(Exception):
    """The JSON is a `value` other than an object."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Entries:
    """The values of the array that begins at `start` in `text`, parsed lazily.

    Iterating raises json.JSONDecodeError if the text is not JSON.
    """

    def __init__(self, text: str, start: int) -> None:
        self.text, self.start = text, start
        self.end: int | None = None  # end of the array, known after iteration

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
    """Key and value of each member of the object in `text`; an array under the key `streamed` is
    returned as Entries, which the caller may iterate at once or later.

    Raises:
        json.JSONDecodeError: the text is not JSON.
        NoObjectError: the JSON is not an object.
    """
    position = _after(text, 0)
    if not text.startswith("{", position):
        value, position = _decode(text, position)
        if _after(text, position) != len(text):
            raise json.JSONDecodeError("Extra data", text, position)
        raise NoObjectError(value)
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
    """The position after white space."""
    space = _space(text, position)
    return space.end() if space else position


def _expect(sign: str, text: str, position: int) -> int:
    """The position after `sign` and the white space that follows."""
    if not text.startswith(sign, position):
        raise json.JSONDecodeError(f"Expecting '{sign}' delimiter", text, position)
    return _after(text, position + 1)
