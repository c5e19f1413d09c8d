import platform

import pytest
import torch
from torch import nn

from maskrcnn_lit.evaluation.cost import count_parameters, device_name, peak_memory_bytes, run_cost

CPU = torch.device("cpu")


def test_shared_parameters_count_once_and_frozen_ones_are_not_trained() -> None:
    first, frozen = nn.Linear(3, 3, bias=False), nn.Linear(3, 5)
    frozen.requires_grad_(False)
    assert count_parameters(nn.Sequential(first, first, frozen)) == {"parameters": 29, "trainable_parameters": 9}


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_peak_memory_of_the_process_is_in_bytes() -> None:
    with open("/proc/self/status") as status:
        high_water = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    peak = peak_memory_bytes(CPU)
    assert peak is not None and 0.9 < peak / high_water < 10  # may still hold the process's before an exec


def test_run_cost_holds_plain_numbers() -> None:
    cost = run_cost(nn.Linear(2, 2), CPU, seconds=4.0, images=100)
    assert cost["images_per_second"] == 25 and cost["seconds"] == 4 and cost["parameters"] == 6
    assert "threads" in cost["device"] and cost["device"] == device_name(CPU)
    assert run_cost(nn.Linear(2, 2), CPU, seconds=0.0, images=0)["images_per_second"] is None


@pytest.mark.gpu
def test_cuda_peak_is_of_tensors_and_the_device_is_named() -> None:
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory_bytes(device)
    held = torch.ones(25_000_000, device=device)
    del held
    peak = peak_memory_bytes(device)
    assert before is not None and peak is not None and peak >= before + 100_000_000 * 0.99
    assert device_name(device) == torch.cuda.get_device_name(0)
