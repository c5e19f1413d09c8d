"""Images a second of one core: our loader, torchvision's reference pipeline, and the decoder alone,
in the same run.

    python benchmarks/data_loading.py --coco DIR [--sizes 800,1333 512 256 128] [--rounds 5]

DIR holds train2017/ and annotations/instances_train2017.json. All give one image after the other in
this process, with boxes, masks, a mirror in half of the cases and a size jitter of 0.8 to 1.
torchvision's is that of its references: Pillow, full masks from pycocotools, a mirror of both, then
GeneralizedRCNNTransform, which resizes and normalizes image and masks as its model does. They take
turns; a rate is that of the median round, by processor time. The first round, which fills what ours
keeps on the disk (mask crops, and at 512 pixels and below resized images), is told apart.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
BATCH = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["800,1333", "512", "256", "128"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    for text in arguments.sizes:
        sides = [int(side) for side in text.split(",")]
        with tempfile.TemporaryDirectory() as cache:
            report = measure(
                arguments.coco, sides if len(sides) > 1 else sides[0], Path(cache), arguments.rounds
            )
            print(json.dumps(report), flush=True)


def measure(coco: Path, size: Any, cache: Path, rounds: int) -> dict[str, Any]:
    from maskrcnn_lit.runs.provenance import package_commit, package_versions

    data = datamodule(coco, size, cache, "auto")
    dataset = data.train_dataset
    runs: dict[str, Callable[[int], Any]] = {
        "torchvision": torchvision_pipeline(coco, size),
        "maskrcnn_lit": loading(data),
        "maskrcnn_lit, no resized images kept": loading(datamodule(coco, size, cache, "off")),
        "decoding alone": lambda epoch: decode_all(dataset),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for epoch in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run(epoch)
            seconds[name].append((time.process_time() - started) / len(dataset))
    typical = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        "benchmark": "data_loading",
        "image_size": size,
        "images": len(dataset),
        "objects": sum(len(dataset.index.annotations(i)["ids"]) for i in range(len(dataset))),
        "images_per_cpu_second": {name: round(1 / value, 1) for name, value in typical.items()},
        "times_torchvision": {
            name: round(typical["torchvision"] / value, 2) for name, value in typical.items()
        },
        "first_round_images_per_cpu_second": round(1 / seconds["maskrcnn_lit"][0], 1),
        "stages_ms": stages(dataset, rounds),
        "rounds": rounds,
        "versions": package_versions(),
        "commit": package_commit(),
    }


def datamodule(coco: Path, size: Any, cache: Path, image_cache: str) -> Any:
    from maskrcnn_lit.data.datamodule import CocoDataModule

    part = {"images": "train2017", "annotations": "annotations/instances_train2017.json"}
    data = CocoDataModule(
        name="coco",
        root=coco,
        train=part,
        val=part,
        image_size=size,
        augment={"flip": 0.5, "scale": [0.8, 1.0]},
        image_cache=image_cache,
        cache_dir=cache,
        batch_size=BATCH,
        workers=0,
    )
    data.tell = lambda *lines: None  # type: ignore[method-assign]  # one JSON line is what this program prints
    data.setup("fit")
    return data


def loading(data: Any) -> Callable[[int], None]:
    loader = data.train_dataloader()

    def run(epoch: int) -> None:
        loader.batch_sampler.set_epoch(epoch)
        for _ in loader:
            pass

    return run


def decode_all(dataset: Any) -> None:
    from maskrcnn_lit.storage.images import decode

    for i in range(len(dataset)):
        decode(dataset.index.read(i), dataset.index.size(i))


def torchvision_pipeline(coco: Path, size: Any) -> Callable[[int], None]:
    import torch
    from torchvision.datasets import CocoDetection
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.transforms import functional

    with contextlib.redirect_stdout(io.StringIO()):
        images = CocoDetection(
            str(coco / "train2017"), str(coco / "annotations/instances_train2017.json")
        )
    short, long = size if isinstance(size, list) else (size, size)
    choices = [round(short * factor) for factor in (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)]
    resize = GeneralizedRCNNTransform(
        choices, long, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ).train()

    def run(epoch: int) -> None:
        torch.manual_seed(epoch)
        for picture, annotations in images:
            image = functional.convert_image_dtype(functional.pil_to_tensor(picture), torch.float32)
            target = targets(annotations, *picture.size)
            if torch.rand(1) < 0.5:
                image, target["masks"] = functional.hflip(image), target["masks"].flip(-1)
                target["boxes"][:, [0, 2]] = picture.width - target["boxes"][:, [2, 0]]
            resize([image], [target])

    return run


def targets(annotations: list[dict[str, Any]], width: int, height: int) -> dict[str, Any]:
    """What torchvision's references make of an image's annotations: no crowds, a whole mask for
    each object.
    """
    import torch
    from pycocotools import mask as coco_mask

    objects = [entry for entry in annotations if not entry["iscrowd"]]
    boxes = torch.as_tensor([entry["bbox"] for entry in objects], dtype=torch.float32).reshape(
        -1, 4
    )
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    masks = []
    for entry in objects:
        parts = coco_mask.decode(coco_mask.frPyObjects(entry["segmentation"], height, width))
        masks.append(torch.as_tensor(parts, dtype=torch.uint8).any(dim=2))
    stacked = torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.uint8)
    labels = torch.tensor([entry["category_id"] for entry in objects], dtype=torch.int64)
    keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    return {"boxes": boxes[keep], "labels": labels[keep], "masks": stacked[keep]}


def stages(dataset: Any, rounds: int) -> dict[str, float]:
    """Milliseconds an image of what our loader does, stage by stage; the last is the whole, with
    what lies between.
    """
    import numpy as np

    from maskrcnn_lit.data.collate import collate
    from maskrcnn_lit.data.transforms import resample, sample_transform
    from maskrcnn_lit.storage.images import decode

    index, count = dataset.index, len(dataset)
    views = [
        sample_transform(
            *index.size(i), dataset.image_size, dataset.augment, np.random.default_rng(i)
        )
        for i in range(count)
    ]
    files = [index.read(i) for i in range(count)]

    def decoded(i: int) -> Any:
        whole = [index.size(i)[d] * views[i].size[d] / views[i].window[2 + d] for d in (0, 1)]
        return decode(files[i], index.size(i), (whole[0], whole[1]))

    kept = dataset.resized is not None
    pixels = [(dataset.resized.get(i), 1) if kept else decoded(i) for i in range(count)]
    if kept:
        views = [
            v._replace(window=(0, 0, *p.shape[:2])) for v, (p, _) in zip(views, pixels, strict=True)
        ]
    samples = [dataset[1, i] for i in range(count)]
    work: dict[str, Callable[[int], Any]] = {
        "view": lambda i: sample_transform(
            *index.size(i), dataset.image_size, dataset.augment, np.random.default_rng(i)
        ),
        "read": lambda i: dataset.resized.get(i) if kept else index.read(i),
        "decode": (lambda i: None) if kept else decoded,
        "resize and mirror": lambda i: resample(*pixels[i], views[i]),
        "boxes and masks": lambda i: dataset._targets(
            dataset._objects(i, views[i]), views[i].size, None
        ),
        "collate": lambda i: collate(samples[i : i + BATCH]) if i % BATCH == 0 else None,
        "sample": lambda i: dataset[1, i],
    }
    return {name: round(median_ms(function, count, rounds), 3) for name, function in work.items()}


def median_ms(function: Callable[[int], Any], count: int, rounds: int) -> float:
    def once() -> Iterator[float]:
        for _ in range(rounds):
            started = time.process_time()
            for i in range(count):
                function(i)
            yield (time.process_time() - started) / count

    return 1000 * statistics.median(once())


if __name__ == "__main__":
    main()
