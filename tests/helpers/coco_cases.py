"""Ground truth and detections on which scores must be pycocotools': real and jittered, and small
ones made by hand.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from plain_coco import api
from pycocotools import mask as rle_tools

from maskrcnn_lit.evaluation.coco.matching import match_results
from maskrcnn_lit.evaluation.coco.scores import score_matches

Entries = list[dict[str, Any]]


class Case(NamedTuple):
    truth: dict[str, Any]
    results: Entries
    max_detections: tuple[int, ...] = (1, 10, 100)
    trivial: bool = False  # AP is 0, 1 or undefined


def coco_ap(
    truth: Mapping[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    iou_type: str,
    max_detections: Sequence[int] = (1, 10, 100),
) -> dict[str, Any]:
    """Our twelve numbers of "bbox" or "segm", ap, ap50, ..., and "ap_per_class" (name -> AP)."""
    matches = match_results(truth, results, iou_type=iou_type, limit=max_detections[-1])
    metrics, per_class = score_matches({"kind": matches}, truth["categories"], max_detections)
    numbers: dict[str, Any] = {
        name.removeprefix("val/kind_"): value for name, value in metrics.items()
    }
    return numbers | {"ap_per_class": {name: found["kind_ap"] for name, found in per_class.items()}}


def jitter(truth: dict[str, Any]) -> Entries:
    """The ground truth moved a little, some of it dropped, found twice or of a wrong class, false
    positives on every image, many equal scores, in no order.
    """
    rng = np.random.default_rng(0)
    coco, results = api(truth), []
    classes = [category["id"] for category in truth["categories"]]
    for a in truth["annotations"]:
        if a["iscrowd"] or rng.random() < 0.2:
            continue
        mask = coco.annToMask(a)
        for _ in range(rng.integers(1, 3)):
            moved = np.roll(mask, rng.normal(0, 2, 2).round().astype(int), axis=(0, 1))
            x, y, w, h = (
                np.array(a["bbox"]) + rng.normal(0, 0.05, 4) * np.array(a["bbox"])[[2, 3, 2, 3]]
            )
            category = int(rng.choice(classes)) if rng.random() < 0.1 else a["category_id"]
            entry = {"image_id": a["image_id"], "category_id": category, "bbox": [x, y, w, h]}
            results.append(entry | {"score": round(rng.random(), 2), "segmentation": rle(moved)})
    for image in truth["images"]:
        mask = np.zeros((image["height"], image["width"]), np.uint8)
        mask[10:60, 20:90] = 1
        entry = {
            "image_id": image["id"],
            "category_id": int(rng.choice(classes)),
            "bbox": [20, 10, 70, 50],
        }
        results.append(entry | {"score": round(rng.random(), 2), "segmentation": rle(mask)})
    rng.shuffle(results)
    return results


def _duplicated(truth: dict[str, Any], results: Entries) -> Case:
    return Case(truth, [*results, *results[::2], *results[::3]])


def _crowd_only(truth: dict[str, Any], results: Entries) -> Case:
    """Objects of the images with a crowd region are all crowds; what was found stays, and so do
    whole crowd regions.
    """
    coco = api(truth)
    crowded = {a["image_id"] for a in truth["annotations"] if a["iscrowd"]}
    kept = [a for a in truth["annotations"] if a["iscrowd"] or a["image_id"] not in crowded]
    regions = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")}
        | {"score": 0.5, "segmentation": rle(coco.annToMask(a))}
        for a in kept
        if a["iscrowd"]
    ]
    return Case(truth | {"annotations": kept}, [*regions, *results, *regions])


def _only_crowds(truth: dict[str, Any], results: Entries) -> Case:
    crowds = [a for a in truth["annotations"] if a["iscrowd"]]
    return Case(truth | {"annotations": crowds}, results, trivial=True)


def _gaps(truth: dict[str, Any], results: Entries) -> Case:
    """Category and image ids far apart and in another order."""
    rng = np.random.default_rng(1)
    new = {}
    for key in ("categories", "images"):
        ids = (rng.permutation(len(truth[key])) * 977 + 31).tolist()
        new[key] = dict(zip((entry["id"] for entry in truth[key]), ids, strict=True))

    def moved(entry: dict[str, Any]) -> dict[str, Any]:
        image, category = new["images"][entry["image_id"]], new["categories"][entry["category_id"]]
        return entry | {"image_id": image, "category_id": category}

    changed: dict[str, Any] = {
        key: [e | {"id": new[key][e["id"]]} for e in truth[key]] for key in new
    }
    changed["annotations"] = [moved(a) for a in truth["annotations"]]
    return Case(changed, [moved(r) for r in results])


def _many(truth: dict[str, Any], results: Entries, limits: tuple[int, ...] = (1, 10, 100)) -> Case:
    """One class, and each detection eight times: hundreds on an image."""
    first = truth["categories"][0]["id"]
    one_class = [a | {"category_id": first} for a in truth["annotations"]]
    many = [
        r | {"category_id": first, "score": r["score"] - n / 50} for n in range(8) for r in results
    ]
    _, counts = np.unique([r["image_id"] for r in many], return_counts=True)
    assert counts.max() > 150
    return Case(truth | {"annotations": one_class}, many, limits)


def _halves(truth: dict[str, Any], results: Entries) -> Case:
    """Nothing found on a third of the images, no ground truth on another."""
    part = {image["id"]: n % 3 for n, image in enumerate(truth["images"])}
    annotations = [a for a in truth["annotations"] if part[a["image_id"]] != 0]
    return Case(
        truth | {"annotations": annotations}, [r for r in results if part[r["image_id"]] != 1]
    )


CASES: dict[str, Callable[[dict[str, Any], Entries], Case]] = {
    "jittered and shuffled": Case,
    "duplicated": _duplicated,
    "no detections": lambda truth, _: Case(truth, [], trivial=True),
    "images whose objects are crowds": _crowd_only,
    "nothing but crowds": _only_crowds,
    "ids with gaps": _gaps,
    "more than 100 an image": _many,
    "limits raised to 2, 50, 300": lambda truth, results: _many(truth, results, (2, 50, 300)),
    "limits lowered to 1, 2, 3": lambda truth, results: _many(truth, results, (1, 2, 3)),
    "one score for all": lambda truth, results: Case(truth, [r | {"score": 0.5} for r in results]),
    "five scores": lambda truth, results: Case(
        truth, [r | {"score": round(r["score"] * 4) / 4} for r in results]
    ),
    "images without objects or detections": _halves,
    "no ground truth": lambda truth, results: Case(
        truth | {"annotations": []}, results, trivial=True
    ),
}


def small_truth(annotations: Entries) -> dict[str, Any]:
    """Two images of 120 x 130, two categories."""
    return {
        "images": [{"id": n, "height": 120, "width": 130, "file_name": f"{n}.jpg"} for n in (1, 2)],
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
        "annotations": [a | {"id": n} for n, a in enumerate(annotations, start=1)],
    }


def box(image: int, category: int, box: list, iscrowd: int = 0) -> dict[str, Any]:
    """An object that fills its box; the mask ends with the image."""
    mask = rle(_filled(box))
    entry = {"image_id": image, "category_id": category, "bbox": box, "segmentation": mask}
    return entry | {"iscrowd": iscrowd, "area": int(rle_tools.area(mask))}


def found(image: int, category: int, box: list, score: float) -> dict[str, Any]:
    entry = {"image_id": image, "category_id": category, "bbox": box, "score": score}
    return entry | {"segmentation": rle(_filled(box))}


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = rle_tools.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def _filled(box: list) -> np.ndarray:
    x, y, w, h = box
    mask = np.zeros((120, 130), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask
