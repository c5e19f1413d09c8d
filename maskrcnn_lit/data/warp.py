"""Custom augmentations (`augment.transforms`): geometry as an affine map, pixel changes separately.

Coordinates are continuous, as in transforms.py: pixel i spans i to i + 1. Letters: H W of the
training image, N instances, M mask crop side.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class Transform:
    """An augmentation, applied after flip, scale, crop and color jitter. Override one or both
    methods.

    generator: random numbers that depend only on (seed, epoch, image).
    """

    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64] | None:
        """An affine map, 2 3: x, y, 1 in pixels -> x, y; None: no change. size: height, width,
        which stay the same. Boxes and masks are mapped, too; parts outside the image are cut, new
        areas are black.
        """
        return None

    def pixels(self, generator: np.random.Generator, image: Tensor) -> Tensor | None:
        """The changed pixels of `image`, 3 H W uint8 RGB, of the same shape; None: unchanged."""
        return None


class VerticalFlip(Transform):
    """Flip upside down with the given probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64] | None:
        if generator.random() >= self.probability:
            return None
        return np.array([[1.0, 0, 0], [0, -1, size[0]]])


class QuarterTurns(Transform):
    """With the given probability, rotate around the center by 90, 180 or 270 degrees, equally
    likely; by 180 if the image is not square.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64] | None:
        if generator.random() >= self.probability:
            return None
        (height, width), turns = size, int(generator.integers(1, 4))
        if turns == 2 or height != width:
            return np.array([[-1.0, 0, width], [0, -1, height]])
        if turns == 1:
            return np.array([[0.0, 1, 0], [-1, 0, width]])
        return np.array([[0.0, -1, height], [1, 0, 0]])


def draw_transforms(
    image: Tensor, transforms: Sequence[Transform], generator: np.random.Generator
) -> tuple[Tensor, NDArray[np.float64] | None]:
    """The augmented image, 3 H W uint8, and the affine map to apply to its boxes and masks (None:
    identity).

    All maps are composed first, so pixels are resampled once; then the pixel changes are applied in
    order.

    Raises:
        ValueError: a transform returns a wrong type, shape or value.
    """
    size = (image.shape[1], image.shape[2])
    total: NDArray[np.float64] | None = None
    for transform in transforms:
        matrix = transform.geometry(generator, size)
        if matrix is not None:
            step = _checked(matrix, transform)
            total = step if total is None else step @ total
    if total is not None:
        image = warp_image(image, total[:2])
    for transform in transforms:
        changed = transform.pixels(generator, image)
        if changed is None:
            continue
        if changed.dtype != torch.uint8 or changed.shape != image.shape:
            raise ValueError(
                f"{type(transform).__name__}.pixels gave {changed.dtype} {tuple(changed.shape)}; "
                f"expected torch.uint8 {tuple(image.shape)}"
            )
        image = changed
    return image, None if total is None else total[:2]


def _checked(matrix: NDArray[np.float64], transform: Transform) -> NDArray[np.float64]:
    """The matrix as 3 3, with the last row 0 0 1; ValueError unless it is 2 3 and invertible."""
    values = np.asarray(matrix, np.float64)
    if values.shape != (2, 3) or not np.isfinite(values).all():
        raise ValueError(
            f"{type(transform).__name__}.geometry gave {values.tolist()}; expected 2 x 3 numbers"
        )
    if abs(np.linalg.det(values[:, :2])) < 1e-9:
        raise ValueError(
            f"{type(transform).__name__}.geometry gave {values.tolist()}, which has no inverse"
        )
    return np.vstack([values, [0.0, 0.0, 1.0]])


def warp_image(image: Tensor, matrix: NDArray[np.float64]) -> Tensor:
    """Warp a 3 H W uint8 image by the affine `matrix` (2 3): bilinear, black outside."""
    _, height, width = image.shape
    # grid_sample's coordinates are -1 and 1 at the image's edges
    scale = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])
    theta = (scale @ _inverse(matrix) @ np.linalg.inv(scale))[:2]
    grid = F.affine_grid(
        torch.from_numpy(theta)[None].float(), [1, 3, height, width], align_corners=False
    )
    warped = F.grid_sample(image[None].float(), grid, align_corners=False)[0]
    return warped.round_().clamp_(0, 255).to(torch.uint8)


def warp_crops(
    crops: NDArray[np.uint8], boxes: NDArray[np.float64], matrix: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Warp mask crops (N M M of 0 or 1) and the boxes that they cover (N 4) by an affine map (2 3).

    The new boxes are tight around the warped masks. An empty mask stays empty and gets a box of
    area 0.
    """
    side = crops.shape[-1]
    moved, places = np.zeros_like(crops), np.zeros_like(boxes)
    back = _inverse(matrix)[:2]
    centers = np.stack(np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2), -1)  # M M 2, x y
    for n in range(len(crops)):
        corners = _outer_corners(crops[n])
        if not len(corners):
            continue
        start, extent = boxes[n, :2], boxes[n, 2:] - boxes[n, :2]
        points = (start + corners / side * extent) @ matrix[:, :2].T + matrix[:, 2]
        low, high = points.min(0), points.max(0)
        places[n] = [*low, *high]
        old = (low + centers * (high - low)) @ back[:, :2].T + back[:, 2]
        cells = np.floor((old - start) / extent * side).astype(np.int64)
        inside = ((cells >= 0) & (cells < side)).all(-1)
        x, y = np.where(inside[..., None], cells, 0)[..., 0], np.where(inside, cells[..., 1], 0)
        moved[n] = crops[n][y, x] * inside
    return moved, places


def warp_bitmap(bitmap: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Warp an H W bitmap by the affine `matrix` (2 3), as `warp_image` warps pixels: nearest, 0
    outside.
    """
    height, width = bitmap.shape
    back = _inverse(matrix)[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    columns, rows = (np.floor(a * x + b * y + c).astype(np.int64) for a, b, c in back.tolist())
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return bitmap[rows.clip(0, height - 1), columns.clip(0, width - 1)] * inside


def _outer_corners(crop: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Corners, x y in cells, of the first and last cell of each row of a mask (M M); their bounding
    box is that of the mask.
    """
    rows = np.flatnonzero(crop.any(1))
    first, last = crop[rows].argmax(1), crop.shape[1] - crop[rows, ::-1].argmax(1)
    xs, ys = np.r_[first, last], np.r_[rows, rows]
    return np.stack([np.r_[xs, xs], np.r_[ys, ys + 1]], 1).astype(np.float64)


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of an affine map 2 3, as 3 3."""
    return np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]))
