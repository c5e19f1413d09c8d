"""Augmentations after flip, scale, crop and color jitter, those of conf/augment and custom ones
(`augment.transforms`): geometry as an affine or projective map, pixel changes separately.

Coordinates are continuous, as in transforms.py: pixel i spans i to i + 1. Letters: H W of the
training image, N instances, M mask crop side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MAX_PERSPECTIVE = 0.2  # at 0.25 the moved corners may no longer be those of a convex shape


class Transform:
    """An augmentation, applied after flip, scale, crop and color jitter. Override one or both
    methods.

    generator: random numbers that depend only on (seed, epoch, image).
    """

    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64] | None:
        """An affine map, 2 3: x, y, 1 in pixels -> x, y; or a projective one, 3 3, as a matrix of
        homogeneous coordinates; None: no change. size: height, width, which stay the same. Boxes
        and masks are mapped, too; parts outside the image are cut, new areas are black.
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


class Perspective(Transform):
    """Look at the image from another side: each corner moves by up to `share` of the sides, in both
    directions. share: at most MAX_PERSPECTIVE.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64] | None:
        corners = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
        moved = corners + generator.uniform(-self.share, self.share, (4, 2))
        sides = np.array([size[1], size[0]])
        return homography(corners * sides, moved * sides)


class Rotation(Transform):
    """Rotate around the center by an angle that is uniform in -degrees .. degrees."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64] | None:
        angle = np.deg2rad(generator.uniform(-self.degrees, self.degrees))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center = np.array([size[1], size[0]]) / 2
        return np.column_stack([turn, center - turn @ center])


class Blur(Transform):
    """Blur with a Gaussian whose standard deviation, in pixels, is uniform in 0 .. `deviation`."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def pixels(self, generator: np.random.Generator, image: Tensor) -> Tensor | None:
        deviation = generator.uniform(0, self.deviation)
        radius = min(int(np.ceil(3 * deviation)), min(image.shape[1:]) - 1)  # as reflection allows
        if radius < 1:
            return None
        weights = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
        kernel = (weights / weights.sum()).repeat(3, 1, 1)
        values = image.float()
        for axis in (1, 2):
            lines = values.transpose(axis, 2)
            lines = F.pad(lines, (radius, radius), mode="reflect")
            lines = F.conv2d(lines[None], kernel[:, :, None], groups=3)[0]
            values = lines.transpose(axis, 2)
        return values.round_().clamp_(0, 255).to(torch.uint8)


class Noise(Transform):
    """Add Gaussian noise to each value; its standard deviation, as a share of 255, is uniform in
    0 .. `deviation`.
    """

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def pixels(self, generator: np.random.Generator, image: Tensor) -> Tensor | None:
        deviation = 255 * generator.uniform(0, self.deviation)
        noise = torch.from_numpy(generator.standard_normal(image.shape, np.float32))
        return noise.mul_(deviation).add_(image).round_().clamp_(0, 255).to(torch.uint8)


def homography(points: NDArray[np.float64], moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """The projective map, 3 3, that sends four points (4 2: x, y) to others, of which no three are
    on a line.
    """
    rows, values = [], []
    for (x, y), (u, v) in zip(points.tolist(), moved.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def draw_transforms(
    image: Tensor, transforms: Sequence[Transform], generator: np.random.Generator
) -> tuple[Tensor, NDArray[np.float64] | None]:
    """The augmented image, 3 H W uint8, and the map to apply to its boxes and masks, 2 3, or 3 3 if
    it is projective (None: identity).

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
            total = _checked(matrix, transform, np.eye(3) if total is None else total, size)
    if total is not None:
        total = total[:2] if (total[2] == [0, 0, 1]).all() else total
        image = warp_image(image, total)
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
    return image, total


def _checked(
    matrix: NDArray[np.float64],
    transform: Transform,
    before: NDArray[np.float64],
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """The map of `before` (3 3) and then `matrix`, as 3 3; ValueError unless `matrix` is 2 3 or
    3 3, invertible, and sends no point of the image to infinity.
    """
    values = np.asarray(matrix, np.float64)
    gave = f"{type(transform).__name__}.geometry gave {values.tolist()}"
    if values.shape not in ((2, 3), (3, 3)) or not np.isfinite(values).all():
        raise ValueError(f"{gave}; expected 2 x 3 or 3 x 3 numbers")
    values = as_homography(values)
    if abs(np.linalg.det(values)) < 1e-9:
        raise ValueError(f"{gave}, which has no inverse")
    height, width = size
    if values[2] @ [width / 2, height / 2, 1] < 0:  # the same map with other numbers
        values = -values
    total = values @ before
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]])
    if (corners @ total[2] < 1e-6).any():
        raise ValueError(f"{gave}, which sends a point of the image to infinity")
    return total


