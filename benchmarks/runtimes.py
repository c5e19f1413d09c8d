"""The edge model through its runtimes, beside other detectors: milliseconds from pixels to masks.

    python benchmarks/runtimes.py [--size 320] [--rounds 30] [--threads 1] [--backbones ...]
    [--model mask_rcnn_edge]

All have random weights and 100 detections, since a threshold of 0 fills every slot. Ours run from
an RGB image of --size to 100 COCO RLEs: resize, model, masks. Beside them run two detectors of
torchvision: its lightest, which has no masks, and Mask R-CNN, which pastes masks and encodes none.
Where the package ultralytics is installed, the one-stage segmenter YOLO11n-seg runs as well, with
Ultralytics' own pre- and postprocessing. All take turns, so that a busy machine is so for all; in
its turn each runs twice, and the second run counts, since the others have filled the caches. Prints
one line of JSON: medians and 95th percentiles.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torchvision
from model_cost import image, model
from numpy.typing import NDArray

from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.launch.budget import RUNTIMES, in_runtimes
from maskrcnn_lit.launch.certificate import Detect, of_model
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.training.devices import device_name

Image = NDArray[np.uint8]
CALIBRATION = 8  # images of noise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="mask_rcnn_edge")
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    parser.add_argument("--others", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as folder:
        detectors: dict[str, Callable[[Image], Any]] = {}
        for backbone in arguments.backbones:
            detectors |= ours(arguments, backbone, Path(folder))
        if arguments.others:
            detectors |= torchvision_detectors(arguments.size)
            detectors |= one_stage(arguments.size, Path(folder))
        pixels = pixels_of(arguments.size)
        times = in_turns(detectors, pixels, arguments.rounds, arguments.threads)
    rows = {
        name: {
            "milliseconds": round(statistics.median(values), 1),
            "milliseconds_95": round(float(np.percentile(values, 95)), 1),
        }
        for name, values in times.items()
    }
    report = {
        "benchmark": "runtimes",
        "size": arguments.size,
        "threads": arguments.threads,
        "device": device_name(torch.device("cpu")),
        "versions": package_versions(),
        "python": platform.python_version(),
        "commit": package_commit(),
        "models": rows,
    }
    print(json.dumps(report))


def ours(
    arguments: argparse.Namespace, backbone: str, folder: Path
) -> dict[str, Callable[[Image], Any]]:
    """The model with this backbone in PyTorch, as `load_model` has it, and in each runtime."""
    size = arguments.size
    noise = [pixels_of(size, seed) for seed in range(CALIBRATION)]
    own = model(arguments.model, backbone, size)
    forms = {"PyTorch": of_model(model(arguments.model, backbone, size))}
    forms |= in_runtimes(own, size, [(size, size)], noise, arguments.runtimes, folder / backbone)
    return {f"{arguments.model} {backbone}, {name}": to_masks(f, size) for name, f in forms.items()}


def pixels_of(size: int, seed: int = 0) -> Image:
    return image(size, seed)["images"][0].permute(1, 2, 0).numpy().copy()


def to_masks(detect: Detect, size: int) -> Callable[[Image], Any]:
    """From an RGB image, H W 3, to COCO RLEs."""

    def run(pixels: Image) -> Any:
        batch = image_batch([pixels], [0], size)
        return to_original(detect(batch), batch)

    return run


def torchvision_detectors(size: int) -> dict[str, Callable[[Image], Any]]:
    makers = {
        "torchvision fasterrcnn_mobilenet_v3_large_320_fpn, boxes alone": (
            torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
        ),
        "torchvision maskrcnn_resnet50_fpn": torchvision.models.detection.maskrcnn_resnet50_fpn,
    }
    return {name: torchvision_detector(maker, size) for name, maker in makers.items()}


def torchvision_detector(maker: Callable[..., Any], size: int) -> Callable[[Image], Any]:
    torch.manual_seed(0)
    built = maker(
        weights=None,
        weights_backbone=None,
        min_size=size,
        max_size=size,
        box_score_thresh=0.0,
        rpn_score_thresh=0.0,
    ).eval()

    def run(pixels: Image) -> Any:
        return built([torch.from_numpy(pixels).permute(2, 0, 1) / 255])

    return run


def one_stage(size: int, folder: Path) -> dict[str, Callable[[Image], Any]]:
    """YOLO11n-seg in ONNX Runtime and OpenVINO, where the package is installed."""
    if importlib.util.find_spec("ultralytics") is None:
        return {}
    from ultralytics import YOLO  # type: ignore[import-not-found]
    from yolo import yolo11n_seg

    detectors: dict[str, Callable[[Image], Any]] = {}
    for runtime in ("onnx", "openvino"):
        written = yolo11n_seg().export(format=runtime, imgsz=size)
        own = folder / Path(written).name
        Path(written).rename(own)
        reader = YOLO(str(own), task="segment", verbose=False)

        def run(pixels: Image, reader: Any = reader) -> Any:
            bgr = np.ascontiguousarray(pixels[..., ::-1])
            results = reader.predict(bgr, imgsz=size, conf=0.0, max_det=100, verbose=False)
            assert len(results[0]) == 100
            return results

        detectors[f"YOLO11n-seg, {runtime} f32"] = run
    return detectors


@torch.inference_mode()
def in_turns(
    detectors: dict[str, Callable[[Image], Any]], pixels: Image, rounds: int, threads: int
) -> dict[str, list[float]]:
    """Milliseconds of each round; three rounds before warm up."""
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for round_ in range(-3, rounds):
        for name, run in detectors.items():
            torch.set_num_threads(threads)  # Ultralytics sets its own number as it predicts
            run(pixels)
            start = time.perf_counter()
            run(pixels)
            if round_ >= 0:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    main()
