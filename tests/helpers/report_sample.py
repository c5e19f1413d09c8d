"""A made-up evaluation of three classes (or of many) for the tests of the report; its analysis has
the schema of `maskrcnn_lit.evaluation.analysis.analyze`.
"""

from html.parser import HTMLParser
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_lit.evaluation.roi_accuracy import DEFINITIONS

NAMES = ("circle", "square <b>", "star")
WIDTH, HEIGHT = 80, 60


def analysis(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Numbers that hang together as far as the page goes; the last class has no object."""
    rng = np.random.default_rng(0)
    per_class = []
    for number, name in enumerate(names):
        known = number < len(names) - 1
        ap = round(0.9 - 0.7 * number / len(names), 4)
        keys = ("box_ap", "mask_ap", "mask_ap50", "mask_ap_small", "mask_ap_medium", "boundary_ap")
        entry = {key: round(ap - 0.01 * i, 4) if known else None for i, key in enumerate(keys)}
        entry |= {"mask_ap_large": None, "threshold": 0.4 if known else None}
        entry |= {key: round(ap, 4) if known else None for key in ("precision", "recall", "f1")}
        per_class.append({"name": name, "objects": 10 * known, "detections": 30, **entry})
    curves = [curve(name, 0.9 - 0.5 * i / len(names)) for i, name in enumerate(names[:-1])]
    counts = rng.integers(0, 4, (len(names) + 1, len(names) + 1)) + 12 * np.eye(
        len(names) + 1, dtype=int
    )
    counts[-1, -1] = 0
    counts[-2] = 0
    return {
        **{"kind": "mask", "images": 2, "objects": 20, "detections": 90, "crowded_from": 8},
        "per_class": per_class,
        "curves": [*curves, curve("all classes", 0.8)],
        "confusion": {"iou": 0.5, "labels": [*names, "background"], "counts": counts.tolist()},
        "errors": {
            **{
                "ap50": 0.6125,
                "classification": 0.03125,
                "localisation": 0.0625,
                "both": 0.0,
                "duplicate": 0.004,
            },
            **{
                "background": 0.0975,
                "missed": 0.1875,
                "false_positives": 0.15,
                "false_negatives": 0.225,
            },
            "counts": {
                "classification": 3,
                "localisation": 7,
                "both": 0,
                "duplicate": 2,
                "background": 21,
                "missed": 8,
            },
        },
        "occlusion": [
            {"slice": "0 to 0.1", "objects": 12, "ap": 0.71, "ap50": 0.82, "recall": 0.9},
            {"slice": "0.1 to 0.4", "objects": 8, "ap": 0.52, "ap50": 0.66, "recall": 0.75},
            {"slice": "0.4 and more", "objects": 0, "ap": None, "ap50": None, "recall": None},
            {"slice": "crowded images", "objects": 9, "ap": 0.43, "ap50": 0.59, "recall": 0.667},
        ],
        "hidden": {
            "source": "both",
            "slices": [
                {"slice": "0 to 0.1", "objects": 14, "ap": 0.7, "ap50": 0.8, "recall": 0.9},
                {"slice": "0.1 to 0.4", "objects": 6, "ap": 0.5, "ap50": 0.6, "recall": 0.7},
                {"slice": "0.4 to 0.6", "objects": 0, "ap": None, "ap50": None, "recall": None},
                {"slice": "0.6 to 0.85", "objects": 0, "ap": None, "ap50": None, "recall": None},
                {"slice": "0.85 and more", "objects": 0, "ap": None, "ap50": None, "recall": None},
            ],
            "occluded": {"objects": 5, "recall": 0.4},
            "separated": {"objects": 1, "recall": 1.0},
            **{"merged": 2, "split": 1, "count_error": 1.25, "count_bias": -0.75},
        },
        **{"box_ap": 0.5625, "mask_ap": 0.53125, "boundary_ap": 0.425},
        "calibration": {
            "bins": [
                {
                    "from": b / 10,
                    "to": (b + 1) / 10,
                    "score": b / 10 + 0.05,
                    "precision": b / 12,
                    "count": 10 * (b > 0),
                }
                for b in range(10)
            ],
            "error": 0.1234,
        },
        "worst": [
            {"image_id": 7, "missed": [70], "false": [0, 1], "merged": [1]},
            {"image_id": 9, "missed": [], "false": [2], "merged": []},
        ],
    }


def curve(name: str, height: float) -> dict[str, Any]:
    recall = np.linspace(0, 0.95, 101)
    precision = height * (1 - recall**4)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    found = {"recall": recall, "precision": precision, "thresholds": 1 - recall, "f1": f1}
    return {"name": name, **{key: values.tolist() for key, values in found.items()}}


def evaluation() -> dict[str, Any]:
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar1", "ar10", "ar100")
    metrics = {
        f"val/{kind}_{key}": 0.5 + i / 64 for kind in ("box", "mask") for i, key in enumerate(keys)
    }
    return {
        **{
            "run": "outputs/<run>",
            "checkpoint": "best",
            "data": "shapes",
            "overrides": ["run=outputs/<run>"],
        },
        "roi_accuracy": {"boxes": "all", "definition": DEFINITIONS["all"]},
        "metrics": metrics | {"val/mask_ap_large": None, "val/roi_accuracy": 0.9375},
        "per_class": {name: {"mask_ap": 0.5, "box_ap": 0.5} for name in NAMES},
    }


def box_rle(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return coco_mask.encode(mask)


def ground_truth() -> dict[str, Any]:
    shape = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (7, 9)
        ],
        "annotations": [
            {
                "id": 70,
                "image_id": 7,
                "category_id": 3,
                "bbox": [10, 10, 20, 20],
                "segmentation": shape,
            }
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)],
    }


def results() -> list[dict[str, Any]]:
    places = ((7, 40, 20, 20, 20), (7, 50, 5, 10, 10), (9, 5, 5, 30, 40))
    return [
        {"image_id": i, "category_id": 1, "score": 0.75, "bbox": box, "segmentation": box_rle(*box)}
        for i, *box in places
    ]


class Page(HTMLParser):
    """What stands on a page: `tables` (caption -> rows of cells, the head first), `images` (their
    sources), `ids`, `text`, and `loads`, the values of all attributes by which a browser could load
    something.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self._open: list[str] = []
        self._texts: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        self._open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.images += [given["src"]] if tag == "img" else []
        self.loads += [
            given[key] for key in ("src", "srcset", "data", "href", "poster") if key in given
        ]
        if tag == "table":
            self._rows: list[list[str]] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self._texts.append(data)
        if "caption" in self._open:
            self.tables[data] = self._rows
        elif self._open and self._open[-1] in ("td", "th"):
            self._rows[-1][-1] += data
