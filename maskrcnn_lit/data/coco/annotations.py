"""The annotations of a COCO json, checked one by one, as flat columns.

All geometry is checked and bounded here, once: coordinates are finite, boxes overlap their image
and extend at most 1e7 px beyond it, and polygons are no farther from the image than its longer
side.
"""

import json
from array import array
from collections.abc import Iterable
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.faults import (
    BadEntryError,
    Fault,
    finite,
    flag,
    identifier,
    integer_or_none,
    shown,
)
from maskrcnn_lit.data.coco.rasterize import (
    LEAST_SIDE,
    expand_counts,
    near_window,
    polygons_rle,
)

# Changes that are not mistakes in the data.
IGNORED = "ignored region"
NO_OBJECTS, NO_JSON = "image without objects", "image without annotations"
SUPER = "super-category without annotations"

REMARKS = (IGNORED, NO_OBJECTS, NO_JSON, SUPER)

BROKEN_VOID = "broken void region"  # a fault of an image

# The mask of an object with its hidden pixels, and the number of its pixels. (KINS calls the mask
# a_segm; COCOA and D2SA have it in "segmentation".)
AMODAL, AMODAL_AREA = "amodal_segmentation", "amodal_area"

BROKEN_AMODAL = "broken amodal mask"  # a change

_LAST = -(2**62)  # text category ids get numbers from here until labels are assigned

_FARTHEST = 1e7  # px: limit for the sides of a box

_NORMALIZED = 1.01  # coordinates up to this are assumed to be normalized to 0..1

_FLAGS = ("iscrowd", "ignore")

_NUMBERS = ("image_id", "category_id", *_FLAGS, "area")


class ImageEntry(NamedTuple):
    id: int
    height: int
    width: int
    name: str
    url: str = ""  # its coco_url
    entry: int = 0  # position in the json's list
    key: int | str | None = None  # the id in the annotations, if it differs from `id`
    void: NDArray[np.uint32] | None = None  # run lengths of its void region
    # LVIS: ids of the classes that are surely absent (None in other jsons), and of those of which
    # not all objects are labeled. In `Instances`, labels
    negatives: tuple[Any, ...] | None = None
    incompletes: tuple[Any, ...] = ()


class Columns:
    """The valid annotations in the order of the file, one growing C array per column (no Python
    object per value).
    """

    def __init__(self) -> None:
        self.images, self.ids, self.labels, self.crowd = (
            array("q"),
            array("q"),
            array("q"),
            array("b"),
        )
        self.entries = array("q")  # positions in the json's list
        self.doubtful = array("b")  # whether the mask may have no pixel in the box
        self.areas, self.boxes = array("d"), array("d")  # boxes: x y w h
        self.amodal_areas = array("d")  # pixels with the hidden ones; 0: not known
        self.part_ends, self.coordinate_ends, self.coordinates = array("q"), array("q"), array("d")
        self.run_ends, self.runs = array("q"), array("I")
        self.category_texts: dict[int, str] = {}  # text ids of `labels`, until `label_annotations`


class _Outline(NamedTuple):
    """Neither parts nor runs: a box without a mask."""

    parts: list[array]  # x0 y0 x1 y1 ... each; empty for an RLE
    runs: NDArray[np.uint32] | None  # run lengths of an RLE

    @property
    def missing(self) -> bool:
        return not self.parts and self.runs is None


