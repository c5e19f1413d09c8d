"""What a short time with a GPU should tell first: each answer is written to OUT/results.jsonl as
soon as it is known.

    python benchmarks/gpu_probe.py --coco DIR --out OUT [--size 800 1344] [--batch 16] [--steps 30]
        [--skip PART ...] [--mode reduce-overhead] [--device cuda] [OPTION=VALUE ...]

DIR holds val2017/ and annotations/instances_val2017.json. The parts, in this order:
    env       the machine, versions, shared memory
    ops       each operator on the device against the CPU: how many answers differ, or by how much
    eager     images a second without compiling, while torch refuses every wait of the host
    compiled  seconds to compile, graph breaks, losses beside those of `eager`
    speed     images a second of compiled steps with one wait at their end, peak memory
    profile   milliseconds a step of each kernel, in OUT/kernels.json
A part that fails leaves a line with its error, the rest goes on, and the exit code is 1. --device
cpu tries the program itself: without waits, profile and autocast.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from arguments import step_parser
from train_step import classes, real_batch

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.measure.timing import autocast
from maskrcnn_lit.model.boxes import batched_nms, nms_per_level
from maskrcnn_lit.model.matching import OBJECT, match
from maskrcnn_lit.model.roi_align import RoIs, roi_align
from maskrcnn_lit.runs.provenance import package_commit
from maskrcnn_lit.training import compile as compiling

MODEL = ("model=mask_rcnn", "backbone=resnet50", "backbone.norm=frozen", "backbone.freeze_at=2")
SLOTS = 32  # of objects an image; train_loop.py has the same, so that both share compiled code
STRIDES = (4, 8, 16, 32)
DRY = "eager"  # the backend on the CPU, where Inductor needs minutes: graphs, run as they are
SMALLEST = 1e-6  # of a loss that the other is divided by
MATCHING = {"object_iou": 0.7, "background_iou": 0.3, "keep_best": True}


def model_options(overrides: list[str]) -> list[str]:
    """`MODEL`, but for what `overrides` name, and these."""
    named = {override.split("=")[0] for override in overrides}
    return [option for option in MODEL if option.split("=")[0] not in named] + overrides


class Probe:
    """A training step of our model on one real batch, and what is asked of it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.cuda = self.device.type == "cuda"
        self.began = time.perf_counter()
        self.losses: dict[str, float] = {}  # of the third step without compiling
        self.failed: list[str] = []  # regions that could not be compiled
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        batch = real_batch(arguments, SLOTS, whole=True)
        self.batch: Batch = {key: value.to(self.device) for key, value in batch.items()}
        self.precision = "bf16-mixed" if self.cuda else "32-true"
        self.reset()

    def reset(self) -> None:
        """The model and its optimizer as they were at first."""
        size = f"data.image_size={list(self.arguments.size)}"
        config = compose("train", [size, *model_options(self.arguments.overrides)])
        torch.manual_seed(0)
        model = build(config.model, num_classes=classes(self.arguments))
        self.model = model.to(device=self.device, memory_format=torch.channels_last).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=self.cuda)

    def step(self) -> dict[str, torch.Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        with autocast(self.precision, self.device):
            losses = self.model(self.batch).losses
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses

    def steps(self, count: int) -> tuple[float, float]:
        """Seconds of a step, and those of them that the host worked. A wait is an error."""
        self.wait()
        if self.cuda:
            torch.cuda.set_sync_debug_mode("error")
        start = time.perf_counter()
        for _ in range(count):
            self.step()
        host = (time.perf_counter() - start) / count
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")
        self.wait()
        return (time.perf_counter() - start) / count, host

    def compiled(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        options = {} if self.cuda else {"backend": DRY}
        return torch.compile(function, fullgraph=True, dynamic=False, **options)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def write(self, part: str, **answers: Any) -> None:
        """One line in results.jsonl."""
        seconds = round(time.perf_counter() - self.began, 1)
        line = json.dumps({"part": part, "at_seconds": seconds, **answers})
        with open(self.arguments.out / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line[:1500], flush=True)

    def speed_of(self, seconds: float, host: float) -> dict[str, Any]:
        return {
            "images_per_second": round(self.arguments.batch / seconds, 1),
            "milliseconds": round(1000 * seconds, 2),
            "host_milliseconds": round(1000 * host, 2),
            "batch": self.arguments.batch,
            "size": list(self.batch["images"].shape[2:]),
            "precision": self.precision,
        }


def env(probe: Probe) -> None:
    card = torch.cuda.get_device_name() if probe.cuda else platform.processor()
    query = "--query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem"
    answer = ""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    probe.write(
        "env",
        date=time.strftime("%Y-%m-%d"),
        device=card,
        nvidia_smi=answer,
        versions={
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
            "cudnn": torch.backends.cudnn.version(),
        },
        cores=len(os.sched_getaffinity(0)),
        shared_memory_gb=round(shutil.disk_usage("/dev/shm").total / 1e9, 1),
        images=list(probe.batch["images"].shape),
        slots=probe.batch["boxes"].shape[1],
        commit=package_commit(),
        overrides=probe.arguments.overrides,
    )


def ops(probe: Probe) -> None:
    """On the same numbers; `compiled` too, since fusing may round otherwise."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(4, 1000, 2, generator=generator) * 600
    boxes = torch.cat([corner, corner + torch.rand(4, 1000, 2, generator=generator) * 150 + 2], -1)
    there = boxes.to(probe.device)
    keep = batched_nms(boxes, 0.7)

    def settle(values: torch.Tensor) -> torch.Tensor:
        return nms_per_level([values], 0.7, static_shapes=True)[0]

    objects, valid = boxes[:, ::31][:, :32].contiguous(), torch.ones(4, 32, dtype=torch.bool)
    given = (boxes + 3, objects, valid, ~valid)
    moved = [values.to(probe.device) for values in given]
    kinds = match(*given, **MATCHING)[1]

    def matched(*values: torch.Tensor) -> torch.Tensor:
        return match(*values, **MATCHING, static_shapes=True)[1]

    maps = [torch.randn(4, 64, 800 // s, 800 // s, generator=generator) for s in STRIDES]
    image = torch.arange(4).repeat_interleave(200)
    rois = boxes[:, :200].reshape(-1, 4)
    (expected,) = roi_align(maps, [RoIs(rois, image, 7)], strides=STRIDES)
    placed = [m.to(probe.device).contiguous(memory_format=torch.channels_last) for m in maps]
    wanted = [RoIs(rois.to(probe.device), image.to(probe.device), 7)]
    (found,) = roi_align(placed, wanted, strides=STRIDES)
    probe.write(
        "ops",
        keeps_that_differ={
            "eager": int((keep != settle(there).cpu()).sum()),
            "compiled": int((keep != probe.compiled(settle)(there).cpu()).sum()),
            "of": keep.numel(),
        },
        kinds_that_differ={
            "eager": int((kinds != matched(*moved).cpu()).sum()),
            "compiled": int((kinds != probe.compiled(matched)(*moved).cpu()).sum()),
            "of": kinds.numel(),
            "objects": int((kinds == OBJECT).sum()),
        },
        roi_align_differs_by=float((expected - found.cpu()).abs().max()),
    )


def eager(probe: Probe) -> None:
    for _ in range(2):
        probe.step()
    probe.losses = {name: loss.item() for name, loss in probe.step().items()}
    probe.write(
        "eager", losses=probe.losses, **probe.speed_of(*probe.steps(5 if probe.cuda else 1))
    )


def compiled(probe: Probe) -> None:
    """From the same weights as `eager`, so that the third step's losses can be compared."""
    probe.reset()
    torch._dynamo.utils.counters.clear()
    compiling.announce = probe.failed.append
    start = time.perf_counter()
    options = {"mode": probe.arguments.mode} if probe.arguments.mode else {}
    if not probe.cuda:
        options["backend"] = DRY
    compiling.compile_regions(probe.model, **options)
    probe.step()
    probe.wait()
    seconds = time.perf_counter() - start
    probe.step()
    losses = {name: loss.item() for name, loss in probe.step().items()}
    apart = {
        name: abs(losses[name] - value) / max(abs(value), SMALLEST)
        for name, value in probe.losses.items()
    }
    counters = torch._dynamo.utils.counters
    probe.write(
        "compiled",
        seconds=round(seconds, 1),
        losses=losses,
        largest_relative_difference=max(apart.values(), default=None),
        graphs=counters["stats"]["unique_graphs"],
        graph_breaks=dict(counters["graph_break"]),
        regions_that_failed=probe.failed,
    )
    if probe.failed:
        raise RuntimeError("a region is not compiled")


def speed(probe: Probe) -> None:
    for _ in range(3):
        probe.step()
    if probe.cuda:
        torch.cuda.reset_peak_memory_stats()
    answers = probe.speed_of(*probe.steps(probe.arguments.steps))
    if probe.cuda:
        answers["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    probe.write(
        "speed",
        compiled=compiling.is_compiled(probe.model) and not probe.failed,
        mode=probe.arguments.mode,
        **answers,
    )


def profile(probe: Probe) -> None:
    if not probe.cuda:
        return
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as events:
        for _ in range(3):
            probe.step()
        probe.wait()
    rows = [(e.key, e.self_device_time_total / 3e3, e.count / 3) for e in events.key_averages()]
    rows.sort(key=lambda row: -row[1])
    total = sum(row[1] for row in rows)
    content = {"milliseconds_a_step": total, "kernels": rows}
    (probe.arguments.out / "kernels.json").write_text(json.dumps(content), encoding="utf-8")
    top = [(key[:80], round(milliseconds, 2), count) for key, milliseconds, count in rows[:40]]
    probe.write("profile", milliseconds_a_step=round(total, 2), top=top)


PARTS = (env, ops, eager, compiled, speed, profile)


def main() -> int:
    parser = step_parser(__doc__, size=(800, 1344), batch=16, steps=30, device="cuda")
    names = [part.__name__ for part in PARTS]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mode", help="of torch.compile")
    parser.add_argument("--skip", nargs="+", choices=names, default=[])
    parser.add_argument("overrides", nargs="*", help="options of train")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    probe = Probe(arguments)
    failed = [part.__name__ for part in PARTS if not _ran(part, probe)]
    return 1 if failed else 0


def _ran(part: Callable[[Probe], None], probe: Probe) -> bool:
    if part.__name__ in probe.arguments.skip:
        return True
    try:
        part(probe)
    except Exception as error:  # whatever it is, the other parts have answers of their own
        traceback.print_exc()
        probe.write(part.__name__, error=f"{type(error).__name__}: {str(error)[:500]}")
        return False
    finally:
        if probe.cuda:
            torch.cuda.set_sync_debug_mode("default")
    return True


if __name__ == "__main__":
    sys.exit(main())
