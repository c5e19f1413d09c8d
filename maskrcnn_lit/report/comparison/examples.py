"""Draws the detections of several runs on the same validation images, beside the ground truth."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_lit.evaluation.coco.results import mask_rle
from maskrcnn_lit.report.draw import draw_instances
from maskrcnn_lit.report.pictures import ReadImage, box_of, shrunk, to_jpeg

SCORE = 0.5  # minimum score of a drawn detection


class Example(NamedTuple):
    """One validation image: the ground truth first, then each of the runs. pictures: title, JPEG,
    width, height.
    """

    name: str
    image_id: int
    pictures: list[tuple[str, bytes, int, int]]


def draw_examples(
    image_ids: Collection[int],
    ground_truth: Mapping[str, Any],
    runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    read_image: ReadImage,
) -> list[Example]:
    """Draw examples from a COCO ground truth and the (name, COCO results) of each run; unreadable
    images are left out.
    """
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    objects = _by_image(ground_truth["annotations"], image_ids)
    predictions = [
        (title, _by_image((r for r in results if r["score"] >= SCORE), image_ids))
        for title, results in runs
    ]
    examples = []
    for image in ground_truth["images"]:
        number = image["id"]
        pixels = read_image(number) if number in image_ids else None
        if pixels is None:
            continue
        columns = [
            ("ground truth", objects[number]),
            *((title, results[number]) for title, results in predictions),
        ]
        pictures = []
        for title, shown in columns:
            drawn = shrunk(_draw(pixels, image, shown, names))
            pictures.append(
                (f"{title}: {len(shown)}", to_jpeg(drawn), drawn.shape[1], drawn.shape[0])
            )
        examples.append(Example(image.get("file_name", str(number)), number, pictures))
    return examples


def _by_image(entries: Any, image_ids: Collection[int]) -> dict[int, list[Mapping[str, Any]]]:
    grouped: dict[int, list[Mapping[str, Any]]] = {number: [] for number in image_ids}
    for entry in entries:
        if entry["image_id"] in grouped:
            grouped[entry["image_id"]].append(entry)
    return grouped


def _draw(
    pixels: np.ndarray,
    image: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
) -> np.ndarray:
    boxes = np.array([box_of(entry, image) for entry in shown], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [
        names[entry["category_id"]] + " (crowd)" * bool(entry.get("iscrowd")) for entry in shown
    ]
    return draw_instances(
        pixels,
        boxes=boxes,
        masks=[mask_rle(entry, image) for entry in shown if "segmentation" in entry],
        names=labels,
        scores=[entry["score"] for entry in shown]
        if all("score" in entry for entry in shown)
        else None,
    )
