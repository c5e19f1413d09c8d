import math

import pytest

from maskrcnn_lit.training.monitor import falls, is_better


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
    assert not is_better(0.2, 0.2, metric) and not is_better(math.nan, None, metric)
    assert is_better(0.0, None, metric)
