"""Draws the worst images: missed objects, false detections, and detections that merge several
objects.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_lit.evaluation.coco.results import mask_rle
from maskrcnn_lit.report.draw import MANY, Color, draw_instances
from maskrcnn_lit.report.pictures import ReadImage, box_of, shrunk, to_jpeg

# Light, for labels in ink, and distinguishable for the color-blind (Okabe and Ito, lightened)
COLORS: dict[str, Color] = {
    "missed": (255, 176, 0),
    "false": (86, 190, 255),
    "merged": (255, 130, 200),
}

_GRAY = 128


class Picture(NamedTuple):
    """jpeg: the file. counts: numbers of missed, false, merged."""

    image_id: int
    name: str
    width: int
    height: int
    jpeg: bytes
    counts: dict[str, int]
    readable: bool


def draw_worst(
    worst: Sequence[Mapping[str, Any]],
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    read_image: ReadImage,
) -> Iterator[Picture]:
    """A picture for each entry of an analysis' "worst", from its COCO ground truth and results. An
    unreadable image is drawn gray.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    objects = {annotation["id"]: annotation for annotation in ground_truth["annotations"]}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    for entry in worst:
        image = images[entry["image_id"]]
        # merged detections are often false, too: draw them as merged only
        shown = {
            "missed": [objects[i] for i in entry["missed"]],
            "merged": [results[i] for i in entry["merged"]],
        }
        shown["false"] = [results[i] for i in entry["false"] if i not in set(entry["merged"])]
        read = read_image(image["id"])
        blank = np.full((image["height"], image["width"], 3), _GRAY, np.uint8)
        pixels = _draw(blank if read is None else read, image, shown, names)
        name = image.get("file_name", str(image["id"]))
        counts = {kind: len(shown[kind]) for kind in COLORS}
        height, width, _ = pixels.shape
        yield Picture(image["id"], name, width, height, to_jpeg(pixels), counts, read is not None)


def _draw(
    pixels: np.ndarray,
    image: Mapping[str, Any],
    shown: Mapping[str, list[Any]],
    names: Mapping[int, str],
) -> np.ndarray:
    drawn = [(kind, entry) for kind, several in shown.items() for entry in several]
    masks = [mask_rle(entry, image) for _, entry in drawn if "segmentation" in entry]
    boxes = np.array([box_of(entry, image) for _, entry in drawn], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [
        f"{kind} {names[entry['category_id']]}"
        + (f" {entry['score']:.2f}" if "score" in entry else "")
        for kind, entry in drawn
    ]
    picture = draw_instances(
        pixels,
        boxes=boxes,
        masks=masks if len(masks) == len(drawn) else [],  # only boxes if the results have no masks
        names=labels
        if len(drawn) < MANY
        else [""] * len(drawn),  # with many objects, labels would hide them
        colors=[COLORS[kind] for kind, _ in drawn],
    )
    return shrunk(picture)
