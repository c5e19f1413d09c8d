"""Accelerator, devices and precision as a config names them."""

import mmap
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training import devices
from maskrcnn_lit.training.devices import (
    count_devices,
    device_name,
    device_numbers,
    free_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
    resolve_accelerator,
    resolve_precision,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "text"), [(1, "(1 thread)"), (2, "(2 threads)")])
def test_the_name_of_the_cpu_has_its_threads(monkeypatch: Any, count: int, text: str):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert device_name(CPU).endswith(f" {text}")


@pytest.mark.parametrize(
    ("given", "accelerator", "capability", "expected"),
    [
        ("auto", "cpu", (0, 0), "32-true"),
        ("auto", "gpu", (7, 0), "16-mixed"),  # V100
        ("auto", "gpu", (7, 5), "16-mixed"),  # T4: torch emulates bfloat16 there, slowly
        ("auto", "gpu", (8, 0), "bf16-mixed"),  # A100
        ("auto", "gpu", (9, 0), "bf16-mixed"),
        (32, "gpu", (9, 0), "32-true"),
        ("bf16-mixed", "cpu", (0, 0), "bf16-mixed"),
    ],
)
def test_precision(
    monkeypatch: Any, given: Any, accelerator: str, capability: tuple[int, int], expected: str
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_precision(given, accelerator) == expected


@pytest.mark.parametrize(
    ("given", "found", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "gpu"), ("cpu", 2, "cpu"), ("gpu", 2, "gpu")],
)
def test_accelerator(monkeypatch: Any, given: str, found: int, expected: str):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert resolve_accelerator(given, 1) == expected


def test_more_devices_than_there_are(monkeypatch: Any):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        UserError, match=r"trainer.devices=4, but there are 2 CUDA devices: use trainer.devices=2"
    ):
        resolve_accelerator("gpu", 4)


@pytest.mark.parametrize(
    ("accelerator", "numbers", "message"),
    [
        (
            "auto",
            [0, 2],
            r"trainer.devices=\[0, 2\] are numbers of GPUs, but the CUDA devices here are 0 to 1",
        ),
        ("gpu", [5], r"the CUDA devices here are 0 to 1: use trainer.devices=1"),
        ("cpu", [0], r"numbers of GPUs, but trainer.accelerator=cpu: use trainer.devices=1"),
    ],
)
def test_gpus_by_number_that_are_not_there(
    monkeypatch: Any, accelerator: str, numbers: list[int], message: str
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=message):
        count_devices(accelerator, numbers)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        UserError, match=r"trainer.devices=\[1\] are numbers of GPUs, but this machine has none"
    ):
        count_devices("auto", [1])


def test_gpus_by_number(monkeypatch: Any):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert count_devices("auto", [3]) == 1
    assert count_devices("gpu", [0, 2]) == 2
    assert resolve_accelerator("auto", [1, 3]) == "gpu"


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_peak_memory_of_the_process_is_in_bytes() -> None:
    with open("/proc/self/status") as status:
        high_water = (
            next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
        )
    peak = peak_memory_bytes(CPU)
    assert 0.99 < peak / high_water < 1.01


@pytest.mark.gpu
def test_cuda_peak_is_of_tensors_and_the_device_is_named() -> None:
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory_bytes(device)
    held = torch.ones(25_000_000, device=device)
    del held
    peak = peak_memory_bytes(device)
    assert before is not None
    assert peak is not None
    assert peak >= before + 100_000_000 * 0.99
    assert device_name(device) == torch.cuda.get_device_name(0)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_the_peak_counts_from_a_reset_on() -> None:
    with mmap.mmap(-1, 200_000_000) as block:  # goes back to the system at once, unlike a tensor
        block.write(b"1" * len(block))
        before = peak_memory_bytes(CPU)
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) < before - 150_000_000


def test_the_free_memory_is_that_of_the_machine_or_of_the_smallest_group(tmp_path: Path):
    own, mount = tmp_path / "cgroup", tmp_path / "mount"
    own.write_text("4:memory:/old\n0::/slurm/job_7/step\n")
    groups = {"slurm": "max", "slurm/job_7": "900", "slurm/job_7/step": "1000"}
    for name, limit in groups.items():
        (mount / name).mkdir(parents=True)
        (mount / name / "memory.max").write_text(f"{limit}\n")
        (mount / name / "memory.current").write_text("300\n")
        (mount / name / "memory.stat").write_text("anon 200\ninactive_file 50\nactive_file 50\n")
    assert list(devices._free_in_groups(own, mount)) == [750, 650]
    assert list(devices._free_in_groups(tmp_path / "missing", mount)) == []


def test_the_free_memory_of_this_machine_is_a_part_of_it() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory_bytes() <= total


@pytest.mark.parametrize(
    ("accelerator", "given", "numbers"),
    [
        ("cpu", 2, []),
        ("auto", 1, [0]),
        ("gpu", 3, [0, 1, 2]),
        ("gpu", [1, 3], [1, 3]),
        ("gpu", "auto", [0, 1, 2, 3]),
    ],
)
def test_the_numbers_of_the_gpus(monkeypatch: Any, accelerator: str, given: Any, numbers: Any):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_numbers(accelerator, given) == numbers
