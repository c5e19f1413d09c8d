"""What each augmentation costs the loader: processor time of an image with it, in batches of two,
as a multiple of the time without, in the same run on one thread.

    python benchmarks/augmentations.py --coco DIR [--sizes 800,1333 256 128] [--rounds 9]

DIR holds val2017/ and annotations/instances_val2017.json. The base is a mirror in half of the cases
and a scale of 0.8 to 1, with the caches of the loader filled. In each round every image is loaded
with the base and with each augmentation, one after the other, so that other work on the machine
meets all alike; a ratio is the median over the rounds.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

BASE: dict[str, Any] = {"flip": 0.5, "scale": [0.8, 1.0]}
ADDED: dict[str, dict[str, Any]] = {
    "copy_paste={p: 0.5, occlude: 0.3}": {"copy_paste": {"p": 0.5, "occlude": 0.3}},
    "copy_paste={p: 1, occlude: 0.3}": {"copy_paste": {"p": 1.0, "occlude": 0.3}},
    "brightness, contrast, saturation=0.2": {
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
    },
    "vertical_flip=0.5": {"vertical_flip": 0.5},
    "rot90=0.75": {"rot90": 0.75},
    "rotation=15": {"rotation": 15},
    "perspective=0.1": {"perspective": 0.1},
    "rotation=15, perspective=0.1": {"rotation": 15, "perspective": 0.1},
    "blur=1.5": {"blur": 1.5},
    "noise=0.05": {"noise": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["800,1333", "256", "128"])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    for text in arguments.sizes:
        sides = [int(side) for side in text.split(",")]
        size = sides if len(sides) > 1 else sides[0]
        with tempfile.TemporaryDirectory() as cache:
            print(json.dumps(measure(arguments.coco, size, Path(cache), arguments.rounds)))


def measure(coco: Path, size: Any, cache: Path, rounds: int) -> dict[str, Any]:
    import numpy as np

    from maskrcnn_lit.data.collate import collate
    from maskrcnn_lit.runs.provenance import package_commit, package_versions

    loaded = {
        name: dataset(coco, size, cache, BASE | added)
        for name, added in {"base": {}, **ADDED}.items()
    }
    for one in loaded.values():  # fill the caches
        for i in range(len(one)):
            one[0, i]
        for i in one._sources.tolist():
            boxes = one.index.annotations(i)["boxes"]
            one._cutouts.get(i, boxes, np.arange(len(boxes)), one._decoded)
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    for epoch in range(1, rounds + 1):
        spent = dict.fromkeys(loaded, 0.0)
        for i in range(0, len(loaded["base"]) - 1, 2):
            for name, one in loaded.items():
                started = time.process_time()
                collate([one[epoch, i], one[epoch, i + 1]])
                spent[name] += time.process_time() - started
        for name, value in spent.items():
            seconds[name].append(value / len(loaded["base"]))
    base = seconds.pop("base")
    return {
        "benchmark": "augmentations",
        "image_size": size,
        "images": len(loaded["base"]),
        "base_ms": round(1000 * statistics.median(base), 3),
        "times_base": {
            name: round(statistics.median(b / a for a, b in zip(base, values, strict=True)), 3)
            for name, values in seconds.items()
        },
        "more_ms": {
            name: round(
                1000 * statistics.median(b - a for a, b in zip(base, values, strict=True)), 3
            )
            for name, values in seconds.items()
        },
        "rounds": rounds,
        "versions": package_versions(),
        "commit": package_commit(),
    }


def dataset(coco: Path, size: Any, cache: Path, augment: dict[str, Any]) -> Any:
    from maskrcnn_lit.data.datamodule import CocoDataModule

    part = {"images": "val2017", "annotations": "annotations/instances_val2017.json"}
    data = CocoDataModule(
        name="coco",
        root=coco,
        train=part,
        val=part,
        image_size=size,
        augment=augment,
        cache_dir=cache,
    )
    data.setup("fit")
    return data.train_dataset


if __name__ == "__main__":
    main()
