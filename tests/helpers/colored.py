"""The colors of a picture, and detections of flat colored shapes, exact in every tile: each color
is one object.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Color = tuple[int, int, int]


def colors_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """N C: each color of an H W C image once, in the order of its channels. (np.unique by rows
    takes a second for half a million pixels.)
    """
    channels = image.shape[-1]
    shifts = 8 * np.arange(channels, dtype=np.uint32)[::-1]
    numbers = np.unique((image.reshape(-1, channels).astype(np.uint32) << shifts).sum(1))
    return (numbers[:, None] >> shifts & 255).astype(np.uint8)


def detect_colors(images: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """As a model would see each image: an object for each color but black, its class the red
    channel, its score the share of 10,000 pixels that it has there.
    """
    return [_of_image(image) for image in images]


def _of_image(image: NDArray[np.uint8]) -> dict[str, Any]:
    colors = colors_of(image)
    colors = colors[colors.any(1)]
    masks = [(image == color).all(2) for color in colors]
    masks.sort(key=lambda mask: -mask.sum())
    boxes = [_box(mask) for mask in masks]
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array([min(mask.sum() / 10_000, 1) for mask in masks], np.float32),
        "labels": np.array([image[mask][0, 0] for mask in masks], np.int64),
        "masks": [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks],
    }


def _box(mask: NDArray[np.bool_]) -> list[int]:
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]
