"""Inference of our R50-FPN Mask R-CNN and of torchvision's on the same real images with the same
weights.

    python benchmarks/inference.py --coco DIR [--detections 30] [--images 6] [--rounds 5] [--device
    cpu] [--compile]

DIR holds val2017/; its first images of 480 x 640 pixels are taken. The models take turns, on one
thread. Torchvision's is eager, and gives masks of the whole image; ours is what `load_model` makes,
and gives COCO RLEs of the whole image. Both are measured from 8-bit pixels to these. `unchanged` is
ours without `for_inference`, `compiled` with its backbone, pyramid and RPN under torch.compile.

The weights are random, so each layer is scaled on the images themselves until its outputs have a
mean of 0 and a standard deviation of 1 (Mishkin and Matas 2016): then one object differs from
another as much as in a trained network, and rounding errors do not grow. The bias of the background
is what gives so many detections an image. Which of them are right is told by torchvision's model in
float64: `reproduced` is the share of its detections that a model in float32 has too, with the same
label, an IoU over 0.99 and a score that differs by less than 0.01.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import box_iou

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.storage.image_inputs import list_inputs
from maskrcnn_lit.training.devices import device_name

HEIGHT, WIDTH = 480, 640
SPREAD = {
    "cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.2,
    "cls_score": 2.0,
    "box_predictor.bbox_pred": 0.5,
    "fcn_logits": 2,
}
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
Find = Callable[[np.ndarray], dict[str, Tensor]]


def main() -> None:
    arguments = parse()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # the clock is that of the process
    images = real_images(arguments)
    theirs = torchvision_model(images, arguments.detections)
    exact = [on_torchvision(copy.deepcopy(theirs).double(), device)(image) for image in images]
    models: dict[str, Find] = {
        "torchvision": on_torchvision(theirs, device),
        "maskrcnn_lit": on_ours(for_inference(ours(theirs).to(device))),
        "unchanged": on_ours(ours(theirs).to(device)),
    }
    if arguments.compile:
        models["compiled"] = on_ours(compiled(ours(theirs).to(device)))
    with torch.inference_mode():
        found = {
            name: [find(image) for image in images] for name, find in models.items()
        }  # this warms up, too
        seconds, busy = measure(models, images, arguments.rounds, device)
    report = {
        "benchmark": "inference",
        "images": len(images),
        "size": [HEIGHT, WIDTH],
        "batch": 1,
        "rounds": arguments.rounds,
        "device": device_name(device),
        "date": time.strftime("%Y-%m-%d"),
        "detections": [len(one["scores"]) for one in exact],
        "reproduced": {name: agreement(exact, rows) for name, rows in found.items()},
        "milliseconds": {name: round(1000 * value) for name, value in seconds.items()},
        "cpu_milliseconds": {name: round(1000 * value) for name, value in busy.items()},
        "times_torchvision": {
            name: round(seconds["torchvision"] / value, 2) for name, value in seconds.items()
        },
        "cpu_times_torchvision": {
            name: round(busy["torchvision"] / value, 2) for name, value in busy.items()
        },
        **{"versions": package_versions(), "commit": package_commit()},
    }
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument(
        "--detections",
        type=float,
        default=30,
        help="an image, on average, as near as a bias can come",
    )
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def real_images(arguments: argparse.Namespace) -> list[np.ndarray]:
    every = (source.read() for source in list_inputs(arguments.coco / "val2017"))
    fitting = (image for image in every if image is not None and image.shape[:2] == (HEIGHT, WIDTH))
    return [image for image, _ in zip(fitting, range(arguments.images), strict=False)]


def pixels(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1) / 255


@torch.no_grad()
def torchvision_model(images: list[np.ndarray], detections: float) -> nn.Module:
    """Its random weights, made so that it finds something: see above."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=HEIGHT, max_size=WIDTH
    )
    pictures = [pixels(image) for image in images]
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # the statistics of the images themselves
    model.train().backbone(model.transform(pictures)[0].tensors)
    heads = [
        (name, m)
        for name, m in model.named_modules()
        if not name.startswith("backbone.body") and isinstance(m, LAYERS)
    ]
    hooks = [layer.register_forward_hook(rescaling(name)) for name, layer in heads]
    model.eval()(pictures)
    for hook in hooks:
        hook.remove()
    set_background(model, pictures, detections)
    return model


