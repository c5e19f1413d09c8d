"""Pixels of the synthetic set: random numbers, shapes (drawn by Pillow) and textures. They are the
same for one version of Pillow.

Letters: H W a picture; h w the part of it that a shape may cover.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw

STEPS = 8  # positions and radii are in eighths of a pixel

FULL = 64  # of a pixel that is covered as a whole

# Points a side of a pixel that Pillow fills. It fills the points on an edge too, so a shape is
# larger by half a point on each side.
POINTS = 32

Point = tuple[float, float]

Color = tuple[int, int, int]

Choice = TypeVar("Choice")

VIVID: tuple[Color, ...] = (
    *((226, 62, 50), (246, 142, 30), (250, 208, 58), (122, 194, 62), (26, 156, 96), (40, 188, 196)),
    *(
        (44, 120, 228),
        (106, 82, 208),
        (180, 78, 196),
        (238, 92, 150),
        (244, 240, 228),
        (44, 42, 54),
    ),
)

MUTED: tuple[Color, ...] = (
    *(
        (196, 184, 160),
        (150, 132, 112),
        (120, 134, 112),
        (88, 104, 96),
        (128, 144, 160),
        (84, 96, 120),
    ),
    *(
        (168, 150, 160),
        (110, 92, 100),
        (206, 200, 190),
        (142, 146, 140),
        (72, 80, 84),
        (164, 170, 178),
    ),
)


class Dice:
    """Random integers that depend only on `key` (numbers >= 0), not on the version of numpy."""

    def __init__(self, *key: int) -> None:
        self._stream = np.random.PCG64(list(key))

    def number(self, low: int, high: int) -> int:
        """A number in low..high, both included."""
        return low + ((self._stream.random_raw() >> 32) * (high - low + 1) >> 32)

    def numbers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """An int32 array of numbers in low..high, both included."""
        raw = np.asarray(self._stream.random_raw(int(np.prod(shape)))) >> np.uint64(32)
        return (raw * np.uint64(high - low + 1) >> np.uint64(32)).astype(np.int32).reshape(
            shape
        ) + np.int32(low)

    def chance(self, percent: int) -> bool:
        return self.number(1, 100) <= percent

    def pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[self.number(0, len(choices) - 1)]


def _star() -> list[Point]:
    """A pentagram whose five lines are 0.352 from the center: tips and the corners between them."""
    points = []
    for k in range(10):
        angle = math.radians(90 + 36 * k)
        distance = 0.3516 / math.cos(math.radians(72 if k % 2 == 0 else 36))
        points.append((distance * math.cos(angle), distance * math.sin(angle)))
    return points


# Corners in radii from the center, x to the right and y down; None: round. A ring has a hole.
OUTLINES: dict[str, list[Point] | None] = {
    "circle": None,
    "cross": [
        *((-0.352, -0.938), (0.352, -0.938), (0.352, -0.352), (0.938, -0.352)),
        *((0.938, 0.352), (0.352, 0.352), (0.352, 0.938), (-0.352, 0.938)),
        *((-0.352, 0.352), (-0.938, 0.352), (-0.938, -0.352), (-0.352, -0.352)),
    ],
    "rectangle": [(-0.898, -0.488), (0.898, -0.488), (0.898, 0.488), (-0.898, 0.488)],
    "ring": None,
    "star": _star(),
    "triangle": [(0.0, -1.094), (0.947, 0.547), (-0.947, 0.547)],
}


class Stamp(NamedTuple):
    """A shape on the pixel grid: the part of the picture that it may cover, and its coverage of
    each pixel there.
    """

    part: tuple[slice, slice]  # rows and columns, h w
    cover: np.ndarray  # h w int32, 0..FULL

    @property
    def mask(self) -> np.ndarray:
        """h w bool: pixels that are covered by half or more."""
        return self.cover * 2 >= FULL

    def mask_of(self, size: int) -> np.ndarray:
        """size size bool: the mask on the full picture."""
        full = np.zeros((size, size), bool)
        full[self.part] = self.mask
        return full


def stamp(name: str, *, size: int, x: int, y: int, radius: int, turn: int) -> Stamp:
    """The shape `name` in a picture of `size` x `size` pixels.

    `x`, `y` (its center) and `radius` count eighths of a pixel. `turn` in -64..64 turns it by
    -90..90 degrees: it is 64 times the tangent of half the angle.
    """
    reach = radius * 5 // 4 + STEPS  # corners and tips lie beyond the radius
    left, right, top, bottom = (
        edge
        for center in (x, y)
        for edge in ((center - reach) // STEPS, (center + reach) // STEPS + 1)
    )
    canvas = Image.new("L", ((right - left) * POINTS, (bottom - top) * POINTS))
    draw = ImageDraw.Draw(canvas)
    scale = POINTS // STEPS
    x, y, radius = (x - left * STEPS) * scale, (y - top * STEPS) * scale, radius * scale
    points = OUTLINES[name]
    if points is None:
        draw.ellipse(_box(x, y, radius), fill=FULL)
        if name == "ring":
            draw.ellipse(_box(x, y, radius // 2), fill=0)
    else:
        angle = 2 * math.atan2(turn, 64)
        cosine, sine = radius * math.cos(angle), radius * math.sin(angle)
        # Pillow counts from the middle of the first pixel.
        corners = [
            (x + cosine * u - sine * v - 0.5, y + sine * u + cosine * v - 0.5) for u, v in points
        ]
        draw.polygon(corners, fill=FULL)
    cover = np.asarray(canvas.reduce(POINTS), np.int32)
    rows, columns = (slice(max(0, a), min(size, b)) for a, b in ((top, bottom), (left, right)))
    cover = cover[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return Stamp((rows, columns), cover)


def _box(x: int, y: int, radius: int) -> tuple[int, int, int, int]:
    return x - radius, y - radius, x + radius - 1, y + radius - 1


def background(dice: Dice, size: int) -> np.ndarray:
    """H W 3 int32 in 0..255: two muted colors mixed by a gradient, stripes or clouds, with grain
    on top.
    """
    first, second = dice.pick(MUTED), dice.pick(MUTED)
    weights = texture(dice, size, size, ("gradient", "stripes", "clouds", "clouds"))
    clouds = _clouds(dice, size, size) - 128
    picture = mix(first, second, weights) + clouds[..., None] * dice.number(10, 40) // 128
    return np.clip(picture + dice.numbers(-6, 6, size, size, 1), 0, 255)


def paint(picture: np.ndarray, shape: Stamp, dice: Dice, color: Color) -> None:
    """Draw `shape` into `picture` (H W 3) with a textured fill of `color`, a darker rim and soft
    edges.
    """
    height, width = shape.cover.shape
    red, green, blue = (channel * dice.number(60, 85) // 100 for channel in color)
    fill = mix(
        color,
        (red, green, blue),
        texture(dice, height, width, ("gradient", "stripes", "checks", "clouds")),
    )
    inner = np.pad(shape.cover == FULL, 1)
    inner = (
        inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    )
    fill = np.where(inner[..., None], fill, fill * 5 // 8)
    cover = shape.cover[..., None]
    picture[shape.part] = (picture[shape.part] * (FULL - cover) + fill * cover + FULL // 2) // FULL


def mix(first: Color, second: Color, weights: np.ndarray) -> np.ndarray:
    """h w 3: `first` where a weight is 0, `second` where it is 256."""
    one, two = np.array(first, np.int32), np.array(second, np.int32)
    return one + (two - one) * weights[..., None] // 256


def texture(dice: Dice, height: int, width: int, kinds: tuple[str, ...]) -> np.ndarray:
    """h w int32 in 0..256, of one of `kinds`."""
    kind = dice.pick(kinds)
    if kind == "clouds":
        return _clouds(dice, height, width)
    y, x = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)[None]
    across, down = dice.number(-16, 16), dice.number(-16, 16)
    slant = x * across + y * down
    if kind == "gradient":
        slant = slant - slant.min()
        return slant * 256 // max(1, int(slant.max()))
    period = dice.number(6, 12)
    if kind == "checks":
        return ((x // period + y // period) % 2) * 256
    wave = (slant // 2 + dice.number(0, 255)) * 8 // period % 256
    return np.clip((abs(wave - 128) - 64) * 6 + 128, 0, 256)


def _clouds(dice: Dice, height: int, width: int) -> np.ndarray:
    """h w int32 in 0..256: smooth noise at three scales, the coarse ones strongest."""
    coarse, middle, fine = (_noise(dice, height, width, cells) for cells in (3, 7, 15))
    return (coarse * 4 + middle * 3 + fine) // 8


def _noise(dice: Dice, height: int, width: int, cells: int) -> np.ndarray:
    """h w int32 in 0..255: `cells` random numbers a side, smoothly interpolated."""
    knots = Image.fromarray(dice.numbers(0, 255, cells, cells).astype(np.uint8))
    return np.asarray(knots.resize((width, height), Image.Resampling.BICUBIC), np.int32)
