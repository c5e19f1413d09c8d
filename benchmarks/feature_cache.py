"""What data.feature_cache saves: runs with a frozen backbone, with the cache and without, in turn.

    python benchmarks/feature_cache.py --data NUCLEI [--rounds 3] [--images 48] [--epochs 3]
        [--dtype bfloat16] [--out FILE] [OVERRIDE ...]

NUCLEI holds train/, val/ and annotations/ of experiment=nuclei. The runs are in one process, with
one thread and no loader process. Three kinds take turns: without the cache, with an empty one, and
with the one that was filled. The last line has the medians of the processor's time (the
machine may have other users) and of the clock: of an epoch after the first, and of all epochs with
what the run computes before them.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from maskrcnn_lit.config.compose import compose, to_dict
from maskrcnn_lit.launch.run import build_module, read_data
from maskrcnn_lit.training.checkpoint import RunCheckpoints
from maskrcnn_lit.training.trainer import build_trainer

KINDS = ("off", "filling", "filled")


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in KINDS:
                rows[kind].append(measure(arguments, kind, cache))
                print(kind, rows[kind][-1], file=sys.stderr, flush=True)
    report = summary(arguments, rows)
    print(json.dumps(report))
    if arguments.out:
        with open(arguments.out, "a") as file:
            file.write(json.dumps(report) + "\n")


def summary(arguments: argparse.Namespace, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    medians = {
        kind: {
            key: statistics.median(row[key] for row in rows[kind])
            for key in ("epoch_cpu", "epoch_clock", "run_cpu", "run_clock")
        }
        for kind in KINDS
    }
    ratios = {
        f"{key}_{kind}": three_digits(medians["off"][key] / medians[kind][key])
        for kind in KINDS[1:]
        for key in medians[kind]
    }
    return {
        "benchmark": "feature_cache",
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{os.cpu_count()} cores, 1 thread",
        "rounds": arguments.rounds,
        "images": arguments.images,
        "epochs": arguments.epochs,
        "dtype": arguments.dtype,
        "overrides": arguments.overrides,
        "gigabytes": rows["filled"][0]["gigabytes"],
        "seconds": {
            kind: {key: three_digits(value) for key, value in row.items()}
            for kind, row in medians.items()
        },
        "times_as_fast": ratios,
    }


def three_digits(value: float) -> float:
    """Rounded; a small value does not become 0."""
    return float(f"{value:.3g}")


def measure(arguments: argparse.Namespace, kind: str, cache: str) -> dict[str, Any]:
    """One run."""
    dtype = "off" if kind == "off" else arguments.dtype
    options = {
        "experiment": "nuclei",
        "model": "mask_rcnn_edge",
        "backbone": "efficientnet_lite0",
        "backbone.freeze_at": "all",
        "backbone.weights": "package",
        "augment": "none",
        "augment.flip": 0.5,
        "data.root": arguments.data,
        "data.workers": 0,
        "data.train_images": arguments.images,
        "data.val_images": 1,
        "data.image_size": 320,
        "data.cache_dir": cache,
        "data.feature_cache": dtype,
        "trainer.epochs": arguments.epochs,
    }
    given = dict(text.split("=", 1) for text in arguments.overrides)
    config = compose("train", [f"{name}={value}" for name, value in (options | given).items()])
    torch.manual_seed(1)
    data, watch = read_data(config), EpochTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            run_dir=folder,
            callbacks=[watch],
            loggers=[],
            evaluate_every_n_epochs=1,
            **to_dict(config.trainer),
        )
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, RunCheckpoints)]
        trainer.limit_val_batches = 0
        module = build_module(config, data)
        started = time.process_time(), time.perf_counter()
        trainer.fit(module, datamodule=data)
        ended = time.process_time(), time.perf_counter()
    epochs = [
        [b - a for a, b in zip(*times, strict=True)]
        for times in zip(watch.begun[1:], watch.ended[1:], strict=True)
    ]
    return {
        "epoch_cpu": statistics.median(cpu for cpu, _ in epochs),
        "epoch_clock": statistics.median(clock for _, clock in epochs),
        "run_cpu": ended[0] - started[0],
        "run_clock": ended[1] - started[1],
        "gigabytes": None if module.cached is None else three_digits(module.cached.gigabytes),
    }


class EpochTimes(Callback):
    """The processor's time and the clock at the begin and the end of each epoch."""

    def __init__(self) -> None:
        self.begun: list[tuple[float, float]] = []
        self.ended: list[tuple[float, float]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.begun.append((time.process_time(), time.perf_counter()))

    def on_train_epoch_end(self, *_: Any) -> None:
        self.ended.append((time.process_time(), time.perf_counter()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "uint8"), default="bfloat16")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_args()


if __name__ == "__main__":
    main()