class _Reader:
    """Reads entry by entry into columns; invalid entries are added to `faults`, corrected ones to
    `changes`.
    """

    def __init__(self, images: list[ImageEntry], faults: list[Fault], changes: list[Fault]) -> None:
        self.columns = Columns()
        self.faults, self.changes = faults, changes
        self._images = images
        self._positions = {
            image.id if image.key is None else image.key: position
            for position, image in enumerate(images)
        }
        self._seen: set[int] = set()
        self._codes: dict[str, int] = {}  # category ids that are text -> numbers
        self._unnumbered: list[tuple[int, str, str]] = []  # row in the columns, kind, reason
        self._notes: list[tuple[int, str, str]] = []  # row in the columns, kind, detail

    def read(self, entry_index: int, entry: Any) -> None:
        """Read entry number `entry_index` of the json's list."""
        number, name, category = None, "?", None
        first_note = len(self._notes)
        try:
            if not isinstance(entry, dict):
                raise BadEntryError("incomplete annotation", shown(entry))
            number, category = integer_or_none(entry.get("id")), self._category_of(entry)
            key = identifier(entry, "image_id")
            name = f"image id {shown(key)}"
            if key not in self._positions:
                raise BadEntryError("unknown image", "no such id in images")
            position = self._positions[key]
            image = self._images[position]
            name = image.name
            label = self._category(identifier(entry, "category_id"))
            outline = self._outline(entry.get("segmentation"), image)
            box = self._box(entry, outline, image)
            _check_scale(box, outline, image)
            crowd, area = self._crowd(entry), self._area(entry, outline, box, image)
            amodal_area = self._amodal_area(entry, image)
        except BadEntryError as bad:
            del self._notes[first_note:]
            self.faults.append(Fault(bad.args[0], name, number, bad.args[1], category))
            return
        self._note_quotes(entry)
        self._number(entry, number)
        columns = self.columns
        columns.entries.append(entry_index)
        columns.images.append(position)
        columns.labels.append(label)
        columns.crowd.append(crowd)
        columns.doubtful.append(not outline.missing and not _surely_inside(outline, box, image))
        columns.areas.append(area)
        columns.amodal_areas.append(amodal_area)
        columns.boxes.extend(box)
        for part in outline.parts:
            columns.coordinates.extend(part)
            columns.coordinate_ends.append(len(columns.coordinates))
        if outline.runs is not None:
            columns.runs.frombytes(outline.runs.tobytes())
        columns.part_ends.append(len(columns.coordinate_ends))
        columns.run_ends.append(len(columns.runs))

    def finish(self) -> Columns:
        """Assign missing ids and report the changes."""
        columns = self.columns
        free = (number for number in count(1) if number not in self._seen)
        for n, kind, why in self._unnumbered:
            columns.ids[n] = number = next(free)
            self._notes.append((n, kind, f"{why}; it is {number} here"))
        for n, kind, detail in self._notes:
            name = self._images[columns.images[n]].name
            self.changes.append(Fault(kind, name, columns.ids[n], detail, columns.labels[n]))
        columns.category_texts = {code: text for text, code in self._codes.items()}
        return columns

    def _note(self, kind: str, detail: str) -> None:
        """Record a change to the current annotation."""
        self._notes.append((len(self.columns.images), kind, detail))

    def _category_of(self, entry: dict[str, Any]) -> int | None:
        """The class of an annotation, which may be faulty; None: it has none."""
        try:
            return self._category(identifier(entry, "category_id"))
        except BadEntryError:
            return None

    def _category(self, key: int | str) -> int:
        """A category id as a number, see `Columns.category_texts`."""
        if isinstance(key, int):
            return key
        return self._codes.setdefault(key, _LAST - len(self._codes))

    def _number(self, entry: dict[str, Any], number: int | None) -> None:
        if number is None:
            kind, why = "no annotation id", f"its id is {shown(entry.get('id'))}"
        elif number in self._seen:
            kind, why = "duplicate annotation id", f"an earlier annotation has id {number}"
        else:
            self._seen.add(number)
            self.columns.ids.append(number)
            if isinstance(entry["id"], str):
                self._note("number in quotes", "id")
            return
        self._unnumbered.append((len(self.columns.ids), kind, why))
        self.columns.ids.append(0)

    def _note_quotes(self, entry: dict[str, Any]) -> None:
        texts = {key: entry[key] for key in _NUMBERS if isinstance(entry.get(key), str)}
        quoted = [key for key in texts if key in _FLAGS or finite(texts[key]) is not None]
        box = entry.get("bbox")
        if isinstance(box, list) and any(isinstance(value, str) for value in box):
            quoted.append("bbox")
        if quoted:
            self._note("number in quotes", ", ".join(quoted))

    def _crowd(self, entry: dict[str, Any]) -> bool:
        ignored = flag(entry, "ignore")
        if ignored:
            self._note(IGNORED, "ignore is set: it counts as a crowd region")
        return flag(entry, "iscrowd") or ignored

    def _area(
        self, entry: dict[str, Any], outline: _Outline, box: list[float], image: ImageEntry
    ) -> float:
        given, area = entry.get("area"), finite(entry.get("area"))
        if area is not None and 0 < area <= 2 * image.height * image.width:
            return area
        own = _box_area(box, image) if outline.missing else _pixels(outline, image)
        if given is None or area == own:
            return own
        which = "box" if outline.missing else "mask"
        self._note("impossible area", f"area {shown(given)}; the {which}'s area, {own:g}, is used")
        return own

    def _amodal_area(self, entry: dict[str, Any], image: ImageEntry) -> float:
        """The pixels of the whole object, hidden ones included; 0: the json does not have it."""
        if AMODAL not in entry:
            area = finite(entry.get(AMODAL_AREA))
            return area if area is not None and area > 0 else 0.0
        first_note = len(self._notes)
        try:
            outline = self._outline(entry[AMODAL], image)
            return 0.0 if outline.missing else _pixels(outline, image)
        except BadEntryError as bad:
            del self._notes[first_note:]
            self._note(BROKEN_AMODAL, f"{bad.args[0]} ({bad.args[1]}): it is not used")
            return 0.0

    def _box(self, entry: dict[str, Any], outline: _Outline, image: ImageEntry) -> list[float]:
        """x y w h, as in the json unless it reaches far beyond the image."""
        given = entry.get("bbox")
        if given is None or given == []:
            if outline.missing:
                raise BadEntryError("no segmentation", "neither a mask nor a box")
            box = _extent(outline, image)
            self._note("no box", f"the mask gives {[round(value, 2) for value in box]}")
        else:
            box = _numbers(given)
        x, y, width, height = box
        if width < 0 or height < 0:
            raise BadEntryError("negative box", f"bbox {box}")
        if width < LEAST_SIDE or height < LEAST_SIDE:
            raise BadEntryError("box without area", f"bbox {box}")
        sides = (
            min(x + width, image.width) - max(x, 0),
            min(y + height, image.height) - max(y, 0),
        )
        if min(sides) < LEAST_SIDE:
            raise BadEntryError(
                "box outside of the image", f"bbox {box} in {image.width} x {image.height}"
            )
        if max(map(abs, (x, y, x + width, y + height))) <= _FARTHEST:
            return box
        self._note("coordinates far outside of the image", f"bbox {box}, cut off")
        x, right = max(x, -_FARTHEST), min(x + width, _FARTHEST)
        y, bottom = max(y, -_FARTHEST), min(y + height, _FARTHEST)
        return [x, y, right - x, bottom - y]

    def _outline(self, value: Any, image: ImageEntry) -> _Outline:
        value = self._plain_shape(value)
        if value in (None, "", {}) or _is_empty(value):
            return _Outline([], None)
        if isinstance(value, dict):
            return _Outline([], _runs(value, image.height, image.width))
        if not isinstance(value, list):
            raise BadEntryError("broken segmentation", f"{shown(value)} is not polygons or an RLE")
        parts, bad = [], list[BadEntryError]()
        for part in value:
            try:
                parts.append(self._part(part, image))
            except BadEntryError as error:
                bad.append(error)
        if not parts:
            raise bad[0]
        if bad:
            reasons = ", ".join(f"{error.args[0]} ({error.args[1]})" for error in bad[:3])
            self._note(
                "part of an outline left out", f"{len(bad)} of {len(value)} parts: {reasons}"
            )
        return _Outline(parts, None)

    def _plain_shape(self, value: Any) -> Any:
        """A segmentation as COCO writes it: VIA writes one polygon without its list, and a table
        holds JSON as text.
        """
        if isinstance(value, str) and value[:1] in ("[", "{"):
            try:
                value = json.loads(value)
                self._note("segmentation in quotes", "it is JSON in text")
            except (ValueError, RecursionError):
                return value
        if isinstance(value, list) and value and set(map(type, value)) <= {int, float}:
            self._note("polygon without a list", f"{len(value)} numbers are one polygon")
            return [value]
        return value

    def _part(self, part: Any, image: ImageEntry) -> array:
        """One polygon, cut off where it reaches far beyond the image."""
        if not isinstance(part, list) or not set(map(type, part)) <= {int, float}:
            raise BadEntryError("broken segmentation", "a polygon is not a list of numbers")
        if len(part) < 6:
            raise BadEntryError("polygon under 3 points", f"{len(part)} numbers")
        try:
            points = array("d", part)
        except OverflowError:
            points = array("d", [float("inf")])
        values = np.frombuffer(points, np.float64)
        if len(part) % 2 or not np.isfinite(values).all():
            raise BadEntryError(
                "broken segmentation", "a polygon has a coordinate that is missing or not finite"
            )
        near = near_window(values, image.height, image.width)
        if near is values:
            return points
        if len(near) < 6:
            raise BadEntryError("polygon outside of the image", "no point is near the image")
        self._note(
            "coordinates far outside of the image",
            f"a polygon from {values.min():g} to {values.max():g}, cut off",
        )
        return array("d", near.tolist())