def rescaling(name: str) -> Callable[..., Tensor | None]:
    """A hook: when the layer is first called, its outputs get a mean of 0 and the standard
    deviation wanted.
    """
    spread = next((value for part, value in SPREAD.items() if part in name), 1.0)
    done: list[bool] = []

    def hook(layer: Any, inputs: Any, output: Tensor) -> Tensor | None:
        if done or len(output) == 0:
            return None
        done.append(True)
        channels = output.movedim(1, 0).flatten(1)
        mean, scale = channels.mean(1), spread / channels.std(1)
        across = (
            1 if isinstance(layer, nn.ConvTranspose2d) else 0
        )  # the dimension of its weights that is the output's
        shape = [-1 if n == across else 1 for n in range(layer.weight.ndim)]
        layer.weight.mul_(scale.view(shape))
        layer.bias.sub_(mean).mul_(scale)
        shape = [-1 if n == 1 else 1 for n in range(output.ndim)]
        return (output - mean.view(shape)) * scale.view(shape)

    return hook


def set_background(model: Any, pictures: list[Tensor], detections: float) -> None:
    """The bias of the background that leaves so many detections an image, by bisection."""
    heads, seen = model.roi_heads, []
    keep = heads.box_predictor.register_forward_hook(
        lambda layer, inputs, output: seen.append(output)
    )
    proposals = []
    watch = model.rpn.register_forward_hook(
        lambda layer, inputs, output: proposals.append(output[0])
    )
    for picture in pictures:
        model([picture])
    keep.remove(), watch.remove()
    low, high = -10.0, 30.0
    for _ in range(10):
        bias = (low + high) / 2
        count = 0
        for (logits, deltas), boxes in zip(seen, proposals, strict=True):
            shifted = logits.clone()
            shifted[:, 0] += bias
            count += len(
                heads.postprocess_detections(shifted, deltas, boxes, [(HEIGHT, WIDTH)])[0][0]
            )
        low, high = (bias, high) if count > detections * len(pictures) else (low, bias)
    heads.box_predictor.cls_score.bias[0] += high


def ours(theirs: nn.Module) -> Any:
    config = compose("train", ["model=torchvision_v1", "backbone=resnet50", "backbone.norm=frozen"])
    model = build(config.model, num_classes=90)
    weights.load(model, weights.from_torchvision(theirs.state_dict()))
    return model.to(memory_format=torch.channels_last).eval()


def compiled(model: Any) -> Any:
    for part in (model.backbone, model.fpn, model.rpn):
        part.compile(dynamic=False)
    return model


def on_torchvision(model: Any, device: torch.device) -> Find:
    model = model.to(device).eval()
    dtype = next(model.parameters()).dtype

    def find(image: np.ndarray) -> dict[str, Tensor]:
        torch.set_default_dtype(dtype)  # it makes its boxes' tensors by it
        try:
            return model([pixels(image).to(device, dtype)])[0]
        finally:
            torch.set_default_dtype(torch.float32)

    return find


def on_ours(model: Any) -> Find:
    def find(image: np.ndarray) -> dict[str, Tensor]:
        batch = image_batch([image], [0], (HEIGHT, WIDTH))
        output = model({key: value.to(model.mean.device) for key, value in batch.items()})
        (found,) = to_original(output.detections, batch)
        return {key: torch.from_numpy(found[key]) for key in ("boxes", "scores", "labels")}

    return find


def measure(
    models: dict[str, Find], images: list[np.ndarray], rounds: int, device: torch.device
) -> list[dict[str, float]]:
    """Median seconds an image, by the clock and by the processor, of models that take turns."""
    seconds, busy = ({name: [] for name in models} for _ in range(2))
    for _ in range(rounds):
        for image in images:
            for name, find in models.items():
                start, began = time.perf_counter(), time.process_time()
                find(image)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - began)
    return [
        {name: statistics.median(row) for name, row in rows.items()} for rows in (seconds, busy)
    ]


def agreement(exact: list[dict[str, Tensor]], found: list[dict[str, Tensor]]) -> dict[str, float]:
    """Of the detections of `exact` the share that is in `found`, and how far boxes (px) and scores
    of these are off.
    """
    hits, boxes, scores = 0, [0.0], [0.0]
    for want, have in zip(exact, found, strict=True):
        want, have = (
            {key: one[key].cpu().double() for key in ("boxes", "labels", "scores")}
            for one in (want, have)
        )
        if not len(want["scores"]) or not len(have["scores"]):
            continue  # torch has no maximum of nothing
        alike = want["labels"][:, None] == have["labels"]
        overlap, index = (box_iou(want["boxes"], have["boxes"]) * alike).max(1)
        off = (want["scores"] - have["scores"][index]).abs()
        same = (overlap > 0.99) & (off < 0.01)
        hits += int(same.sum())
        boxes += (want["boxes"] - have["boxes"][index])[same].abs().flatten().tolist()
        scores += off[same].tolist()
    total = sum(len(one["scores"]) for one in exact)
    return {
        "share": round(hits / max(total, 1), 4),
        "box_off": round(max(boxes), 5),
        "score_off": round(max(scores), 6),
        "detections": sum(len(one["scores"]) for one in found),
    }


if __name__ == "__main__":
    main()
