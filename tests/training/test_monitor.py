import math
from types import SimpleNamespace
from typing import Any

import pytest

from maskrcnn_lit.training.monitor import falls, is_better, monitored


def test_all_processes_have_the_value_of_the_main_one():
    trainer: Any = SimpleNamespace(
        callback_metrics={"val/mine": 0.3},
        world_size=2,
        strategy=SimpleNamespace(broadcast=lambda value: 0.7),
    )
    assert monitored(trainer, "val/mine") == 0.7
    trainer.world_size = 1
    assert monitored(trainer, "val/mine") == 0.3
    assert math.isnan(monitored(trainer, "val/none"))


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("val/mask_ap", False),
        ("val/recall_occluded", False),
        ("val/loss", True),
        ("val/loss_mask", True),
        ("val/count_error", True),
    ],
)
def test_losses_and_errors_should_fall(metric: str, expected: bool):
    assert falls(metric) is expected
    assert is_better(0.1, 0.2, metric) is expected
    assert is_better(0.3, 0.2, metric) is not expected
    assert not is_better(0.2, 0.2, metric)
    assert not is_better(math.nan, None, metric)
    assert is_better(0.0, None, metric)