def read_annotations(
    entries: Iterable[Any],
    images: list[ImageEntry],
    faults: list[Fault],
    changes: list[Fault] | None = None,
) -> Columns:
    """The valid annotations, with category ids as labels.

    An annotation without an id, or with a duplicate, gets a free number. `faults` and `changes` are
    extended.
    """
    reader = _Reader(images, faults, [] if changes is None else changes)
    for entry_index, entry in enumerate(entries):
        reader.read(entry_index, entry)
    return reader.finish()


def label_annotations(
    columns: Columns,
    categories: tuple[Category, ...],
    images: list[ImageEntry],
    faults: list[Fault],
    keys: dict[int | str, int] | None = None,
) -> None:
    """Replace category ids by labels 1..K, in place; an unknown category is a fault and gets label
    0.

    keys: the category's id in annotations -> its id, where the two differ.
    """
    labels: dict[int | str, int] = {category.id: n for n, category in enumerate(categories, 1)}
    for key, number in (keys or {}).items():
        labels[key] = labels.get(number, 0)
    for n, code in enumerate(columns.labels):
        key = columns.category_texts.get(code, code)
        columns.labels[n] = label = labels.get(key, 0)
        if not label:
            name, detail = (
                images[columns.images[n]].name,
                f"category_id {shown(key)} is not in categories",
            )
            faults.append(Fault("unknown category", name, columns.ids[n], detail))


