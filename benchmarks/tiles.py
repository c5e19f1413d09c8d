"""Objects of a large image from its tiles: ours beside supervision's InferenceSlicer, each in a
process of its own.

    python benchmarks/tiles.py [--side 10000] [--tile 1024] [--suffix .jpg] [--rounds 1]

The image has a disc of radius 200 in each cell of 500 pixels. No model runs: both ways get the same
exact masks of each tile, by a threshold and connected parts, so that time and memory are those of
reading, tiling and merging. supervision merges by NON_MAX_MERGE with IOS 0.5 and keeps masks as
run lengths of their tile (compact_masks); its image is decoded by Pillow.

A line is printed for each round: for both, seconds of processor time, the peak of memory above what
the process had before, the number of objects, and of those whose area is within 5 % of a disc's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyvips
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

from maskrcnn_lit.model.tiles import Tiling, detect_tiles
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.storage.strips import Strips
from maskrcnn_lit.training.devices import device_name

CELL, RADIUS, OVERLAP = 500, 200, 0.2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--suffix", choices=(".jpg", ".png", ".tif"), default=".jpg")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=tuple(WAYS), help="run one way on --file: for the others")
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measured(WAYS[given.only], given.file, given.tile)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = write_image(Path(folder) / f"discs{given.suffix}", given.side)
        for _ in range(given.rounds):
            ways = {name: in_a_process(name, file, given.tile) for name in WAYS}
            print(json.dumps(report(given, ways)), flush=True)


def report(given: argparse.Namespace, ways: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "benchmark": "tiles",
        "side": given.side,
        "tile": given.tile,
        "suffix": given.suffix,
        "ways": ways,
        "device": device_name(torch.device("cpu")),
        "commit": package_commit(),
        "versions": package_versions(),
    }


def write_image(path: Path, side: int) -> Path:
    y, x = np.mgrid[:CELL, :CELL] - CELL // 2
    cell = np.full((CELL, CELL, 3), 40, np.uint8)
    cell[y**2 + x**2 < RADIUS**2] = (230, 60, 60)
    count = -(-side // CELL)
    image = pyvips.Image.new_from_array(cell).replicate(count, count).crop(0, 0, side, side)
    image.copy(interpretation="srgb").write_to_file(str(path))
    return path


def in_a_process(name: str, file: Path, tile: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", name, "--file", str(file), "--tile", str(tile)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(run: Callable[[Path, int], list[float]], file: Path, tile: int) -> dict[str, float]:
    before, began = peak(), time.process_time()
    areas = np.array(run(file, tile))
    disc = np.pi * RADIUS**2
    return {
        "seconds": time.process_time() - began,
        "peak_mb": peak() - before,
        "objects": len(areas),
        "whole": int((np.abs(areas / disc - 1) < 0.05).sum()),
    }


def peak() -> float:
    """MB, the most that this process had at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1e3


def masks_of(tile: np.ndarray) -> np.ndarray:
    """R h w bool: the connected red parts."""
    parts, count = ndimage.label(tile[..., 0] > 128)
    return parts == np.arange(1, count + 1)[:, None, None]


def boxes_of(masks: np.ndarray) -> np.ndarray:
    boxes = np.zeros((len(masks), 4), np.float32)
    for r, mask in enumerate(masks):
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[r] = x[0], y[0], x[-1] + 1, y[-1] + 1
    return boxes


def ours(file: Path, tile: int) -> list[float]:
    def detect(images: list[np.ndarray]) -> list[dict[str, Any]]:
        return [found(masks_of(image)) for image in images]

    def found(masks: np.ndarray) -> dict[str, Any]:
        return {
            "boxes": boxes_of(masks),
            "scores": masks.mean((1, 2)),
            "labels": np.ones(len(masks), np.int64),
            "masks": [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks],
        }

    strips = Strips(file)
    windows = Tiling(tile, OVERLAP).windows(strips.size)
    merged = detect_tiles(detect, strips.windows(windows), windows, strips.size)
    return [float(coco_mask.area(mask)) for mask in merged["masks"]]


def slicer(file: Path, tile: int) -> list[float]:
    import supervision

    def callback(image: np.ndarray) -> Any:
        masks = masks_of(image)
        if not len(masks):
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=boxes_of(masks),
            mask=masks,
            confidence=masks.mean((1, 2)).astype(np.float32),
            class_id=np.ones(len(masks), np.int64),
        )

    Image.MAX_IMAGE_PIXELS = None
    image = np.asarray(Image.open(file).convert("RGB"))
    slice_image = supervision.InferenceSlicer(
        callback,
        slice_wh=tile,
        overlap_wh=int(OVERLAP * tile),
        overlap_filter=supervision.OverlapFilter.NON_MAX_MERGE,
        overlap_metric=supervision.OverlapMetric.IOS,
        iou_threshold=0.5,
        compact_masks=True,
    )
    return [float(area) for area in slice_image(image).area]


WAYS: dict[str, Callable[[Path, int], list[float]]] = {
    "maskrcnn_lit": ours,
    "supervision": slicer,
}

if __name__ == "__main__":
    main()
