"""Finds faults of a data set beyond those in its json and file headers, and writes a json without
them.

`read_index(on_bad="skip")` finds the others first: they are in its `faults`, not in its images and
annotations.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.annotations import REMARKS
from maskrcnn_lit.data.coco.faults import FINDINGS, Fault, describe, flag, integer_or_none
from maskrcnn_lit.data.coco.image_files import RenamedFiles
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.coco.learnable import count_objects, describe_partial, describe_unlearnable
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.images import (
    SUFFIXES,
    Decoded,
    UnreadableImageError,
    decode_deep,
    page_count,
)
from maskrcnn_lit.storage.sources import Remote

LEAST_IOU = 0.5  # minimum IoU of an annotation's box and the extent of its mask

SAME_MASKS = 0.9  # IoU of two masks of equal class and box that makes them duplicates

# Doubts are listed, but never removed: a person has to look.
GOOD_IOU = (
    0.8  # of an annotation's box and the extent of its mask; less, from LEAST_IOU, is a doubt
)

ONE_OBJECT = 0.8  # IoU of two masks of a class that makes them two labels of one object

INSIDE = 0.9  # share of a mask within a larger one of its class: an object inside of another

AREA_FACTOR, AREA_SLACK = (
    2.0,
    16.0,
)  # an area contradicts its mask if it differs by more than both, px

SLACK = 2.0  # pixels by which they may always differ, because of tiny objects


@dataclass(frozen=True)
class Findings:
    """Faults of the entries in `index`: of images by position, of annotations by id."""

    index: AnnotationIndex
    images: dict[int, Fault] = field(default_factory=dict)
    annotations: dict[int, Fault] = field(default_factory=dict)
    doubts: dict[int, Fault] = field(
        default_factory=dict
    )  # masks that may be wrong; `cleaned` leaves them
    areas: dict[int, tuple[Fault, float]] = field(
        default_factory=dict
    )  # area that contradicts the mask, and the mask's area
    digests: dict[int, bytes] = field(
        default_factory=dict
    )  # hashes of the readable files, by position
    pixels: dict[str, list[int]] = field(default_factory=dict)  # remark -> positions

    def faults(self) -> list[Fault]:
        """All faults, including those of reading the json, and its corrections. Annotations of a
        faulty image are not listed.
        """
        gone = {n for i in self.images for n in self.index.annotations(i)["ids"].tolist()}
        of_areas = {number: fault for number, (fault, _) in self.areas.items()}
        listed = [*of_areas.items(), *self.annotations.items(), *self.doubts.items()]
        of_annotations = [fault for number, fault in listed if number not in gone]
        changes = [change for change in self.index.changes if change.kind not in REMARKS]
        return [*self.index.faults, *changes, *self.images.values(), *of_annotations]


def find_faults(
    index: AnnotationIndex, progress: Callable[[int, int], None] = lambda done, total: None
) -> Findings:
    """Decode every image file in full, in parallel, and compare every mask with its box.

    `progress` is called with the number of finished images, and of all.
    """
    findings = Findings(index)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # decoding and hashing release the GIL
        for i, (digest, fault, remarks) in enumerate(
            pool.map(lambda i: _look_at(index, i), range(len(index)))
        ):
            for remark in remarks:
                findings.pixels.setdefault(remark, []).append(i)
            if digest is not None:
                findings.digests[i] = digest
            if fault is not None:
                findings.images[i] = fault
            findings.annotations.update(_of_annotations(index, i))
            doubts = _doubts(index, i, findings.annotations.keys())
            findings.doubts.update(doubts)
            areas = _of_areas(index, i)
            findings.areas.update((n, area) for n, area in areas if n not in findings.annotations)
            progress(i + 1, len(index))
    _mark_repeated_images(findings)
    return findings


def _look_at(index: AnnotationIndex, i: int) -> tuple[bytes | None, Fault | None, list[str]]:
    """The hash of the file of image i, its fault, and remarks on its pixels."""
    try:
        data = index.read(i)
        decoded = decode_deep(data, index.size(i), max_pixels=index.max_pixels, bits=index.bits)
    except (OSError, UnreadableImageError) as error:
        if isinstance(index.source, Remote):  # it may be a proxy's error page
            index.source.forget(index.file_name(i))
        return None, Fault("pixels cannot be decoded", index.file_names[i], None, str(error)), []
    return hashlib.sha256(data).digest(), None, list(pixel_remarks(data, decoded, index.bits))


def pixel_remarks(data: bytes, decoded: Decoded, bits: int = 0) -> Iterator[str]:
    """Remarks on the pixels of an image file; each continues "images that". bits: data.bits."""
    pixels = decoded.pixels
    if not pixels.any():
        yield "come out black"
    elif (pixels == pixels[:1, :1]).all():
        yield "have a single color"
    if decoded.bits > 8:
        each = "" if bits else " (by the largest value of each file; data.bits=16 fixes it for all)"
        yield f"have more than 8 bits, read as {decoded.bits}{each}"
    if page_count(data) > 1:
        yield "have several pages; only the first is used"


def _of_annotations(index: AnnotationIndex, i: int) -> Iterator[tuple[int, Fault]]:
    """Faults of image i by annotation id: boxes far from their masks, and duplicates in class, box
    and mask.
    """
    annotations, name = index.annotations(i), index.file_names[i]
    masked = index.masked(i)
    seen: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for j, (number, label, box) in enumerate(
        zip(
            annotations["ids"].tolist(),
            annotations["labels"].tolist(),
            annotations["boxes"],
            strict=True,
        )
    ):
        extent = mask_extent(index, i, j) if masked[j] else box
        if _disagree(box, extent):
            detail = f"box {_sides(box)}, but the mask spans {_sides(extent)}"
            yield number, Fault("box and mask disagree", name, number, detail)
            continue
        alike = seen[(label, *box.tolist())]
        first = _of_same_mask(index, i, alike, j) if alike else None
        if first is None:
            alike.append(j)
        else:
            detail = f"same class, box and mask as annotation {annotations['ids'][first]}"
            yield number, Fault("same annotation twice", name, number, detail)


def _doubts(index: AnnotationIndex, i: int, faulty: Collection[int]) -> Iterator[tuple[int, Fault]]:
    """Doubts about masks of image i by annotation id, without annotations that are faulty: outlines
    that differ from their box, two masks of one object, an object inside of another of its class.
    """
    annotations, name = index.annotations(i), index.file_names[i]
    numbers = annotations["ids"].tolist()
    sound = np.array([n not in faulty for n in numbers], dtype=bool) & ~annotations["crowd"]
    sound &= index.masked(i)
    for j in np.flatnonzero(sound).tolist():
        box, extent = annotations["boxes"][j], mask_extent(index, i, j)
        if _disagree(box, extent, GOOD_IOU):
            detail = f"box {_sides(box)}, but the outline spans {_sides(extent)}"
            yield numbers[j], Fault("outline differs from box", name, numbers[j], detail)
    for label in np.unique(annotations["labels"][sound]).tolist():
        group = np.flatnonzero(sound & (annotations["labels"] == label))
        for a, b in _touching(annotations["boxes"], group):
            masks = [index.rle(i, a), index.rle(i, b)]
            first, second = (float(area) for area in coco_mask.area(masks))
            iou = float(coco_mask.iou(masks[:1], masks[1:], [0])[0, 0])
            if iou >= ONE_OBJECT:
                detail = f"its mask and that of annotation {numbers[a]} share IoU {iou:.2f}"
                yield numbers[b], Fault("two masks of one object", name, numbers[b], detail)
                continue
            shared = iou * (first + second) / (1 + iou)
            small, large = (a, b) if first < second else (b, a)
            if shared >= INSIDE * min(first, second) > 0:
                what = index.categories[label - 1].name
                share = shared / min(first, second)
                detail = f"{share:.0%} of it lies in annotation {numbers[large]}, also {what}"
                yield (
                    numbers[small],
                    Fault("object inside of another", name, numbers[small], detail),
                )


def _touching(boxes: NDArray[np.float64], group: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Pairs of a group of which the smaller box lies mostly in the other."""
    own = boxes[group]
    areas = (own[:, 2:] - own[:, :2]).prod(1)
    for first in range(len(group)):
        low = np.maximum(own[first, :2], own[first + 1 :, :2])
        high = np.minimum(own[first, 2:], own[first + 1 :, 2:])
        shared = (high - low).clip(0).prod(1)
        near = shared >= ONE_OBJECT * np.minimum(areas[first], areas[first + 1 :])
        for second in np.flatnonzero(near & (shared > 0)).tolist():
            yield int(group[first]), int(group[first + 1 + second])