def give_category_ids(
    columns: Columns,
    categories: tuple[Category, ...],
    keys: dict[int | str, int],
    faults: list[Fault],
) -> None:
    """Replace in `faults` (or changes) what annotations call their category by its id, None for one
    that there is not.

    keys: what annotations call a category -> its id, where the two differ.
    """
    known = {category.id for category in categories}
    for n, fault in enumerate(faults):
        if fault.category is not None:
            key = columns.category_texts.get(fault.category, fault.category)
            number = keys.get(key, fault.category)
            faults[n] = fault._replace(category=number if number in known else None)


def _numbers(value: Any) -> list[float]:
    """A box of four finite numbers."""
    plain = isinstance(value, list) and len(value) == 4
    if not plain or not all(
        isinstance(side, (int, float, str)) and not isinstance(side, bool) for side in value
    ):
        raise BadEntryError("incomplete annotation", f"bbox is {shown(value)}, not [x, y, w, h]")
    box = [finite(side) for side in value]
    sides = [side for side in box if side is not None]
    if len(sides) < 4:
        raise BadEntryError("box not finite", f"bbox {shown(value)}")
    return sides


def _is_empty(value: Any) -> bool:
    """Whether it is a list without a number: [] or [[]]."""
    return isinstance(value, list) and all(part == [] for part in value)


def _extent(outline: _Outline, image: ImageEntry) -> list[float]:
    """x y w h of the outline."""
    if outline.runs is None:
        points = np.concatenate([np.frombuffer(part, np.float64) for part in outline.parts])
        low, high = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
        return [*low.tolist(), *(high - low).tolist()]
    extent = _rle_extent(outline.runs, image.height)
    if extent is None:
        raise BadEntryError("no segmentation", "an RLE without a pixel")
    x1, y1, x2, y2 = map(float, extent)
    return [x1, y1, x2 - x1, y2 - y1]


