"""What a run cost: parameters, time, images a second, peak memory, energy, on which device; what
inference costs.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.data.transforms import ImageSize, fitted_sizes
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.storage.images import UnreadableImageError
from maskrcnn_lit.training.devices import device_name, peak_memory_bytes

# Of a time that is measured: so many forward passes, or as many as this time has room for.
ROUNDS, SECONDS = 10, 2.0

WARM_UP = 2  # forward passes before the clock: what a device or a compiler does once is no latency


def run_cost(
    model: nn.Module,
    device: torch.device,
    *,
    seconds: float,
    images: int,
    joules: float | None = None,
) -> dict[str, Any]:
    """The `cost` of result.json. seconds: of training and its validations, on the wall; images:
    trained on in them, by all devices; joules: see `energy_joules`, of the same time.
    """
    return {
        **count_parameters(model),
        "seconds": seconds,
        "images_per_second": images / seconds if seconds > 0 else None,
        "peak_memory_bytes": peak_memory_bytes(device),
        "energy_joules": joules,
        "device": device_name(device),
    }


@torch.no_grad()
def inference_cost(model: nn.Module, one: Batch, several: Batch) -> dict[str, Any]:
    """More of the `cost` of result.json, of `model` in evaluation mode on its device, the images
    being there already: "flops" and "latency_seconds" of a forward pass of the batch `one`, a
    single image of "inference_size" (height, width, as padded), "inference_images_per_second" of
    passes of `several`.

    Times are medians; see `median_seconds` for how long it may take. A compiled model runs as it
    is without compiling: these shapes are met here alone, and each would be compiled for minutes.
    """
    device = one["images"].device
    flops = count_flops(model, one)
    count = len(several["images"])
    with torch.compiler.set_stance("force_eager"):
        latency = median_seconds(lambda: model(one), device)
        seconds = latency if count == 1 else median_seconds(lambda: model(several), device)
    return {
        "flops": flops,
        "latency_seconds": latency,
        "inference_images_per_second": count / seconds,
        "inference_batch": count,
        "inference_size": list(one["images"].shape[-2:]),
    }


def inference_batch(index: AnnotationIndex, image_size: ImageSize, count: int) -> Batch:
    """A batch without targets: `count` times the image of `index` that is of the median area as it
    is evaluated. One that cannot be read is black.
    """
    sizes = fitted_sizes(index.sizes, image_size)
    middle = int(np.argsort(sizes.prod(1), kind="stable")[len(sizes) // 2])
    try:
        image = index.decode(middle)[0]
    except (OSError, UnreadableImageError):
        image = np.zeros((*index.size(middle), 3), np.uint8)
    return image_batch([image] * count, range(count), image_size)


def median_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long `work` takes: the median of up to `ROUNDS` calls that begin within `SECONDS`, and of
    one at least, after `WARM_UP` calls that are not timed.
    """
    for _ in range(WARM_UP):
        work()
    times: list[float] = []
    begin = _now(device)
    while len(times) < ROUNDS and (not times or time.perf_counter() - begin < SECONDS):
        started = time.perf_counter()
        work()
        times.append(_now(device) - started)
    return statistics.median(times)


def _now(device: torch.device) -> float:
    """When the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def energy_joules(devices: Sequence[torch.device]) -> float | None:
    """What these GPUs have used since their driver was loaded, whatever ran on them; None where
    they do not tell: on the CPU, before Volta, and without the package nvidia-ml-py.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or no driver: it has an exception of its own for each
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByUUID(f"GPU-{_uuid(device)}") for device in devices]
        return (
            sum(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000
            if handles
            else None
        )
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _uuid(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """All parameters, each tensor once, and those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trainable = sum(size for size, trained in sizes if trained)
    return {"parameters": sum(size for size, _ in sizes), "trainable_parameters": trainable}


@torch.no_grad()
def count_flops(model: nn.Module, *inputs: Any) -> int:
    """Floating point operations of one forward pass, two for a multiply-add, as torch's
    FlopCounterMode counts them: convolutions and matrix products. Of a Mask R-CNN with masks in all
    its slots, as on a GPU, so that the number tells of the architecture and not of what is found in
    the image.
    """
    more = {"static_shapes": True} if isinstance(model, MaskRCNN) else {}
    # What is compiled calls no operators that could be counted.
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        model(*inputs, **more)
    return counter.get_total_flops()
