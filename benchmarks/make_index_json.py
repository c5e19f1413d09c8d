"""Write a COCO json of train2017's size: 118,287 images, 860,001 annotations, about 440 MB.

    python benchmarks/make_index_json.py FILE [--images 118287] [--annotations 860001] [--seed 0]

No image belongs to it. What takes the time and memory of a reader is as in train2017: 80 categories
with gaps in their ids, polygons of 22 points on average in hundredths of a pixel, a tenth with a
second part, 1 % crowd regions as uncompressed RLE, all in random order.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

CATEGORY_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
CHUNK = 10_000
SIDES = (640, 427)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.file, arguments.images, arguments.annotations, arguments.seed)


def write(file: Path, images: int, annotations: int, seed: int = 0) -> None:
    """The json, written in parts: the whole would need gigabytes as Python objects."""
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(5 * images)[:images] + 1
    annotation_ids = rng.permutation(3 * annotations)[:annotations] + 1
    with open(file, "w", encoding="ascii") as out:
        out.write(
            '{"info": {"description": "of train2017\'s size, drawn at random"}, "licenses": [], '
            '"images": ['
        )
        for begin in range(0, images, CHUNK):
            out.write(
                ", " * (begin > 0) + _joined(map(image, image_ids[begin : begin + CHUNK].tolist()))
            )
        out.write('], "annotations": [')
        for begin in range(0, annotations, CHUNK):
            part = annotation_ids[begin : begin + CHUNK].tolist()
            owners = rng.choice(image_ids, len(part)).tolist()
            entries = (annotation(i, owner, rng) for i, owner in zip(part, owners, strict=True))
            out.write(", " * (begin > 0) + _joined(entries))
        categories = [
            {"supercategory": "thing", "id": i, "name": f"thing {i}"} for i in CATEGORY_IDS
        ]
        out.write(f'], "categories": {json.dumps(categories)}}}')


def _joined(entries: Any) -> str:
    return ", ".join(map(json.dumps, entries))


def image(number: int) -> dict[str, Any]:
    name = f"{number:012}.jpg"
    return {
        "license": 3,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": SIDES[1],
        "width": SIDES[0],
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://farm9.staticflickr.com/8186/{number:010}_a1b2c3d4e5_z.jpg",
        "id": number,
    }


def annotation(number: int, owner: int, rng: np.random.Generator) -> dict[str, Any]:
    x, y = rng.uniform(0, SIDES[0] - 60), rng.uniform(0, SIDES[1] - 60)
    width, height = rng.uniform(10, 60, 2)
    crowd = rng.random() < 0.01
    return {
        "segmentation": _runs(rng) if crowd else _polygons(x, y, width, height, rng),
        "area": round(0.6 * width * height, 4),
        "iscrowd": int(crowd),
        "image_id": owner,
        "bbox": [round(value, 2) for value in (x, y, width, height)],
        "category_id": CATEGORY_IDS[int(rng.integers(len(CATEGORY_IDS)))],
        "id": number,
    }


def _polygons(
    x: float, y: float, width: float, height: float, rng: np.random.Generator
) -> list[list[float]]:
    parts = []
    for _ in range(1 + (rng.random() < 0.1)):
        angles = np.linspace(0, 2 * np.pi, int(rng.integers(6, 36)), endpoint=False)
        radius = rng.uniform(0.3, 0.5, len(angles))
        points = np.stack(
            [
                x + width * (0.5 + radius * np.cos(angles)),
                y + height * (0.5 + radius * np.sin(angles)),
            ],
            1,
        )
        parts.append(points.round(2).ravel().tolist())
    return parts


def _runs(rng: np.random.Generator) -> dict[str, Any]:
    pixels = SIDES[0] * SIDES[1]
    cuts = np.sort(rng.choice(pixels - 1, 300, replace=False)) + 1
    return {"counts": np.diff(np.r_[0, cuts, pixels]).tolist(), "size": [SIDES[1], SIDES[0]]}


if __name__ == "__main__":
    main()
