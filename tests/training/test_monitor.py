import math
from types import SimpleNamespace
from typing import Any

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.monitor import (
    check_metric,
    default_metric,
    falls,
    has_masks,
    is_better,
    monitored,
)


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


def test_a_model_without_masks_has_no_metrics_of_masks():
    assert [has_masks({"model": {"mask_head": None}}), has_masks({"model": {}}), has_masks({})] == [
        False,
        True,
        True,
    ]
    assert (default_metric(True), default_metric(False)) == ("val/mask_ap", "val/box_ap")
    for metric in ("val/mask_ap75", "val/boundary_ap", "val/cityscapes_ap"):
        check_metric("trainer.monitor", metric, True)
        wanted = rf"trainer\.monitor={metric} does not exist with model\.mask_head=null: use"
        with pytest.raises(UserError, match=wanted):
            check_metric("trainer.monitor", metric, False)
    check_metric("trainer.monitor", "val/box_ap", False)
