import math
from typing import Any

import numpy as np
import pytest
from omegaconf import ListConfig

from maskrcnn_lit.data.image_size import fit, fitted_sizes, read_image_size
from maskrcnn_lit.errors import UserError


def test_images_are_fitted():
    sizes = np.array([[480, 640], [600, 400]])
    assert fitted_sizes(sizes, (800, 1333)).tolist() == [[800, 1067], [1200, 800]]
    assert fit(sizes, (800, 1333)).tolist() == [800 / 480, 2.0]
    assert fitted_sizes(sizes, 128).tolist() == [[96, 128], [128, 85]]


def test_image_sizes_are_read():
    assert read_image_size(128) == 128
    assert read_image_size([800, 1333]) == (800, 1333)
    assert read_image_size(ListConfig([800, 1333])) == (800, 1333), "as a run's config has it"
    for wrong in (0, 16, [1333, 800], [800], [1, 2, 3], "800", 128.5):
        if wrong == [800]:
            assert read_image_size(wrong) == 800
            continue
        with pytest.raises(UserError, match=r"data.image_size=.*such as \[800, 1333\]"):
            read_image_size(wrong)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "",
        [],
        {},
        math.nan,
        math.inf,
        -128,
        31,
        20000,
        2**70,
        [True, 800],
        [800, None],
        [800, 1333.0],
        [800, "1333"],
        [800, math.nan],
        [800, 20000],
        {"short": 800},
    ],
)
def test_image_sizes_of_the_wrong_kind_are_named(value: Any):
    with pytest.raises(UserError) as caught:
        read_image_size(value)
    assert str(caught.value).startswith(f"data.image_size={value} must be ")
