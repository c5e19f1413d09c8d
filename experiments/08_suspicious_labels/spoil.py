"""Spoils 5 % of the labels of a COCO json, and later repairs those that a list names.

    python spoil.py spoil TRAIN_JSON OUT       # OUT/a.json, b.json, clean_a.json, clean_b.json, spoilt.json
    python spoil.py repair OUT PAGE... --first N   # OUT/repaired_a.json, repaired_b.json, and the precision

Five ways in equal parts: objects removed; outlines shifted, shrunk or dilated (to an IoU of 0.2 to 0.6
with the true one); two neighbors merged into one. a and b are halves of the images.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

SHARE = 0.05
WAYS = ("removed", "shifted", "shrunk", "dilated", "merged")
SCALE = {"shifted": 1.0, "shrunk": 0.6, "dilated": 1.6}  # of a side
SHIFT = 0.4  # of the diameter of a disk of equal area

Json = dict[str, Any]


def resampled(mask: NDArray[np.uint8], scale: float, shift: tuple[float, float]) -> NDArray[Any]:
    """`mask` scaled about its center of mass, then moved by `shift` (y, x pixels)."""
    y, x = np.nonzero(mask)
    center = np.array([y.mean(), x.mean()])
    grid = np.indices(mask.shape).transpose(1, 2, 0)
    source = np.rint((grid - center - np.array(shift)) / scale + center).astype(int)
    inside = ((source >= 0) & (source < mask.shape)).all(-1)
    source = source.clip(0, np.array(mask.shape) - 1)
    return (mask[source[..., 0], source[..., 1]] * inside).astype(np.uint8)


def with_mask(annotation: Json, mask: NDArray[Any]) -> Json:
    rle = rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
    return annotation | {
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": float(rle_tools.area(rle)),
        "bbox": rle_tools.toBbox(rle).tolist(),
    }


def decoded(annotation: Json) -> NDArray[Any]:
    return np.asarray(rle_tools.decode(annotation["segmentation"]))


def spoil(content: Json, seed: int = 1, share: float = SHARE) -> tuple[Json, list[Json]]:
    """The spoilt copy, and what was done: way, image_id, ids of the true annotations, and the id of
    the label that is left (null where it was removed).
    """
    random = np.random.default_rng(seed)
    by_id = {a["id"]: copy.deepcopy(a) for a in content["annotations"]}
    order = random.permutation(sorted(by_id)).tolist()
    wanted, touched, record = round(share * len(order)), set[int](), list[Json]()
    while len(touched) < wanted:
        number, way = order.pop(), WAYS[len(record) % len(WAYS)]
        if number in touched:
            continue
        own = by_id[number]
        ids, left = [number], number
        if way == "removed":
            del by_id[number]
            left = None
        elif way == "merged":
            other = neighbor(own, by_id, touched)
            if other is None:
                continue
            ids.append(other)
            by_id[number] = with_mask(own, decoded(own) | decoded(by_id.pop(other)))
        else:
            mask = decoded(own)
            angle, far = random.uniform(0, 2 * np.pi), 0.0
            if way == "shifted":
                far = SHIFT * 2 * float(np.sqrt(mask.sum() / np.pi))
            new = resampled(mask, SCALE[way], (far * np.sin(angle), far * np.cos(angle)))
            iou = (new & mask).sum() / (new | mask).sum()
            if not 0.2 <= iou <= 0.6:  # cut off by the border of the image, or tiny
                continue
            by_id[number] = with_mask(own, new)
        touched.update(ids)
        record.append({"way": way, "image_id": own["image_id"], "ids": ids, "left": left})
    return content | {"annotations": [by_id[n] for n in sorted(by_id)]}, record


def neighbor(own: Json, by_id: dict[int, Json], touched: set[int]) -> int | None:
    """The nearest object of the image that is not spoilt, at most two sides away."""
    center = np.array(own["bbox"][:2]) + np.array(own["bbox"][2:]) / 2
    others = [
        (float(np.abs(np.array(a["bbox"][:2]) + np.array(a["bbox"][2:]) / 2 - center).max()), n)
        for n, a in by_id.items()
        if a["image_id"] == own["image_id"] and n != own["id"] and n not in touched
    ]
    far, number = min(others, default=(np.inf, 0))
    return number if far <= 2 * max(own["bbox"][2:]) else None


def halves(content: Json, seed: int = 1) -> dict[str, Json]:
    ids = np.random.default_rng(seed).permutation(sorted(i["id"] for i in content["images"]))
    return {
        name: content
        | {
            "images": [i for i in content["images"] if i["id"] in part],
            "annotations": [a for a in content["annotations"] if a["image_id"] in part],
        }
        for name, part in (
            ("a", set(ids[::2].tolist())),
            ("b", set(ids[1::2].tolist())),
        )
    }


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sub = parser.add_subparsers(dest="command", required=True)
    one = sub.add_parser("spoil")
    one.add_argument("json", type=Path)
    one.add_argument("out", type=Path)
    arguments = parser.parse_args()
    content = json.loads(arguments.json.read_bytes())
    spoilt, record = spoil(content)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "spoilt.json", record)
    for name, part in halves(spoilt).items():
        write(arguments.out / f"{name}.json", part)
    for name, part in halves(content).items():
        write(arguments.out / f"clean_{name}.json", part)


if __name__ == "__main__":
    main()
