"""Bars that cross: two objects in nearly one box.

    python experiments/09_occlusion/bars.py draw DIR        writes DIR and its jsons
    python experiments/09_occlusion/bars.py count DIR FILE  how many pairs the detections FILE found

Each picture of 128 x 128 pixels has a single bar, and a pair whose boxes have an IoU over 0.9: a
bar that rises from left to right, and one that falls, the upper over the lower at random.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle_tools

SIDE = 128
NAMES = ("rising", "falling")
COUNTS = {"train": 300, "val": 100}
LEAST_IOU = 0.9  # of the boxes of a pair
FOUND = 0.5  # mask IoU


def main() -> None:
    task, folder, *rest = sys.argv[1:]
    if task == "draw":
        for split, pictures in COUNTS.items():
            draw(Path(folder), split, pictures)
    else:
        print(count_pairs(Path(folder), Path(rest[0])))


def draw(folder: Path, split: str, count: int) -> None:
    rng = np.random.default_rng(0 if split == "train" else 1)
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in range(1, count + 1):
        picture, objects = scene(rng)
        name = f"{image_id:04d}.png"
        picture.save(folder / split / name)
        images.append({"id": image_id, "file_name": name, "height": SIDE, "width": SIDE})
        annotations += [
            {"id": len(annotations) + i, "image_id": image_id, "iscrowd": 0, **entry}
            for i, entry in enumerate(objects, 1)
        ]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def scene(rng: np.random.Generator) -> tuple[Image.Image, list[dict[str, Any]]]:
    noise = rng.normal(rng.integers(60, 200), 12, (SIDE, SIDE, 3)).clip(0, 255)
    picture = Image.fromarray(noise.astype(np.uint8))
    colors = rng.permutation(8)[:3]
    half = int(rng.integers(18, 30))
    x, y = (int(v) for v in rng.integers(half + 2, SIDE - half - 2, 2))
    pair = rng.permutation(2)
    masks = [bar(x, y, half, int(rng.integers(7, 12)), name == 1, rng) for name in pair]
    while box_iou(*masks) <= LEAST_IOU:
        masks = [bar(x, y, half, 9, name == 1, rng) for name in pair]
    for mask, color in zip(masks, colors, strict=False):
        paint(picture, mask, color)
    visible = [masks[0] & ~masks[1], masks[1]]
    names = list(pair)
    alone_half = int(rng.integers(10, 18))
    for _ in range(20):
        alone_x, alone_y = (int(v) for v in rng.integers(alone_half + 2, SIDE - alone_half - 2, 2))
        if max(abs(alone_x - x), abs(alone_y - y)) > half + alone_half + 4:
            name = int(rng.integers(2))
            visible.append(bar(alone_x, alone_y, alone_half, 7, name == 1, rng))
            names.append(name)
            paint(picture, visible[-1], colors[2])
            break
    return picture, [entry(mask, int(n) + 1) for mask, n in zip(visible, names, strict=True)]


def bar(x: int, y: int, half: int, width: int, falls: bool, rng: np.random.Generator) -> np.ndarray:
    """SIDE SIDE bool: from one corner of a square about (x, y) to the other, moved a little."""
    dx, dy = (int(v) for v in rng.integers(-1, 2, 2))
    canvas = Image.new("1", (SIDE, SIDE))
    ends = [(x - half + dx, y + half + dy), (x + half + dx, y - half + dy)]
    if falls:
        ends = [(x - half + dx, y - half + dy), (x + half + dx, y + half + dy)]
    ImageDraw.Draw(canvas).line(ends, fill=1, width=width)
    return np.array(canvas)


def paint(picture: Image.Image, mask: np.ndarray, color: int) -> None:
    rgb = tuple(255 * (int(color) >> bit & 1) for bit in range(3))
    picture.paste(rgb, mask=Image.fromarray(mask))


def entry(mask: np.ndarray, category: int) -> dict[str, Any]:
    rle = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = rle_tools.toBbox(rle).tolist()
    rle = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {"category_id": category, "bbox": box, "area": int(mask.sum()), "segmentation": rle}


def box_iou(one: np.ndarray, other: np.ndarray) -> float:
    boxes = [
        rle_tools.toBbox(rle_tools.encode(np.asfortranarray(m.astype(np.uint8))))
        for m in (one, other)
    ]
    return float(rle_tools.iou(boxes[:1], boxes[1:], [0])[0, 0])


def count_pairs(folder: Path, file: Path) -> str:
    """Pairs of which both bars, one, or none has a detection with a mask IoU of FOUND, a score of
    0.5, and one detection for each bar; classes are not asked.
    """
    truth = json.loads((folder / "annotations" / "instances_val.json").read_text())
    results = json.loads(file.read_text())
    numbers = [0, 0, 0]
    for image in truth["images"]:
        pair = [a["segmentation"] for a in truth["annotations"] if a["image_id"] == image["id"]][:2]
        masks = [
            r["segmentation"] for r in results if r["image_id"] == image["id"] and r["score"] >= 0.5
        ]
        ious = rle_tools.iou(masks, pair, [0, 0]) if masks else np.zeros((1, 2))
        good = np.atleast_2d(ious) >= FOUND
        both = any(
            good[i, 0] and good[j, 1] for i in range(len(good)) for j in range(len(good)) if i != j
        )
        numbers[2 if both else int(good.any())] += 1
    return f"{len(truth['images'])} pairs: both {numbers[2]}, one {numbers[1]}, none {numbers[0]}"


if __name__ == "__main__":
    main()
