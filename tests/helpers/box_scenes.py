"""Ground truth and results made of rectangles, whose masks fill their boxes: cases that a reader
can check by hand.
"""

from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

SIZE = (120, 130)  # height, width of each image
CLASSES = ("ant", "bee", "cat")  # with the ids 10, 20, 30


def rle(mask: np.ndarray) -> dict[str, Any]:
    """H W -> a COCO RLE as json holds it."""
    made = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in made["size"]], "counts": made["counts"].decode()}


def slow_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """H W: 3 x 3 erosions with a ring of zeros around the image, one after another."""
    eroded = np.pad(mask.astype(bool), 1)
    for _ in range(distance):
        shifted = np.pad(eroded, 1)
        height, width = eroded.shape
        eroded = np.logical_and.reduce(
            [shifted[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        )
    return mask.astype(bool) & ~eroded[1:-1, 1:-1]


def rectangle(box: tuple[int, ...]) -> dict[str, Any]:
    x, y, w, h = box
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + h, x : x + w] = 1
    return rle(mask)


def scene(
    objects: list[tuple],
    detections: list[tuple],
    images: int = 1,
    classes: tuple[str, ...] = CLASSES,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth and results.

    objects: (image, class, (x, y, w, h)), with "crowd" after them for a crowd region; detections:
    (image, class, (x, y, w, h), score). Images are 1..`images`; annotations have the ids 100, 101,
    ...
    """
    ids = {name: 10 * number for number, name in enumerate(classes, start=1)}
    annotations = []
    for number, (image, name, box, *crowd) in enumerate(objects):
        shape = rectangle(box)
        entry = {"id": 100 + number, "image_id": image, "category_id": ids[name], "bbox": list(box)}
        annotations.append(
            entry
            | {
                "segmentation": shape,
                "area": int(rle_tools.area(shape)),
                "iscrowd": int(bool(crowd)),
            }
        )
    results = [
        {
            "image_id": image,
            "category_id": ids[name],
            "bbox": list(box),
            "score": score,
            "segmentation": rectangle(box),
        }
        for image, name, box, score in detections
    ]
    height, width = SIZE
    truth = {
        "images": [
            {"id": n, "height": height, "width": width, "file_name": f"{n}.png"}
            for n in range(images, 0, -1)
        ],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": annotations,
    }
    return truth, results


def random_scene(seed: int, crowds: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Four images with objects of all classes and sizes, and all kinds of errors; many equal
    scores.
    """
    rng = np.random.default_rng(seed)

    def box(near: np.ndarray | None = None, spread: float = 0.2) -> tuple[int, ...]:
        if near is None:
            w, h = rng.integers(4, 110, 2)
            x, y = rng.integers(0, 130 - w), rng.integers(0, max(121 - h, 1))
        else:
            x, y, w, h = (near + rng.normal(0, spread, 4) * near[[2, 3, 2, 3]]).round().astype(int)
        w, h = max(w, 2), max(h, 2)
        x, y = min(max(x, 0), 128), min(max(y, 0), 118)
        return int(x), int(y), int(min(w, 130 - x)), int(min(h, 120 - y))

    objects: list[tuple] = [(1, name, box()) for name in CLASSES]
    objects += [(int(rng.integers(1, 4)), str(rng.choice(CLASSES)), box()) for _ in range(12)]
    detections = []
    for image, name, place in objects:
        for _ in range(rng.integers(0, 4)):
            found = name if rng.random() < 0.7 else str(rng.choice(CLASSES))
            spread = float(rng.choice([0.0, 0.05, 0.2, 0.4]))
            detections.append(
                (image, found, box(np.array(place), spread), round(float(rng.random()), 1))
            )
    detections += [
        (int(rng.integers(1, 5)), str(rng.choice(CLASSES)), box(), 0.5) for _ in range(6)
    ]
    if crowds:
        regions = [(int(rng.integers(1, 5)), str(rng.choice(CLASSES)), box()) for _ in range(3)]
        objects += [(*region, "crowd") for region in regions]
        for image, name, (x, y, w, h) in regions:  # and what lies in them
            detections.append((image, name, (x, y, max(w // 2, 1), max(h // 2, 1)), 0.6))
    order = rng.permutation(len(detections))
    return scene(objects, [detections[n] for n in order], images=4)
