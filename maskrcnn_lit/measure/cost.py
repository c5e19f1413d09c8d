"""The cost of a run (parameters, time, images per second, peak memory, energy, device) and of
inference.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.storage.images import UnreadableImageError
from maskrcnn_lit.training.devices import device_name, peak_memory_bytes

# Limits of a measurement: number of forward passes, and total time.
ROUNDS, SECONDS = 10, 2.0

WARM_UP = 2  # untimed forward passes, for one-time work of the device or compiler


def run_cost(
    model: nn.Module,
    device: torch.device,
    *,
    seconds: float,
    images: int,
    joules: float | None = None,
) -> dict[str, Any]:
    """The `cost` of result.json. seconds: wall time of training and its validations; images:
    trained on in that time, by all devices; joules: energy in that time, see `energy_joules`.
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
    """The inference part of `cost` in result.json, for `model` in evaluation mode with images
    already on its device: "flops" and "latency_seconds" of a forward pass of the batch `one`, a
    single image of "inference_size" (padded height, width), and "inference_images_per_second" of
    passes of `several`.

    Times are medians; see `median_seconds` for the duration. A compiled model runs uncompiled:
    these shapes occur only here, and compiling each would take minutes.
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
    """A batch without targets: `count` copies of the image of `index` with the median area after
    the resize. An unreadable image is black.
    """
    sizes = fitted_sizes(index.sizes, image_size)
    middle = int(np.argsort(sizes.prod(1), kind="stable")[len(sizes) // 2])
    try:
        image = index.decode(middle)[0]
    except (OSError, UnreadableImageError):
        image = np.zeros((*index.size(middle), 3), np.uint8)
    return image_batch([image] * count, range(count), image_size)


def median_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median time of `work`: of up to `ROUNDS` calls that begin within `SECONDS`, at least one,
    after `WARM_UP` untimed calls.
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
    """The time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def energy_joules(devices: Sequence[torch.device]) -> float | None:
    """The energy in joules that these GPUs have used since their driver was loaded, by all
    programs; None if unavailable: on the CPU, before Volta, and without the package nvidia-ml-py.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or no driver: each has another exception
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
    """The numbers of all parameters, counting each tensor once, and of trainable ones."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trainable = sum(size for size, trained in sizes if trained)
    return {"parameters": sum(size for size, _ in sizes), "trainable_parameters": trainable}


@torch.no_grad()
def count_flops(model: nn.Module, *inputs: Any) -> int:
    """Floating point operations of one forward pass, two for a multiply-add, as torch's
    FlopCounterMode counts them: convolutions (deformable ones without their interpolation) and
    matrix products. A Mask R-CNN computes masks in
    all slots, as on a GPU, so the number depends on the architecture, not on the detections in the
    image.
    """
    more = {"static_shapes": True} if isinstance(model, MaskRCNN) else {}
    # Compiled code calls no operators that can be counted.
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deformable_flops}
    )
    with torch.compiler.set_stance("force_eager"), counter:
        model(*inputs, **more)
    return counter.get_total_flops()


def _deformable_flops(x: list[int], weight: list[int], *_: Any, **more: Any) -> int:
    """Of shapes: those of a plain convolution."""
    return conv_flop_count(x, weight, more["out_shape"])
