"""COCO's annotations in LVIS's form: 1,203 classes, each labeled in some images only."""

from typing import Any

import numpy as np

CLASSES = 1203


def lvis_form(truth: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The same objects without crowds. Images have no file_name; a quarter of the classes of an
    image is not labeled completely, some classes are surely absent, and the frequencies r, c and f
    occur.
    """
    rng = np.random.default_rng(seed)
    own = [c | {"synset": f"{c['name']}.n.01"} for c in truth["categories"]]
    first = max(c["id"] for c in own) + 1
    more = [
        {"id": first + n, "name": f"class_{n}_(kind)", "synset": f"class_{n}.n.01"}
        for n in range(CLASSES - len(own))
    ]
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    images_of: dict[int, set[int]] = {c["id"]: set() for c in own + more}
    for a in objects:
        images_of[a["category_id"]].add(a["image_id"])
    categories = [
        c
        | {
            "image_count": (count := len(images_of[c["id"]])),
            "frequency": "r" if count <= 2 else "c" if count <= 8 else "f",
        }
        for c in own + more
    ]
    ids = [c["id"] for c in categories]
    images = []
    for image in truth["images"]:
        present = {a["category_id"] for a in objects if a["image_id"] == image["id"]}
        absent = [k for k in ids if k not in present]
        chosen = rng.choice(absent[:70], 25, replace=False).tolist()
        images.append(
            {key: image[key] for key in ("id", "height", "width", "coco_url")}
            | {
                "neg_category_ids": chosen[:20],
                "not_exhaustive_category_ids": sorted(
                    [*(k for k in present if rng.random() < 0.25), *chosen[:2], *chosen[-2:]]
                ),
            }
        )
    annotations = [
        {key: a[key] for key in ("id", "image_id", "category_id", "bbox", "area", "segmentation")}
        for a in objects
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