def _rle_extent(runs: NDArray[np.uint32], height: int) -> tuple[int, int, int, int] | None:
    """x1 y1 x2 y2 of the pixels; None if there are none."""
    ends = np.cumsum(runs, dtype=np.int64)
    begins, ends = ends[:-1:2], ends[1::2]  # of the runs of the object
    begins, ends = begins[begins < ends], ends[begins < ends] - 1
    if not len(ends):
        return None
    columns = begins // height, ends // height
    if (columns[0] != columns[1]).any():  # a run that continues in the next column
        top, bottom = 0, height
    else:
        top, bottom = int((begins % height).min()), int((ends % height).max()) + 1
    return int(columns[0][0]), top, int(columns[1][-1]) + 1, bottom


def _surely_inside(outline: _Outline, box: list[float], image: ImageEntry) -> bool:
    """Whether an RLE has pixels and all of their centers lie in the box."""
    extent = None if outline.runs is None else _rle_extent(outline.runs, image.height)
    if extent is None:
        return False
    x, y, width, height = box
    return (
        extent[0] + 0.5 >= x
        and extent[1] + 0.5 >= y
        and extent[2] - 0.5 <= x + width
        and extent[3] - 0.5 <= y + height
    )


def _check_scale(box: list[float], outline: _Outline, image: ImageEntry) -> None:
    """Raise BadEntryError for coordinates that are normalized to 0..1."""
    if min(image.width, image.height) < 4:
        return
    furthest = [max(box[0] + box[2], box[1] + box[3])]
    if outline.parts:
        furthest.append(max(max(part) for part in outline.parts))
    if min(furthest) <= _NORMALIZED:
        raise BadEntryError(
            "coordinates from 0 to 1",
            "everything lies in the first pixel: multiply x by the image's width and y by its "
            "height",
        )


def read_void(value: Any, height: int, width: int) -> NDArray[np.uint32]:
    """The run lengths of an image's void region, an RLE.

    Raises:
        BadEntryError: `value` is not an RLE of this size.
    """
    if not isinstance(value, dict):
        raise BadEntryError(BROKEN_VOID, f"ignore is {shown(value)}, not an RLE")
    try:
        return _runs(value, height, width)
    except BadEntryError as error:
        raise BadEntryError(BROKEN_VOID, f"ignore: {error.args[0]} ({error.args[1]})") from None


def _runs(rle: dict[str, Any], height: int, width: int) -> NDArray[np.uint32]:
    if rle.get("size") != [height, width]:
        raise BadEntryError(
            "RLE of another size",
            f"size {shown(rle.get('size'))}, the image has {[height, width]}",
        )
    counts = rle.get("counts")
    try:
        runs = expand_counts(counts.encode()) if isinstance(counts, str) else np.asarray(counts)
        if runs.dtype.kind not in "iu":
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadEntryError("broken segmentation", "the RLE's counts are damaged") from None
    pixels = height * width
    # check each: a sum of huge runs would overflow
    if runs.ndim != 1 or ((runs < 0) | (runs > pixels)).any() or runs.sum() != pixels:
        raise BadEntryError(
            "broken segmentation", "the RLE's counts do not add up to the image's pixels"
        )
    return runs.astype(np.uint32)


def _box_area(box: list[float], image: ImageEntry) -> float:
    """The area of the box x y w h inside the image."""
    x, y, width, height = box
    across = min(x + width, image.width) - max(x, 0)
    return across * (min(y + height, image.height) - max(y, 0))


def _pixels(outline: _Outline, image: ImageEntry) -> float:
    """The number of pixels in the mask."""
    if outline.runs is not None:
        return float(outline.runs[1::2].sum(dtype=np.int64))
    parts = [np.frombuffer(part, np.float64) for part in outline.parts]
    return float(
        expand_counts(polygons_rle(parts, image.height, image.width)["counts"])[1::2].sum()
    )