def _sides(box: NDArray[np.float64]) -> list[float]:
    return [round(value, 1) for value in box.tolist()]


def _of_same_mask(index: AnnotationIndex, i: int, others: list[int], j: int) -> int | None:
    """The first of the annotations `others` of image i that has the mask of annotation j."""
    masked = index.masked(i)
    others = [other for other in others if masked[other] == masked[j]]
    if not others or not masked[j]:  # boxes alone are equal already
        return others[0] if others else None
    masks = [index.rle(i, other) for other in others]
    same = coco_mask.iou(masks, [index.rle(i, j)], [0])[:, 0] >= SAME_MASKS
    return others[int(same.argmax())] if same.any() else None


def _of_areas(index: AnnotationIndex, i: int) -> Iterator[tuple[int, tuple[Fault, float]]]:
    """Faults of image i by annotation id: areas that contradict the mask, with the mask's area.
    Crowd regions have no size class and are not compared.
    """
    annotations = index.annotations(i)
    for j in np.flatnonzero(~annotations["crowd"] & index.masked(i)).tolist():
        area, own = float(annotations["areas"][j]), float(coco_mask.area(index.rle(i, j)))
        far = max(area, own) > max(AREA_FACTOR * min(area, own), min(area, own) + AREA_SLACK)
        if far or area <= 0 < own:
            number = int(annotations["ids"][j])
            detail = (
                f"area {area:g}, but the mask has {own:g} pixels: COCO's sizes (small, "
                "medium, large) depend on the area"
            )
            yield number, (Fault("area contradicts mask", index.file_names[i], number, detail), own)


