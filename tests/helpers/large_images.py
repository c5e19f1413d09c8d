"""Large image files that take a second to write: one picture with a disc, side by side."""

from pathlib import Path
from typing import Any

import numpy as np

CELL = 500  # pixels: of a disc's picture
OPTIONS: dict[str, dict[str, Any]] = {
    ".jpg": {"Q": 90},
    ".png": {"compression": 1},
    ".tif": {"tile": True, "pyramid": True, "compression": "deflate", "bigtiff": True},
}


def write_discs(path: Path, side: int) -> Path:
    """A square image of `side` pixels with a disc of radius 200 in each cell of 500 pixels."""
    import pyvips

    y, x = np.mgrid[:CELL, :CELL] - CELL // 2
    cell = np.full((CELL, CELL, 3), 40, np.uint8)
    cell[y**2 + x**2 < 200**2] = (230, 60, 60)
    count = -(-side // CELL)
    image = pyvips.Image.new_from_array(cell).replicate(count, count).crop(0, 0, side, side)
    image.copy(interpretation="srgb").write_to_file(str(path), **OPTIONS[path.suffix])
    return path
