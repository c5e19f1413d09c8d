"""Parameters, FLOPs and CPU latency of whole models at one image size: what light heads save.

    python benchmarks/model_cost.py [--size 320] [--rounds 15] [--models
    mask_rcnn,mobilenet_v3_large ...]

A model is MODEL,BACKBONE of conf/. FLOPs (two for a multiply-add) are counted while it detects on
one square image of noise, with every region slot full, as in the first steps of a training; latency
is the median over rounds in which the models take turns, on one thread. Prints one line of JSON.
"""

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
import torchvision

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.measure.cost import count_flops, count_parameters
from maskrcnn_lit.runs.provenance import package_commit
from maskrcnn_lit.training.devices import device_name

MODELS = (
    "mask_rcnn,mobilenet_v3_large",
    "mask_rcnn_light,mobilenet_v3_large",
    "mask_rcnn,resnet50",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", default=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batch = image(arguments.size)
    models = {name: model(*name.split(","), arguments.size) for name in arguments.models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(arguments.rounds + 1):  # the first warms up
        for name, built in models.items():
            start = time.perf_counter()
            with torch.inference_mode():
                built(batch)
            if round_:
                seconds[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "parameters": count_parameters(built)["parameters"],
            "gflops": round(count_flops(built, batch) / 1e9, 2),
            "milliseconds": round(1000 * statistics.median(seconds[name]), 1),
        }
        for name, built in models.items()
    }
    report = {
        "benchmark": "model_cost",
        "size": arguments.size,
        "device": device_name(torch.device("cpu")),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "python": platform.python_version(),
        "commit": package_commit(),
        "models": rows,
    }
    print(json.dumps(report))


def model(name: str, backbone: str, size: int) -> Any:
    torch.manual_seed(0)
    options = [f"model={name}", f"backbone={backbone}", f"data.image_size={size}"]
    config = compose("train", [*options, "model.box_head.score_threshold=0.0"])
    built = build(config.model, num_classes=80)
    return built.to(memory_format=torch.channels_last).eval()


def image(size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
    return {"images": images, "image_sizes": torch.tensor([[size, size]])}


if __name__ == "__main__":
    main()