def mask_extent(index: AnnotationIndex, i: int, j: int) -> NDArray[np.float64]:
    """x1 y1 x2 y2 of the polygons or the RLE of annotation j of image i, with the void pixels in
    its box, clipped to the image; area 0 if outside.
    """
    shape, (height, width) = index.segmentation(i, j), index.size(i)
    void = index.void_rle(i)
    if void is not None:
        shape = _with_void(index.rle(i, j), void, index.annotations(i)["boxes"][j])
    if isinstance(shape, dict):
        x, y, w, h = coco_mask.toBbox(shape).tolist()
        return np.array([x, y, x + w, y + h])
    points = np.concatenate(shape)
    return np.r_[points.min(0), points.max(0)].clip(0, [width, height, width, height])


def _with_void(
    mask: dict[str, Any], void: dict[str, Any], box: NDArray[np.float64]
) -> dict[str, Any]:
    """A mask and the void pixels in its box x1 y1 x2 y2: they may belong to the object."""
    sides = np.r_[box[:2], box[2:] - box[:2]][None]
    inside = coco_mask.frPyObjects(sides, *mask["size"])[0]
    return coco_mask.merge([mask, coco_mask.merge([void, inside], intersect=True)])


def _disagree(
    box: NDArray[np.float64], extent: NDArray[np.float64], least: float = LEAST_IOU
) -> bool:
    shared = (np.minimum(box[2:], extent[2:]) - np.maximum(box[:2], extent[:2])).clip(0).prod()
    union = (box[2:] - box[:2]).prod() + (extent[2:] - extent[:2]).prod() - shared
    return bool(shared < least * union and np.abs(box - extent).max() > SLACK)


