"""What a run cost: parameters, time, images a second, peak memory, and on which device."""

import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def run_cost(model: nn.Module, device: torch.device, *, seconds: float, images: int) -> dict[str, Any]:
    """The `cost` of result.json. seconds: of training, on the wall; images: trained on in them, by all
    devices."""
    return {
        **count_parameters(model),
        "seconds": seconds,
        "images_per_second": images / seconds if seconds > 0 else None,
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": device_name(device),
    }


def count_parameters(model: nn.Module) -> dict[str, int]:
    """All parameters, each tensor once, and those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trainable = sum(size for size, trained in sizes if trained)
    return {"parameters": sum(size for size, _ in sizes), "trainable_parameters": trainable}


@torch.no_grad()
def count_flops(model: nn.Module, *inputs: Any) -> int:
    """Floating point operations of one forward pass, two for a multiply-add, as torch's FlopCounterMode counts them:
    convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def peak_memory_bytes(device: torch.device) -> int | None:
    """On CUDA the most that tensors held at once since the process began or
    `torch.cuda.reset_peak_memory_stats`; elsewhere the largest resident size of this process, libraries
    included (None where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor with the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_processor()} ({torch.get_num_threads()} threads)"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