def as_homography(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A map, 2 3 or 3 3, as 3 3."""
    return matrix if len(matrix) == 3 else np.vstack([matrix, [0.0, 0.0, 1.0]])


def map_points(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points (... 2: x, y) by an affine map (2 3) or a projective one (3 3)."""
    full = as_homography(matrix)
    moved = points @ full[:2, :2].T + full[:2, 2]
    if len(matrix) == 2:
        return moved
    return moved / (points @ full[2, :2] + full[2, 2])[..., None]


def _map_grid(
    x: NDArray[Any], y: NDArray[Any], matrix: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The x and the y, Y X each, of the mapped points of a grid with these columns (X) and rows
    (Y), in their type.
    """
    u, v = (row[0] * x + (row[1] * y + row[2])[:, None] for row in matrix[:2].tolist())
    if len(matrix) == 3 and (matrix[2] != [0, 0, 1]).any():
        a, b, c = matrix[2].tolist()
        w = a * x + (b * y + c)[:, None]
        u, v = u / w, v / w
    return u, v


def _exact_turn(
    matrix: NDArray[np.float64], size: tuple[int, int]
) -> tuple[bool, list[int]] | None:
    """For a map of mirrors and quarter turns that sends the image onto itself: whether x and y
    change places, and then the axes to flip (of Y X); None for any other map.
    """
    full, sides = as_homography(matrix), (size[1], size[0])
    swapped = full[0, 0] == 0
    parts = full[[0, 1], [1, 0] if swapped else [0, 1]]  # the factors
    expected = np.eye(3)
    expected[:2] = 0
    expected[[0, 1], [1, 0] if swapped else [0, 1]] = parts
    expected[:2, 2] = np.where(parts < 0, sides, 0)
    if (np.abs(parts) != 1).any() or (full != expected).any():
        return None
    if swapped and size[0] != size[1]:
        return None
    return bool(swapped), [axis for axis, part in ((1, parts[0]), (0, parts[1])) if part < 0]


def warp_image(image: Tensor, matrix: NDArray[np.float64]) -> Tensor:
    """Warp a 3 H W uint8 image by `matrix` (2 3, or 3 3): bilinear, black outside. Mirrors and
    quarter turns are exact.
    """
    _, height, width = image.shape
    turn = _exact_turn(matrix, (height, width))
    if turn is not None:
        image = image.transpose(1, 2) if turn[0] else image
        return image.flip([axis + 1 for axis in turn[1]])
    # grid_sample's coordinates are -1 and 1 at the image's edges
    scale = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])
    x, y = (np.arange(side, dtype=np.float32) + 0.5 for side in (width, height))
    grid = np.empty((1, height, width, 2), np.float32)
    grid[0, ..., 0], grid[0, ..., 1] = _map_grid(x, y, scale @ _inverse(matrix))
    warped = F.grid_sample(image[None].float(), torch.from_numpy(grid), align_corners=False)[0]
    return warped.round_().clamp_(0, 255).to(torch.uint8)


def warp_crops(
    crops: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    matrix: NDArray[np.float64],
    size: tuple[int, int] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Warp mask crops (N M M of 0 or 1) and the boxes that they cover (N 4) by a map (2 3, or 3 3).

    The new boxes are tight around the warped masks. An empty mask stays empty and gets a box of
    area 0. Each cell takes the value of the old cell at its center: the outline of a mask moves by
    at most half the diagonal of an old cell.

    Args:
        size: height, width of the image before: what lies outside has no pixels, and is cut from
            the masks. None: nothing is cut. Needed for a projective map.
    """
    side = crops.shape[-1]
    moved, places = np.zeros_like(crops), np.zeros_like(boxes)
    back, steps = _inverse(matrix), (np.arange(side) + 0.5) / side
    for n in range(len(crops)):
        start, extent = boxes[n, :2], boxes[n, 2:] - boxes[n, :2]
        crop = crops[n] if size is None else _inside(crops[n], boxes[n], size)
        corners = _outer_corners(crop)
        if not len(corners):
            continue
        points = map_points(start + corners / side * extent, matrix)
        low, high = points.min(0), points.max(0)
        places[n] = [*low, *high]
        x, y = (low[axis] + steps * (high[axis] - low[axis]) for axis in (0, 1))
        old_x, old_y = _map_grid(x, y, back)
        columns = np.floor((old_x - start[0]) * (side / extent[0])).astype(np.int64)
        rows = np.floor((old_y - start[1]) * (side / extent[1])).astype(np.int64)
        inside = (columns >= 0) & (columns < side) & (rows >= 0) & (rows < side)
        cells = np.where(inside, rows * side + columns, 0)
        moved[n] = crop.ravel()[cells] * inside
    return moved, places


def _inside(
    crop: NDArray[np.uint8], box: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The crop (M M) over `box` without the cells whose centers are outside an image of `size`."""
    if box[0] >= 0 and box[1] >= 0 and box[2] <= size[1] and box[3] <= size[0]:
        return crop
    steps = (np.arange(crop.shape[0]) + 0.5) / crop.shape[0]
    x, y = (box[axis] + steps * (box[axis + 2] - box[axis]) for axis in (0, 1))
    seen = ((y >= 0) & (y <= size[0]))[:, None] & ((x >= 0) & (x <= size[1]))
    return crop * seen


def warp_bitmap(bitmap: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Warp an H W bitmap by `matrix` (2 3, or 3 3), as `warp_image` warps pixels: nearest, 0
    outside.
    """
    height, width = bitmap.shape
    turn = _exact_turn(matrix, (height, width))
    if turn is not None:
        return np.ascontiguousarray(np.flip(bitmap.T if turn[0] else bitmap, tuple(turn[1])))
    x, y = _map_grid(np.arange(width) + 0.5, np.arange(height) + 0.5, _inverse(matrix))
    columns, rows = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
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
    """The inverse of a map, 2 3 or 3 3, as 3 3; its last number is positive at the image."""
    back = np.asarray(np.linalg.inv(as_homography(matrix)), np.float64)
    return back if len(matrix) == 3 else np.vstack([back[:2], [0.0, 0.0, 1.0]])
