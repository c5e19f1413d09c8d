"""The page of the suspicious labels: a picture of each, ground truth beside prediction."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle_tools

from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.analysis.suspicious_labels import CONFIDENT, KINDS
from maskrcnn_lit.evaluation.coco.results import mask_rle
from maskrcnn_lit.report.draw import Color, draw_instances, side_by_side
from maskrcnn_lit.report.elements import render_page
from maskrcnn_lit.report.format import number
from maskrcnn_lit.report.pictures import ReadImage, box_of, shrunk, to_jpeg

SECTIONS = {"summary": "Summary", "labels": "The labels", "about": "About this page"}

SUSPECT, SUGGESTED, OTHER = (255, 176, 0), (86, 190, 255), (225, 225, 225)

TITLES = {
    "missing": "no label on an object",
    "class": "wrong class",
    "outline": "sloppy outline",
    "several": "one label on several objects",
    "unseen": "a label that nothing predicts",
}

AROUND, LEAST_SIDE = 1.5, 48  # of the shown part: sides of the object around it, pixels

_GRAY = 128

Json = Mapping[str, Any]


class Shown(NamedTuple):
    """A suspicion with its picture. jpeg: the file; readable: whether the image could be read."""

    suspicion: Json
    title: str
    caption: str
    width: int
    height: int
    jpeg: bytes


def labels_page(
    suspicious: Json,
    ground_truth: Json,
    results: Sequence[Json],
    read_image: ReadImage,
    *,
    first: int,
    facts: Sequence[tuple[str, str]],
    trained_on_them: bool,
) -> str:
    """The page as HTML.

    Args:
        suspicious: the result of `evaluation.analysis.suspicious_labels` for the COCO ground truth
            and the results.
        read_image: image id -> H W 3 uint8 or None.
        first: the number of suspicions with a picture.
        facts: names and values of "About this page".
        trained_on_them: whether the model was trained on these labels.
    """
    every = suspicious["suspicions"]
    shown = draw_suspicions(every[:first], ground_truth, results, read_image)
    rows = [
        [
            TITLES[kind],
            f"{sum(one['kind'] == kind for one in every):,}",
            number(sum(one["gain"] for one in every if one["kind"] == kind), 4),
        ]
        for kind in KINDS
    ]
    return render_page(
        "suspicious_labels.html",
        title="Suspicious labels",
        lead=f"{plural(suspicious['labels'], 'label')} of {plural(suspicious['images'], 'image')}",
        sections=SECTIONS,
        kind=suspicious["kind"],
        ap=suspicious["ap"],
        count=len(every),
        rows=rows,
        shown=shown,
        colors={
            name: "#{:02x}{:02x}{:02x}".format(*color)
            for name, color in (("suspect", SUSPECT), ("suggested", SUGGESTED), ("other", OTHER))
        },
        confident=CONFIDENT,
        trained_on_them=trained_on_them,
        facts=facts,
    )


def draw_suspicions(
    suspicions: Sequence[Json], ground_truth: Json, results: Sequence[Json], read_image: ReadImage
) -> list[Shown]:
    """The part of the image around each suspicion, labels beside predictions. An unreadable image
    is gray.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    wanted = {one["image_id"] for one in suspicions}
    labels, detections = (
        {i: [entry for entry in entries if entry["image_id"] == i] for i in wanted}
        for entries in (
            [entry for entry in ground_truth["annotations"] if entry["image_id"] in wanted],
            [r for r in results if r["image_id"] in wanted and r["score"] >= CONFIDENT],
        )
    )
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    shown = []
    for one in suspicions:
        image, i = images[one["image_id"]], one["image_id"]
        read = read_image(i)
        blank = np.full((image["height"], image["width"], 3), _GRAY, np.uint8)
        chosen = [results[n] for n in one["detections"]]
        own = [entry for entry in labels[i] if entry["id"] == one["annotation"]]
        part = _part(own + chosen, image)
        pixels = (blank if read is None else read)[part]
        left = _draw(pixels, part, image, labels[i], own, SUSPECT, names)
        right = _draw(pixels, part, image, detections[i], chosen, SUGGESTED, names)
        picture = shrunk(side_by_side(left, right, ("labels", "predictions")))
        height, width, _ = picture.shape
        label = "new label" if one["annotation"] is None else f"annotation {one['annotation']}"
        caption = (
            f"{one['rank']}. {one['what']}. {label}, image {i}, {one['file_name']}"
            + ("" if read is not None else "; the file cannot be read")
            + f". Costs {one['cost']:.6f} AP"
        )
        shown.append(Shown(one, TITLES[one["kind"]], caption, width, height, to_jpeg(picture)))
    return shown


def _part(entries: Sequence[Json], image: Json) -> tuple[slice, slice]:
    """Rows and columns around the entries."""
    boxes = np.array([box_of(entry, image) for entry in entries], np.float64).reshape(-1, 4)
    low, high = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
    half = max(float((high - low).max()) * (0.5 + AROUND / 2), LEAST_SIDE / 2)
    size = np.array([image["width"], image["height"]])
    middle = (low + high) / 2
    start = np.floor(middle - half).clip(0, np.maximum(size - 1, 0)).astype(int)
    stop = np.maximum(np.ceil(middle + half).clip(0, size).astype(int), start + 1)
    return slice(int(start[1]), int(stop[1])), slice(int(start[0]), int(stop[0]))


def _draw(
    pixels: np.ndarray,
    part: tuple[slice, slice],
    image: Json,
    entries: Sequence[Json],
    marked: Sequence[Json],
    color: Color,
    names: Mapping[Any, str],
) -> np.ndarray:
    """The entries in this part of the image, in pale lines; those of `marked` in `color`."""
    boxes = np.array([box_of(entry, image) for entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes -= [part[1].start, part[0].start] * 2
    inside = (boxes[:, 2:] > 0).all(1) & (boxes[:, :2] < pixels.shape[1::-1]).all(1)
    selected = np.flatnonzero(inside).tolist()
    is_marked = [any(entries[n] is one for one in marked) for n in selected]
    masks = [
        rle_tools.decode(mask_rle(entries[n], image))[part].astype(bool)
        for n in selected
        if "segmentation" in entries[n]
    ]
    texts = [
        names[entries[n]["category_id"]]
        + (f" {entries[n]['score']:.2f}" if "score" in entries[n] else "")
        for n in selected
    ]
    return draw_instances(
        np.ascontiguousarray(pixels),
        boxes=boxes[selected],
        masks=masks if len(masks) == len(selected) else [],
        names=[text if mark else "" for text, mark in zip(texts, is_marked, strict=True)],
        colors=[color if mark else OTHER for mark in is_marked],
    )
