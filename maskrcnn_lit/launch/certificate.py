"""The proof that comes with an exported file: parity, AP, latency and memory beside PyTorch's."""

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskrcnn_lit.data.batch import TARGET_KEYS, Batch
from maskrcnn_lit.data.buckets import Shape
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.dataset import CocoDataset, image_batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.bootstrap import differences, intervals
from maskrcnn_lit.evaluation.coco.matching import Matches
from maskrcnn_lit.evaluation.coco.scores import (
    DetectionCollector,
    Scores,
    match_all,
    of_images,
    score_matches,
)
from maskrcnn_lit.export import client
from maskrcnn_lit.export.parity import SWAPPED_POINTS, Parity
from maskrcnn_lit.export.runtime import ExportedModel
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.postprocess import to_original

REAL_IMAGES = 16  # for the parity
TIMED, WARMUP = 30, 3  # images for the latency
F32_AP_BOUND, INT8_MASK_AP_BOUND = 0.0005, 0.005

Detect = Callable[[Batch], dict[str, Tensor]]


class Scored(NamedTuple):
    """images: how many were scored; results: COCO results."""

    scores: Scores
    matches: dict[str, Matches]
    results: list[dict[str, Any]]
    images: int


def batches(dataset: CocoDataset, sizes: Sequence[Shape], count: int | None) -> Iterator[Batch]:
    """The first `count` images, each alone and without targets, padded to the smallest of `sizes`
    that is large enough.
    """
    for i in range(len(dataset) if count is None else min(count, len(dataset))):
        yield one(dataset, i, sizes)


def one(dataset: CocoDataset, i: int, sizes: Sequence[Shape]) -> Batch:
    """Image i as `batches` gives it. UserError: no size is large enough."""
    sample = dataset[(0, i)]
    height, width = sample["images"].shape[-2:]
    if not any(height <= h and width <= w for h, w in sizes):
        raise UserError(
            f"{dataset.index.where(i)} is {height}x{width} pixels after the resize, larger "
            f"than sizes=[{','.join(f'{h}x{w}' for h, w in sizes)}]: add a size for it"
        )
    batch = collate([sample], list(sizes))
    return {key: value for key, value in batch.items() if key not in TARGET_KEYS}


@torch.no_grad()
def parity(model: MaskRCNN, exported: ExportedModel, real: Sequence[Batch]) -> dict[str, Parity]:
    """On real images, on a black one, and on the one that fills the most slots, by name.

    The model computes in float64: in float32 its own rounding would count as the file's (7.6e-6 of
    a score in an EfficientNet, beside 9.1e-6 of the file).
    """
    expected = in_double(model)
    blank = {key: torch.zeros_like(value) for key, value in real[0].items()}
    blank["image_sizes"] = real[0]["image_sizes"]
    swapped = 0.0 if model.mask_refine is None else SWAPPED_POINTS
    parities = {}
    for name, images in (("real", real), ("blank", [blank]), ("full", [fullest(model, real)])):
        parities[name] = Parity()
        for batch in images:
            parities[name].add(
                expected(batch),
                of_exported(exported)(batch),
                exported.metadata.score_threshold,
                swapped,
            )
    return parities


@torch.no_grad()
def fullest(model: MaskRCNN, real: Sequence[Batch]) -> Batch:
    """The image with the most detections of some: each real one, mosaics of all of them, noise."""
    size = real[0]["images"].shape[-2:]
    candidates = [batch["images"][0] for batch in real if batch["images"].shape[-2:] == size]
    pixels = [image.permute(1, 2, 0).numpy() for image in candidates]
    mosaics = [_mosaic(pixels, size, side) for side in (2, 3, 4)]
    noise = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0))
    candidates += [*mosaics, noise.to(torch.uint8)]
    best, most = real[0], -1
    for image in candidates:
        batch = {"images": image[None], "image_sizes": torch.tensor([list(size)])}
        count = int(of_model(model)(batch)["valid"].sum())
        if count > most:
            best, most = batch, count
    return best


def _mosaic(images: Sequence[NDArray[np.uint8]], size: Sequence[int], side: int) -> Tensor:
    """side x side of the images, shrunk, as one of `size`: 3 H W."""
    whole = np.zeros((*size, 3), np.uint8)
    height, width = size[0] // side, size[1] // side
    for n in range(side * side):
        y, x = n // side * height, n % side * width
        small = Image.fromarray(images[n % len(images)]).resize((width, height))
        whole[y : y + height, x : x + width] = np.asarray(small)
    return torch.from_numpy(whole).permute(2, 0, 1)


@torch.no_grad()
def score(
    detect: Detect, images: Iterator[Batch], index: AnnotationIndex, limits: Sequence[int]
) -> Scored:
    """COCO AP of what `detect` gives on these images."""
    collector = DetectionCollector()
    for batch in images:
        collector.add(to_original(detect(batch), batch), batch["readable"].tolist())
    truth = of_images(index.coco_ground_truth(), collector.by_image)
    results = collector.results(index.categories)
    matches = match_all(truth, results, limits[-1], collector.has_masks)
    scores = score_matches(matches, truth["categories"], limits)
    return Scored(scores, matches, results, len(collector.by_image))


