"""Resolves accelerator, devices and precision of a config; describes the device."""

import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from maskrcnn_lit.errors import UserError, check_whole, plural


def peak_memory_bytes(device: torch.device) -> int:
    """On CUDA the peak memory of tensors, elsewhere the peak resident size of this process,
    including libraries: since its start, or since `reset_peak_memory`.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = _proc_bytes(Path("/proc/self/status"), "VmHWM")  # getrusage has that of the parent, too
    if peak is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from now on. On the CPU only Linux can; elsewhere the peak
    stays.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def free_memory_bytes(devices: Sequence[int] = ()) -> int:
    """The memory that is free now: of the GPU with the least, of those with the numbers
    `devices`; without any, of the machine, or of the control group (a container, a job of SLURM)
    with the least. Memory of this process is not free.
    """
    if devices:
        return min(torch.cuda.mem_get_info(number)[0] for number in devices)
    free = _proc_bytes(Path("/proc/meminfo"), "MemAvailable")
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free, *_free_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _proc_bytes(file: Path, name: str) -> int | None:
    """A size in a file of Linux's /proc; None: there is none."""
    lines = file.read_text().splitlines() if file.is_file() else []
    values = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return next((1024 * int(value) for value in values), None)


def _free_in_groups(own: Path, mount: Path) -> Iterator[int]:
    """What is left of each memory limit on this process (control groups, version 2), with the
    cache of files. own: a file with the name of its group; mount: the folder of all groups.
    """
    lines = own.read_text().splitlines() if own.is_file() else []
    name = next((line[3:] for line in lines if line.startswith("0::")), None)
    if name is None:
        return
    folder = mount / name.lstrip("/")
    for group in (folder, *folder.parents):
        if (group / "memory.max").is_file():
            limit = (group / "memory.max").read_text().strip()
            if limit != "max":
                stat = dict(
                    line.split() for line in (group / "memory.stat").read_text().splitlines()
                )
                used = int((group / "memory.current").read_text())
                yield int(limit) - used + int(stat["inactive_file"])  # the cache of files
        if group == mount:
            return


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the CPU with PyTorch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_processor()} ({plural(torch.get_num_threads(), 'thread')})"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")


def count_devices(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """The number of processes on this machine for trainer.accelerator and trainer.devices; "auto":
    one for each GPU, or one on the CPU; a list: the GPUs with these numbers.
    """
    if not isinstance(devices, (int, str)):
        resolve_accelerator(accelerator, devices)
        return len(devices)
    if isinstance(devices, int):
        check_whole(1, trainer__devices=devices)
        resolve_accelerator(accelerator, devices)
        return devices
    if devices != "auto":
        raise UserError(f"trainer.devices={devices} must be a number or auto")
    return torch.cuda.device_count() if resolve_accelerator(accelerator, 1) == "gpu" else 1


def device_numbers(accelerator: str, devices: int | str | Sequence[int]) -> list[int]:
    """The numbers of the GPUs that a run with these options uses on this machine; none on the
    CPU.
    """
    if resolve_accelerator(accelerator, devices) == "cpu":
        return []
    if not isinstance(devices, (int, str)):
        return list(devices)
    return list(range(count_devices(accelerator, devices)))


def resolve_accelerator(
    accelerator: str, devices: int | str | Sequence[int], *, option: str = "trainer.accelerator"
) -> str:
    """Resolve auto|cpu|gpu to "cpu" or "gpu". UserError unless the requested devices exist.
    `option`: the option's name, for messages.
    """
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"{option}={accelerator} is unknown: use auto, cpu or gpu")
    numbers = None if isinstance(devices, (int, str)) else list(devices)
    if numbers is None and devices != "auto":
        check_whole(1, trainer__devices=devices)
    available = torch.cuda.device_count()
    if accelerator == "gpu" and not available:
        raise UserError(
            f"{option}=gpu, but torch {torch.__version__} sees no CUDA device here: use "
            f"{option}=cpu, or install a "
            "CUDA build of torch and its driver"
        )
    if numbers is not None and (accelerator == "cpu" or not set(numbers) <= set(range(available))):
        there = (
            f"the CUDA devices here are 0 to {available - 1}"
            if available
            else "this machine has none"
        )
        raise UserError(
            f"trainer.devices={numbers} are numbers of GPUs, but "
            f"{f'{option}=cpu' if accelerator == 'cpu' else there}: use trainer.devices=1"
        )
    use_gpu = accelerator == "gpu" or (accelerator == "auto" and available > 0)
    if use_gpu and isinstance(devices, int) and devices > available:
        raise UserError(
            f"trainer.devices={devices}, but there are {available} CUDA devices: use "
            f"trainer.devices={available}"
        )
    return "gpu" if use_gpu else "cpu"


def resolve_precision(
    precision: str | int, accelerator: str, *, option: str = "trainer.precision"
) -> str:
    """Lightning's name of the precision; "auto" is bf16-mixed on a GPU with native bfloat16
    (compute capability 8.0, an A100, and later), 16-mixed on an older GPU, and 32-true on the CPU.
    """
    precision = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(
        str(precision), str(precision)
    )
    if precision not in PRECISIONS:
        raise UserError(f"{option}={precision} is unknown: use {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and accelerator == "cpu":
        raise UserError(f"{option}=16-mixed needs a GPU: use {option}=auto")
    if precision != "auto":
        return precision
    if accelerator == "cpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"