def _mark_repeated_images(findings: Findings) -> None:
    """Mark images with equal content, except the one with the most annotations; for a tie, the
    first by name.
    """
    index = findings.index
    counts = (index.spans[:, 1] - index.spans[:, 0]).tolist()
    selected: dict[bytes, int] = {}
    for i in sorted(findings.digests, key=lambda i: (-counts[i], i)):
        first = selected.setdefault(findings.digests[i], i)
        if first != i:
            detail = (
                f"same content as image id {int(index.image_ids[first])}, {index.file_names[first]}"
            )
            findings.images[i] = Fault("same image twice", index.file_names[i], None, detail)


def mark_leaks(train: Findings, val: Findings) -> None:
    """Mark training images that are also validation images. Training leaves them out, so scores
    stay comparable.
    """
    names = {digest: val.index.file_names[i] for i, digest in val.digests.items()}
    for i, digest in train.digests.items():
        if digest in names and i not in train.images:
            detail = f"same content as val's {names[digest]}: memorized images inflate the score"
            train.images[i] = Fault(
                "training image in val too", train.index.file_names[i], None, detail
            )


def learning_fault(
    index: AnnotationIndex, lost: list[Fault], image_size: ImageSize, annotations: str
) -> tuple[list[str], Fault | None]:
    """Lines on the objects that training ignores (see `unlearnable`), and a fault if no object
    remains.
    """
    lines = list(describe_unlearnable(index, lost, image_size))
    if lines and len(lost) == count_objects(index):
        return lines, Fault("nothing to learn", annotations, None, lines[0].rstrip(":"))
    return lines, None


def notes(findings: Mapping[str, Findings], *, beside: bool = True) -> list[str]:
    """Remarks on each part that are not faults. beside: on image files that are not in the json."""
    message = []
    for part, part_findings in findings.items():
        index = part_findings.index
        ignored = [change for change in index.changes if change.kind in REMARKS]
        message += [f"{part}: {line}" for line in describe(ignored)]
        message += [f"{part}: {line}" for line in describe_partial(index)]
        annotations = int((index.spans[:, 1] - index.spans[:, 0]).sum())
        if (crowds := annotations - count_objects(index)) > 0:
            message.append(
                f"{part}: {crowds} of {annotations} annotations are crowd regions: nothing is "
                "learned from them (set iscrowd to 0 where they are single objects)"
            )
        used = {
            label for i in range(len(index)) for label in index.annotations(i)["labels"].tolist()
        }
        unused = [
            category.name for label, category in enumerate(index.categories, 1) if label not in used
        ]
        if unused:
            some = ", ".join(unused[:12]) + (
                f" and {len(unused) - 12} more" if len(unused) > 12 else ""
            )
            message.append(
                f"{part}: {len(unused)} of {len(index.categories)} categories have no annotation: "
                f"{some}"
            )
        for remark, positions in sorted(part_findings.pixels.items()):
            some = ", ".join(index.file_names[i] for i in positions[:3])
            more = ", ..." if len(positions) > 3 else ""
            message.append(f"{part}: images that {remark}: {len(positions)} ({some}{more})")
        if beside and (others := _files_beside(part_findings)) > 0:
            message.append(
                f"{part}: {others} images in {index.source.where} are not in the json or were not "
                "checked"
            )
    if {"train", "val"} <= findings.keys():
        train, val = findings["train"].index, findings["val"].index
        both = set(train.file_names) & set(val.file_names)
        if both:
            message.append(
                f"{len(both)} file names are in both train and val, for example {min(both)}; only "
                "equal content is a fault"
            )
        if {c.name for c in train.categories} != {c.name for c in val.categories}:
            message.append("train and val have different categories; training requires the same")
    return message


