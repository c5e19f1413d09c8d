"""A training step (forward, backward, AdamW) of our R50-FPN Mask R-CNN and of torchvision's on the
same real batch.

    python benchmarks/train_step.py --coco DIR [--size 800 1333] [--batch 2] [--steps 5] [--rounds
        3] [--device cpu] [--precision 32-true] [--compile off]

DIR holds val2017/ and annotations/instances_val2017.json. Both models start from the same random
weights, have frozen batch norm, and train res3 to res5. Torchvision's keeps 1000 proposals and
samples 512 regions, and ours has what model=mask_rcnn has at the size of the images: the same at
800 x 1333, fewer at smaller ones (`regions`). Each runs in a process of its own, in turn; the line
that is printed last has the medians, their ratio, and the peak of memory above weights, gradients
and optimizer state.

--compile auto compiles our regions as trainer.compile=auto does, and graphs also has a GPU replay
each as a CUDA graph. Torchvision's model, whose shapes hang on the data, stays as it is.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from arguments import step_parser

MODELS = ("maskrcnn_lit", "torchvision")
WARM_UP = {"off": 1, "auto": 2, "graphs": 4}  # steps: a graph is recorded in the second or third


def main() -> None:
    arguments = parse()
    if arguments.model:
        print(json.dumps(measure(arguments)))
        return
    rows: dict[str, list[dict[str, Any]]] = {model: [] for model in MODELS}
    # Large tensors come from the system and go back to it, so that the resident size is what is in
    # use.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
    }
    for _ in range(arguments.rounds):
        for model in MODELS:
            command = [sys.executable, __file__, *sys.argv[1:], "--model", model]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
            if done.returncode == 0:
                rows[model].append(json.loads(done.stdout.splitlines()[-1]))
                # At once: what fails or is stopped later does not lose it.
                print(json.dumps({"model": model, **rows[model][-1]}), flush=True)
    if not all(rows.values()):
        sys.exit(1)
    seconds = {m: statistics.median(s for row in rows[m] for s in row["seconds"]) for m in MODELS}
    # What the processor did for it: on a machine that others use too, this says more than the
    # clock.
    busy = {m: statistics.median(s for row in rows[m] for s in row["cpu_seconds"]) for m in MODELS}
    memory = {m: statistics.median(row["peak_bytes"] for row in rows[m]) for m in MODELS}
    report = {
        "benchmark": "train_step",
        **{
            key: rows[MODELS[0]][0][key]
            for key in ("device", "threads", "images", "objects", "versions", "commit")
        },
        "regions": {model: rows[model][0]["regions"] for model in MODELS},
        "rounds": arguments.rounds,
        "precision": arguments.precision,
        "compile": arguments.compile,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": {m: round(value, 3) for m, value in seconds.items()},
        "peak_mb": {m: round(value / 2**20) for m, value in memory.items()},
        "cpu_seconds": {m: round(value, 3) for m, value in busy.items()},
        "cpu_ratio": round(busy[MODELS[0]] / busy[MODELS[1]], 3),
        "time_ratio": round(seconds[MODELS[0]] / seconds[MODELS[1]], 3),
        "memory_ratio": round(memory[MODELS[0]] / memory[MODELS[1]], 3),
    }
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    parser = step_parser(__doc__, size=(800, 1333), batch=2, steps=5, device="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--compile", choices=("off", "auto", "graphs"), default="off")
    parser.add_argument(
        "--model", choices=MODELS, help="measure this one here (used by the program itself)"
    )
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step after the first ones, and the peak of memory within a step."""
    import torch
    import torchvision

    from maskrcnn_lit.measure.timing import autocast
    from maskrcnn_lit.runs.provenance import package_commit
    from maskrcnn_lit.training.devices import device_name

    torch.manual_seed(0)
    batch = real_batch(arguments)
    device = torch.device(arguments.device)
    step, parameters, regions = (ours if arguments.model == "maskrcnn_lit" else theirs)(
        batch, device, arguments
    )
    cuda = device.type == "cuda"
    how = {"fused": True} if cuda else {"foreach": False}
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, **how)

    def one() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with autocast(arguments.precision, device):
            loss = sum(step().values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(WARM_UP[arguments.compile]):
        one()
    baseline = reset_peak(device)  # the optimizer's state is there now, and stays
    seconds, busy = time_steps(one, arguments.steps, device)
    peak = read_peak(device) - baseline
    return {
        "seconds": seconds,
        "cpu_seconds": busy,
        "peak_bytes": peak,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "images": list(batch["images"].shape),
        "objects": int(batch["valid"].sum()),
        "regions": regions,
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "commit": package_commit(),
    }


def time_steps(one: Any, steps: int, device: Any) -> tuple[list[float], list[float]]:
    """Seconds of each of so many steps, on the wall and of the processor. A GPU is waited for once,
    at the end, as in a training: there all have the mean.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, busy = [], []
    for _ in range(steps):
        start, began = time.perf_counter(), time.process_time()
        one()
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - began)
    if device.type == "cuda":
        torch.cuda.synchronize()
        seconds = [(time.perf_counter() - start + sum(seconds[:-1])) / steps] * steps
    return seconds, busy


def reset_peak(device: Any) -> int:
    """Forget the peak so far; returns the bytes in use."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident size (Linux)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def read_peak(device: Any) -> int:
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def real_batch(arguments: argparse.Namespace, slots: int = 8, whole: bool = False) -> Any:
    """The images of `--coco` with the most objects up to 20, without crowds, resized: a batch of
    the contract. slots: the fewest of objects. whole: padded to the longest side that there may be.
    """
    import numpy as np

    from maskrcnn_lit.data.buckets import bucket_shapes
    from maskrcnn_lit.data.collate import collate
    from maskrcnn_lit.data.datamodule import CocoDataModule

    part = {"images": "val2017", "annotations": "annotations/instances_val2017.json"}
    data = CocoDataModule(
        name="coco", root=arguments.coco, train=part, val=part, image_size=tuple(arguments.size)
    )
    data.setup("validate")
    dataset = data.val_dataset
    landscape = [
        i for i in range(len(dataset)) if dataset.index.size(i)[0] < dataset.index.size(i)[1]
    ]
    objects = {i: len(dataset.index.annotations(i)["labels"]) for i in landscape}
    crowds = {i: bool(dataset.index.annotations(i)["crowd"].any()) for i in landscape}
    chosen = sorted(
        (i for i in landscape if objects[i] <= 20 and not crowds[i]), key=lambda i: -objects[i]
    )
    images = [dataset[0, chosen[n % len(chosen)]] for n in range(arguments.batch)]
    (shapes,) = bucket_shapes(np.array([sorted(arguments.size)]), tuple(arguments.size), 1)
    return collate(images, shapes if whole else None, slots)


def ours(batch: Any, device: Any, arguments: argparse.Namespace) -> tuple[Any, list[Any], int]:
    import torch

    from maskrcnn_lit.config.compose import build, compose
    from maskrcnn_lit.model.pretrained import convert as weights
    from maskrcnn_lit.training.compile import compile_regions

    options = [
        "model=mask_rcnn",
        "backbone=resnet50",
        "backbone.norm=frozen",
        "backbone.freeze_at=2",
    ]
    config = compose("train", [*options, f"data.image_size={list(arguments.size)}"])
    model = build(config.model, num_classes=classes(arguments))
    weights.load(
        model, weights.from_torchvision(torchvision_model(classes(arguments)).state_dict())
    )  # so that both find the same
    model = model.to(device=device, memory_format=torch.channels_last).train()
    if arguments.compile != "off":
        compile_regions(model, mode="reduce-overhead" if arguments.compile == "graphs" else None)
    moved = {key: value.to(device) for key, value in batch.items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return lambda: model(moved).losses, trained, config.model.box_head.batch_size


def classes(arguments: argparse.Namespace) -> int:
    """As many as `train` has of this data, so that both find the same compiled code."""
    file = arguments.coco / "annotations" / "instances_val2017.json"
    return len(json.loads(file.read_text())["categories"])


def torchvision_model(num_classes: int) -> Any:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    return MaskRCNN(
        backbone, num_classes=1 + num_classes, rpn_post_nms_top_n_train=1000, _skip_resize=True
    )


def theirs(batch: Any, device: Any, arguments: argparse.Namespace) -> tuple[Any, list[Any], int]:
    """Torchvision's model on the same pixels; its masks are of the whole image, as it wants
    them.
    """
    import torch

    model = torchvision_model(classes(arguments)).to(device).train()
    images, targets = [], []
    for i, (height, width) in enumerate(batch["image_sizes"].tolist()):
        valid = batch["valid"][i]
        masks = [
            whole_mask(crop, box, height, width)
            for crop, box in zip(
                batch["masks"][i][valid], batch["mask_boxes"][i][valid].tolist(), strict=True
            )
        ]
        images.append((batch["images"][i, :, :height, :width] / 255).to(device))
        target = {
            "boxes": batch["boxes"][i][valid],
            "labels": batch["labels"][i][valid],
            "masks": torch.stack(masks),
        }
        targets.append({key: value.to(device) for key, value in target.items()})
    trained = [p for p in model.parameters() if p.requires_grad]
    return (
        lambda: model(images, targets),
        trained,
        model.roi_heads.fg_bg_sampler.batch_size_per_image,
    )


def whole_mask(crop: Any, box: list[float], height: int, width: int) -> Any:
    import torch

    x1, y1, x2, y2 = (round(side) for side in box)
    size = (max(y2 - y1, 1), max(x2 - x1, 1))
    mask = torch.zeros(height, width, dtype=torch.uint8)
    pasted = torch.nn.functional.interpolate(crop[None, None], size=size, mode="nearest")[0, 0]
    mask[y1 : y1 + size[0], x1 : x1 + size[1]] = pasted[: height - y1, : width - x1]
    return mask


if __name__ == "__main__":
    main()
