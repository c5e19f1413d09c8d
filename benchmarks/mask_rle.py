"""Predicted masks to COCO RLE: ours against torchvision's paste, threshold and pycocotools' encode,
in turns.

    python benchmarks/mask_rle.py [--coco DIR] [--detections 100] [--rounds 9] [--sizes 640,480
    1920,1080]

Each line that is printed is an image size (width,height): medians of processor time, one thread,
and their ratio. The RLEs of both are compared in every round. The masks are 28 x 28, an uneven disc
each. With DIR, which holds annotations/instances_val2017.json, the boxes are of real annotations,
drawn at random and scaled with their image; without it their sides are log-normal shares of the
image's.

`times_detectron2` is derived, not measured here: the ratio to torchvision, over that of
Detectron2's paste and encode to torchvision's on another machine, one core (0.09 s to 0.25 s at 640
x 480, 0.50 s to 1.76 s at 1920 x 1080).
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_lit.model.paste_masks import masks_to_rle
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.training.devices import device_name

DETECTRON2 = {
    (640, 480): 0.25 / 0.09,
    (1920, 1080): 1.76 / 0.50,
}  # times torchvision's speed, measured elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", default=["640,480", "1920,1080"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in arguments.sizes:
        width, height = (int(side) for side in size.split(","))
        print(json.dumps(measure(arguments, width, height)), flush=True)


def measure(arguments: argparse.Namespace, width: int, height: int) -> dict[str, Any]:
    ways: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "maskrcnn_lit": masks_to_rle,
        "torchvision": paste,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    areas = []
    for round_ in range(arguments.rounds + 1):  # the first warms up
        random = np.random.default_rng(round_)
        boxes = shares(arguments, random) * torch.tensor([width, height, width, height])
        masks = discs(random, len(boxes))
        found = {}
        for name, way in ways.items():
            start = time.process_time()
            found[name] = way(masks, boxes, height, width)
            if round_:
                seconds[name].append(time.process_time() - start)
        if found["maskrcnn_lit"] != found["torchvision"]:
            raise RuntimeError(f"round {round_} at {width} x {height}: the two ways differ")
        areas.append(np.mean([pycocotools.mask.area(rle) for rle in found["maskrcnn_lit"]]))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median["torchvision"] / median["maskrcnn_lit"]
    theirs = DETECTRON2.get((width, height))
    return {
        "benchmark": "mask_rle",
        "size": [width, height],
        "detections": arguments.detections,
        "boxes": "instances_val2017" if arguments.coco else "log-normal",
        "annotations": len(annotations(arguments.coco)[1]) if arguments.coco else None,
        "mean_mask_pixels": round(float(np.mean(areas))),
        "rounds": arguments.rounds,
        "device": device_name(torch.device("cpu")),
        "milliseconds": {name: round(1000 * value, 1) for name, value in median.items()},
        "times_torchvision": round(ratio, 1),
        "times_detectron2": round(ratio / theirs, 1) if theirs else None,
        "versions": package_versions(),
        "commit": package_commit(),
    }


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[dict[str, Any]]:
    """As torchvision's references/detection/coco_eval.py does."""
    pasted = (paste_masks_in_image(masks[:, None], boxes, (height, width)) > 0.5).numpy()
    return [
        pycocotools.mask.encode(np.array(mask[0, :, :, None], dtype=np.uint8, order="F"))[0]
        for mask in pasted
    ]


def shares(arguments: argparse.Namespace, random: np.random.Generator) -> Tensor:
    """Boxes N 4, x1 y1 x2 y2 in shares of the image's sides."""
    if not arguments.coco:
        sides = np.clip(np.exp(random.normal(-1.8, 0.9, (arguments.detections, 2))), 0.01, 1)
        corner = random.random((arguments.detections, 2)) * (1 - sides)
        return torch.from_numpy(np.concatenate([corner, corner + sides], axis=1)).float()
    sizes, known = annotations(arguments.coco)
    boxes = []
    for i in random.choice(len(known), arguments.detections).tolist():
        (x, y, w, h), (width, height) = known[i]["bbox"], sizes[known[i]["image_id"]]
        boxes.append([x / width, y / height, (x + w) / width, (y + h) / height])
    return torch.tensor(boxes)


@cache
def annotations(coco: Path) -> tuple[dict[int, tuple[int, int]], list[dict[str, Any]]]:
    content = json.loads((coco / "annotations/instances_val2017.json").read_text())
    return {image["id"]: (image["width"], image["height"]) for image in content["images"]}, content[
        "annotations"
    ]


def discs(random: np.random.Generator, count: int) -> Tensor:
    """N 28 28 probabilities: high in the middle, with a border that is neither round nor sharp."""
    line = torch.linspace(-1, 1, 28)
    distance = (line[:, None] ** 2 + line**2).sqrt()
    noise = torch.from_numpy(random.normal(0, 1, (count, 1, 28, 28))).float()
    wobble = torch.nn.functional.avg_pool2d(noise, 7, 1, 3)[:, 0] * 12
    return (10 * (0.85 - distance) + wobble).sigmoid()


if __name__ == "__main__":
    main()