def _files_beside(findings: Findings) -> int:
    """The number of images in the folder and its subfolders that are neither in the index nor
    faults.
    """
    known = {os.path.normpath(name) for name in findings.index.file_names}
    known |= {os.path.normpath(fault.image) for fault in findings.index.faults}
    source = findings.index.source
    if isinstance(source, RenamedFiles):
        known |= {os.path.normpath(source.name_on_disk(n)) for n in findings.index.file_names}
    folder = str(source.where)
    files = (
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    return sum(name not in known for name in files)


def cleaned(content: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """`content`, the parsed json of `findings.index`, without faulty entries and with corrections
    applied. All other entries keep their order, ids and keys.
    """
    index, names = findings.index, _Names(findings.index)
    images: dict[int, Any] = {}  # by position in the json's list
    annotations: dict[int, Any] = {}
    for i in range(len(index)):
        if i in findings.images:
            continue
        entry_index = int(index.packed.arrays.image_order[index.rows[i]])
        images[entry_index] = _image(content["images"][entry_index], index, i, names)
        for j, number in enumerate(index.annotations(i)["ids"].tolist()):
            if number not in findings.annotations:
                truth, entry_index = index.coco_annotation(i, j)
                if number in findings.areas:
                    truth["area"] = findings.areas[number][1]
                changed = number in names.changed or number in findings.areas
                annotations[entry_index] = _annotation(
                    content["annotations"][entry_index], truth, changed
                )
    return {
        **{key: value for key, value in content.items() if key != FINDINGS},
        "categories": _categories(content["categories"], index),
        "images": [images[entry_index] for entry_index in sorted(images)],
        "annotations": [annotations[entry_index] for entry_index in sorted(annotations)],
    }


class _Names:
    """The names of images and annotations with corrected entries."""

    def __init__(self, index: AnnotationIndex) -> None:
        changes = [change for change in index.changes if change.kind not in REMARKS]
        self.changed = {change.annotation for change in changes if change.annotation is not None}
        self.images = {change.image for change in changes if change.annotation is None}


def _image(entry: dict[str, Any], index: AnnotationIndex, i: int, names: _Names) -> dict[str, Any]:
    name = index.file_name(i)
    if name not in names.images:
        return entry
    if isinstance(index.source, RenamedFiles):
        name = index.source.name_on_disk(name)
    height, width = index.size(i)
    truth = {"id": int(index.image_ids[i]), "file_name": name, "height": height, "width": width}
    return entry | _differing(entry, truth)


def _annotation(entry: dict[str, Any], truth: dict[str, Any], changed: bool) -> dict[str, Any]:
    """The entry with its corrections applied; a valid RLE is unchanged."""
    if isinstance(entry.get("segmentation"), dict) or not truth["segmentation"]:
        del truth["segmentation"]
    if not changed:  # but its image or class may have text ids
        truth = {key: truth[key] for key in ("image_id", "category_id")}
    if isinstance(entry.get("ignore"), str):
        truth["ignore"] = int(flag(entry, "ignore"))
    return entry | _differing(entry, truth)


def _differing(entry: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in truth.items() if key not in entry or entry[key] != value}


def _categories(entries: list[Any], index: AnnotationIndex) -> list[Any]:
    """Each class once, with its id and name in `index`."""
    left = {category.name: category.id for category in index.packed.categories}
    chosen = {category.name: category.chosen for category in index.packed.originals}
    selected = []
    for entry in entries:
        written, number = str(entry["name"]), integer_or_none(entry["id"])
        name = chosen.get(written, written)
        if name in left and number in (None, left[name]):
            truth = {"id": left.pop(name)} | ({"name": name} if name != written else {})
            selected.append(entry | _differing(entry, truth))
    return selected


def cleaned_paths(folder: Path, originals: Mapping[str, Path]) -> dict[str, Path]:
    """The paths of the cleaned jsons by part: the original names, prefixed with the part if they
    are equal.

    Raises:
        UserError: a path is that of an original.
    """
    alike = len({path.name for path in originals.values()}) < len(originals)
    targets = {
        part: folder / (f"{part}_{path.name}" if alike else path.name)
        for part, path in originals.items()
    }
    for target in targets.values():
        if target.resolve() in {path.resolve() for path in originals.values()}:
            raise UserError(
                f"cleaned={folder} would overwrite the original {target}: give another folder"
            )
    return targets
