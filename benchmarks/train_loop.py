"""Images a second of a whole training: the loader, Lightning's loop, the optimizer, the callbacks.

    python benchmarks/train_loop.py --coco DIR [--size 800 1344] [--batch 16] [--steps 100]
        [--warmup 20] [--compile always] [--workers auto] [--device cuda] [OPTION=VALUE ...]

DIR holds val2017/ and annotations/instances_val2017.json. What is trained is what `maskrcnn-lit
train` trains, augmented as there, without a validation and without checkpoints. Of the images those
are taken that are wider than high and have at most 32 objects and no crowd, so all batches have
one shape (that of gpu_probe.py); each is listed so often that one epoch is long enough. Prints one
line of JSON: images a second of the steps after the first `warmup` ones, with one wait for the
device before and one behind them, and the share of the time in which the step waited for data.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from arguments import step_parser
from gpu_probe import SLOTS, model_options
from lightning.pytorch import Callback, Trainer

from maskrcnn_lit.callbacks.train_meter import TrainMeter
from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.launch.run import build_module, read_data
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.training.checkpoint import RunCheckpoints
from maskrcnn_lit.training.compile import is_compiled
from maskrcnn_lit.training.devices import device_name
from maskrcnn_lit.training.trainer import build_trainer


class Clock(Callback):
    """Times `steps` steps after `warmup` others."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.first, self.last = warmup, warmup + steps
        self.began = self.ended = self.waited = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step >= self.first:
            self.waited += time.perf_counter() - pl_module.ready_since

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step in (self.first, self.last):
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.began, self.ended = self.ended, time.perf_counter()


def main() -> None:
    arguments = parse()
    clock = Clock(arguments.warmup, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        data_file = Path(folder) / "instances.json"
        images = write_long_epoch(arguments, data_file, clock.last * arguments.batch)
        config = compose("train", options(arguments, data_file))
        torch.manual_seed(0)
        data = read_data(config)
        module = build_module(config, data, pretrained=False)
        trainer = build_trainer(
            run_dir=folder,
            callbacks=[TrainMeter(), clock],
            loggers=[],
            **config.trainer,
            evaluate_every_n_epochs=1,
        )
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, RunCheckpoints)]  # type: ignore[attr-defined]
        trainer.limit_val_batches = 0
        started = time.perf_counter()
        trainer.fit(module, datamodule=data)
    seconds = clock.ended - clock.began
    cuda = trainer.strategy.root_device.type == "cuda"
    report = {
        "benchmark": "train_loop",
        "date": time.strftime("%Y-%m-%d"),
        "device": device_name(trainer.strategy.root_device),
        "images_per_second": round(arguments.steps * arguments.batch / seconds, 2),
        "milliseconds": round(1000 * seconds / arguments.steps, 2),
        "data_wait": round(clock.waited / seconds, 3),
        "batch": arguments.batch,
        "size": list(arguments.size),
        "steps": arguments.steps,
        "different_images": images,
        "seconds_before": round(clock.began - started, 1),
        "precision": str(trainer.precision),
        "compiled": is_compiled(module.model),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
        "versions": package_versions(),
        "commit": package_commit(),
        "overrides": arguments.overrides,
    }
    print(json.dumps(report))


def write_long_epoch(arguments: argparse.Namespace, file: Path, count: int) -> int:
    """A json of so many entries, of images that give one shape; how many of them are different."""
    source = arguments.coco / "annotations" / "instances_val2017.json"
    content = json.loads(source.read_text(encoding="utf-8"))
    by_image: dict[int, list[Any]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [image for image in content["images"] if suits(image, by_image.get(image["id"], []))]
    if not chosen:
        sys.exit(f"{source} has no image that is wider than high with 1 to {SLOTS} objects")
    images, annotations = [], []
    for number in range(count):
        image = chosen[number % len(chosen)]
        images.append(image | {"id": number + 1})
        for annotation in by_image[image["id"]]:
            annotations.append(annotation | {"id": len(annotations) + 1, "image_id": number + 1})
    written = {"images": images, "annotations": annotations, "categories": content["categories"]}
    file.write_text(json.dumps(written), encoding="utf-8")
    return len(chosen)


def suits(image: dict[str, Any], annotations: list[Any]) -> bool:
    crowds = any(annotation.get("iscrowd") for annotation in annotations)
    return image["width"] > image["height"] and 1 <= len(annotations) <= SLOTS and not crowds


def options(arguments: argparse.Namespace, file: Path) -> list[str]:
    folder = json.dumps(str((arguments.coco / "val2017").resolve()))
    return [
        "data=coco_json",
        f"data.train.images={folder}",
        f"data.train.annotations={json.dumps(str(file))}",
        f"data.val.images={folder}",
        f"data.val.annotations={json.dumps(str(file))}",
        "data.val_images=1",
        f"data.image_size={list(arguments.size)}",
        f"data.batch_size={arguments.batch}",
        f"data.workers={arguments.workers}",
        "data.lengths=1",
        f"data.slots={SLOTS}",
        "data.on_bad=skip",
        "trainer.epochs=1",
        f"trainer.steps={arguments.warmup + arguments.steps}",
        f"trainer.accelerator={'cpu' if arguments.device == 'cpu' else 'gpu'}",
        f"trainer.compile={arguments.compile}",
        *model_options(arguments.overrides),
    ]


def parse() -> argparse.Namespace:
    parser = step_parser(__doc__, size=(800, 1344), batch=16, steps=100, device="cuda")
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--compile", choices=("off", "auto", "always"), default="always")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("overrides", nargs="*", help="options of train")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