def compare_ap(original: Scored, exported: Scored) -> dict[str, Any]:
    """AP of both, and the paired bootstrap over images of their difference."""
    return {
        "original": original.scores.metrics,
        "exported": exported.scores.metrics,
        "intervals": intervals(exported.matches),
        "differences": differences(exported.matches, original.matches),
    }


@torch.inference_mode()
def latency(
    detectors: Mapping[str, Detect],
    images: Sequence[NDArray[np.uint8]],
    image_size: Any,
    count: int = TIMED,
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of resize, model, masks and all, [median, 95th percentile], of each detector:
    from one of `images` (H W 3) to COCO RLEs. They take turns, so that a busy machine is so for
    all.
    """
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in detectors}
    for n in range(WARMUP + count):
        image = images[n % len(images)]
        for name, detect in detectors.items():
            times = [time.perf_counter()]
            batch = image_batch([image], [0], image_size)
            times.append(time.perf_counter())
            detections = detect(batch)
            times.append(time.perf_counter())
            to_original(detections, batch)
            times.append(time.perf_counter())
            if n < WARMUP:
                continue
            spans = [*np.diff(times).tolist(), times[-1] - times[0]]
            for stage, seconds in zip(("resize", "model", "masks", "all"), spans, strict=True):
                rows[name].setdefault(stage, []).append(1000 * seconds)
    return {
        name: {
            stage: np.percentile(values, [50, 95]).round(2).tolist()
            for stage, values in own.items()
        }
        for name, own in rows.items()
    }


# What a process of its own runs to measure its memory, with FILE PICTURE as arguments.
CLIENT = f"""
import runpy
runpy.run_path({client.__file__!r}, run_name="__main__")
"""
PROGRAM = """
import sys
import numpy as np
from PIL import Image
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.export.runtime import open_exported
model = open_exported(sys.argv[1], trust=["pt2"])
image = np.asarray(Image.open(sys.argv[2]).convert("RGB"))
model(image_batch([image], [0], model.metadata.image_size))
"""
PEAK = """
print([line.split()[1] for line in open("/proc/self/status") if line[:6] == "VmHWM:"][0])
"""


def peak_bytes(file: Path, image: NDArray[np.uint8], folder: Path) -> int | None:
    """The largest resident size of a process that runs `file` on one image: by client.py alone, or
    a .pt2 by this package. None: where the system does not report it.
    """
    if not Path("/proc/self/status").is_file():
        return None
    picture = folder / "image.png"
    Image.fromarray(image).save(picture)
    code = (PROGRAM if file.suffix == ".pt2" else CLIENT) + PEAK
    words = [sys.executable, "-c", code, str(file), str(picture)]
    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ))
    picture.unlink()
    if done.returncode:
        raise UserError(f"{file} does not run in a new process: {done.stderr.strip()[-300:]}")
    return int(done.stdout.splitlines()[-1]) * 1024


def bounds(precision: str, parities: dict[str, Parity], ap: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bound of the certificate: "name", "value", "bound", "holds"."""
    rows: list[dict[str, Any]] = []
    if precision == "f32":
        for name, own in parities.items():
            faults = "; ".join(own.broken()) or "equal"
            rows.append(
                {
                    "name": f"parity, {name}",
                    "value": faults,
                    "bound": "equal",
                    "holds": faults == "equal",
                }
            )
        limits = {"val/box_ap": F32_AP_BOUND, "val/mask_ap": F32_AP_BOUND}
    else:
        limits = {main_metric(ap["differences"]): INT8_MASK_AP_BOUND}
    for name, limit in limits.items():
        if name in ap["differences"]:
            value = ap["differences"][name]["value"]
            # An export in 8 bits may score better; one in float32 is the same model.
            apart = abs(value) if precision == "f32" else -value
            holds = apart <= limit  # NaN, without an object in the images, proves nothing
            rows.append({"name": name, "value": value, "bound": limit, "holds": holds})
    return rows


def main_metric(metrics: Mapping[str, Any]) -> str:
    """The name of the mask AP, or of the box AP of a model without masks."""
    return "val/mask_ap" if "val/mask_ap" in metrics else "val/box_ap"


def parity_record(parities: dict[str, Parity]) -> dict[str, Any]:
    return {name: asdict(own) for name, own in parities.items()}


def of_model(model: MaskRCNN) -> Detect:
    return lambda batch: model.marked(model.infer(batch["images"], batch["image_sizes"]))


def in_double(model: MaskRCNN) -> Detect:
    """A copy of the model that computes in float64."""
    detect = of_model(copy.deepcopy(model).double())

    def in_float64(batch: Batch) -> dict[str, Tensor]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return detect(batch)
        finally:
            torch.set_default_dtype(before)

    return in_float64


def of_exported(exported: ExportedModel) -> Detect:
    def detect(batch: Batch) -> dict[str, Tensor]:
        return exported(batch).detections or {}

    return detect


def first_images(index: AnnotationIndex, count: int = TIMED) -> list[NDArray[np.uint8]]:
    """The pixels of the first `count` images, H W 3."""
    return [index.decode(i)[0] for i in range(min(len(index), count))]


def val_index(data: CocoDataModule) -> AnnotationIndex:
    """The validation images, which must hold at least one."""
    index = data.val_index
    if index is None or not len(index):
        raise UserError("the validation data has no image: give data with one")
    return index
