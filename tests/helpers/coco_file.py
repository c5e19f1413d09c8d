"""A small COCO set for tests: JPEGs of noise, with polygons, parts, RLE of both kinds, crowd, an
empty image.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index

NAMES = ["zebra", "ant", "mole"]


def coco_dict(images: int = 6) -> dict[str, Any]:
    """`images` images of different sizes; image k has k % 8 annotations (so the first has none)."""
    rng = np.random.default_rng(5)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
    }
    for k in range(images):
        height, width = 60 + 10 * (k % 6), 100 - 5 * (k % 6)
        content["images"].append(
            {"id": k + 1, "file_name": f"{k:02}.jpg", "height": height, "width": width}
        )
        for j in range(k % 8):
            x, y = rng.integers(0, 40, 2).tolist()
            w, h = rng.integers(10, 30, 2).tolist()
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": k + 1,
                    "category_id": (j + k) % 3 + 1,
                    "bbox": [x, y, w, h],
                    "iscrowd": int(j == 3),
                    **_shape(j, x, y, w, h, height, width),
                }
            )
    return content


def _shape(j: int, x: int, y: int, w: int, h: int, height: int, width: int) -> dict[str, Any]:
    if j % 3 == 0:  # two triangles at opposite corners of the box
        parts = [
            [x, y, x + w / 2, y, x, y + h / 2],
            [x + w, y + h, x + w / 2, y + h, x + w, y + h / 2],
        ]
        return {"segmentation": [[float(v) for v in part] for part in parts], "area": w * h / 4}
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    mask[y + 3 : y + h - 3, x + 3 : x + w - 3] = 0  # a hole
    rle = coco_mask.encode(mask)
    rle["counts"] = rle["counts"].decode()
    if j % 3 == 2:
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(np.r_[0, flat, 1 - flat[-1]]))
        rle = {"size": [height, width], "counts": np.diff(np.r_[0, edges]).tolist()}
    return {"segmentation": rle, "area": int(mask.sum())}


def write_coco(folder: Path, content: dict[str, Any]) -> tuple[Path, Path]:
    """The json and its images under `folder`: (annotations, images)."""
    images, annotations = folder / "images", folder / "instances.json"
    images.mkdir(parents=True, exist_ok=True)
    for entry in content["images"]:
        rng = np.random.default_rng(int(Path(entry["file_name"]).stem))
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(
            (entry["width"], entry["height"]), Image.Resampling.BICUBIC
        )
        picture.save(images / entry["file_name"], quality=95)
    annotations.write_text(json.dumps(content))
    return annotations, images


def small_index(folder: Path, images: int = 6, **options: Any) -> AnnotationIndex:
    annotations, pictures = write_coco(folder, coco_dict(images))
    return read_index(annotations, pictures, "error", **options)


def void_dict(images: int = 6) -> dict[str, Any]:
    """As `coco_dict`; the images with an odd number have a void region, an ellipse."""
    content = coco_dict(images)
    for k, image in enumerate(content["images"]):
        if k % 2:
            height, width = image["height"], image["width"]
            y, x = np.mgrid[:height, :width] + 0.5
            inside = ((x / width - 0.4) / 0.3) ** 2 + ((y / height - 0.6) / 0.2) ** 2 < 1
            rle = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
            image["ignore"] = rle | {"counts": rle["counts"].decode()}
    return content
