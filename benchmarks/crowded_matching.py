"""Anchors matched with the objects of a batch of which one image is crowded: ours against
torchvision's.

    python benchmarks/crowded_matching.py [--size 800 1344] [--batch 16] [--objects 300]

One image has so many objects, the others 5 each, so all of the batch are padded to its number of
slots. Three ways: "maskrcnn_lit" is ours on the CPU, "static_shapes" ours as a GPU runs it, which
looks at all slots, a chunk at a time, and "torchvision" goes image by image. Each runs in a process
of its own, one thread; prints one line of JSON: processor seconds, and by how many MB the peak of
the process grows. That all three give the same is checked first, in a small batch.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from maskrcnn_lit.model.anchors import Anchors
from maskrcnn_lit.model.matching import OBJECT, match
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.training.devices import device_name, peak_memory_bytes

CPU = torch.device("cpu")
WAYS = ("maskrcnn_lit", "static_shapes", "torchvision")
FEW = 5  # objects of the other images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--objects", type=int, default=300)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a child
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    check_equal()
    figures = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[way] = json.loads(done.stdout.splitlines()[-1])
    report = {
        "benchmark": "crowded_matching",
        **{key: vars(options)[key] for key in ("size", "batch", "objects")},
        **{"slots": slots(options.objects), "anchors": len(anchors_of(options.size))},
        **{"device": device_name(CPU), "date": time.strftime("%Y-%m-%d")},
        "seconds": {way: row["seconds"] for way, row in figures.items()},
        "peak_mb": {way: row["peak_mb"] for way, row in figures.items()},
        **{"versions": package_versions(), "commit": package_commit()},
    }
    print(json.dumps(report))


def slots(objects: int) -> int:
    """As the loader pads (data/collate.py)."""
    return max(8, 1 << (objects - 1).bit_length())


def anchors_of(size: tuple[int, int]) -> Tensor:
    cells = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32, 64)]
    pyramid = [torch.empty(1).expand(1, 1, *grid) for grid in cells]
    return Anchors(sizes=(32, 64, 128, 256, 512), ratios=(0.5, 1.0, 2.0))(pyramid, size)


def objects_of(size: tuple[int, int], batch: int, objects: int) -> list[Tensor]:
    """Of each image G 4, inside of it, with sides of 4 to 100 pixels."""
    torch.manual_seed(0)
    limit = torch.tensor([size[1], size[0]])
    boxes = []
    for count in (objects, *[FEW] * (batch - 1)):
        sides = torch.minimum(4 + torch.rand(count, 2) ** 2 * 96, limit / 2)
        corner = torch.rand(count, 2) * (limit - sides)
        boxes.append(torch.cat([corner, corner + sides], 1))
    return boxes


def run(way: str, anchors: Tensor, boxes: list[Tensor]) -> list[Tensor]:
    """Of each image, which anchors are objects."""
    if way == "torchvision":
        matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
        return [matcher(box_iou(own, anchors)) >= 0 for own in boxes]
    padded = torch.zeros(len(boxes), slots(max(map(len, boxes))), 4)
    valid = torch.zeros(padded.shape[:2], dtype=torch.bool)
    for i, own in enumerate(boxes):
        padded[i, : len(own)], valid[i, : len(own)] = own, True
    thresholds = {"object_iou": 0.7, "background_iou": 0.3, "keep_best": True}
    none, static = torch.zeros_like(valid), way == "static_shapes"
    kind = match(anchors[None], padded, valid, none, **thresholds, static_shapes=static)[1]
    return list(kind == OBJECT)


def check_equal() -> None:
    anchors, boxes = anchors_of((128, 192)), objects_of((128, 192), 3, 40)
    expected, *others = (run(way, anchors, boxes) for way in reversed(WAYS))
    for found in others:
        if not all(map(torch.equal, found, expected)):
            raise RuntimeError("ours and torchvision's do not give the same")


def measure(way: str, options: Any) -> dict[str, float]:
    anchors = anchors_of(options.size)
    boxes = objects_of(options.size, options.batch, options.objects)
    before, start = peak_memory_bytes(CPU), time.process_time()
    run(way, anchors, boxes)
    seconds = time.process_time() - start
    return {
        "seconds": round(seconds, 2),
        "peak_mb": round((peak_memory_bytes(CPU) - before) / 1e6, 1),
    }


if __name__ == "__main__":
    main()
