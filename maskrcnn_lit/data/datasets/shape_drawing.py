"""Draws the synthetic set: random numbers, shapes, textures and a PNG writer with identical bytes
on every machine.

Three things differ between machines and versions and are not used here: floating point (sines,
fused multiply-add), numpy's `Generator` (NEP 19 guarantees only the raw stream of PCG64) and the
compressor inside a PNG writer. So this module uses integer arithmetic on raw PCG64 numbers.

Letters: H W a picture; h w the part of it that a shape may cover.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

UNIT = 1024  # a shape's radius in the coordinates of its outline

STEPS = 8  # positions and radii are in eighths of a pixel

SAMPLES = 4  # a pixel is covered by SAMPLES x SAMPLES points, a power of two that divides STEPS

FULL = SAMPLES * SAMPLES

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


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u * u + v * v <= UNIT * UNIT


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = abs(u), abs(v)
    return (np.minimum(u, v) <= 360) & (np.maximum(u, v) <= 960)


def _rectangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(u) <= 920) & (abs(v) <= 500)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _circle(u, v) & ~_circle(2 * u, 2 * v)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A pentagram: the points inside at least four of the five lines through its tips (normals 72
    degrees apart).
    """
    normals = ((0, 1024), (974, 316), (602, -828), (-602, -828), (-974, 316))
    inside = sum((a * u + b * v <= 360 * UNIT).astype(np.int8) for a, b in normals)
    return np.asarray(inside >= 4)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (v <= 560) & (1774 * abs(u) - 1024 * v <= 1120 * UNIT)


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "cross": _cross,
    "rectangle": _rectangle,
    "ring": _ring,
    "star": _star,
    "triangle": _triangle,
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

    `x`, `y` (its center) and `radius` count eighths of a pixel. `turn` in -64..64 rotates it by
    -90..90 degrees: it is 64 times the tangent of half the angle, so cosine and sine are rational.
    """
    reach = radius * 5 // 4 + STEPS  # corners and tips lie beyond the radius
    rows, columns = (
        slice(max(0, (c - reach) // STEPS), min(size, (c + reach) // STEPS + 1)) for c in (y, x)
    )
    dy, dx = (_sample_points(part) - center for part, center in ((rows, y), (columns, x)))
    norm = 64 * 64 + turn * turn
    cosine, sine = UNIT * (64 * 64 - turn * turn) // norm, UNIT * 128 * turn // norm
    u = (cosine * dx[None] + sine * dy[:, None]) // radius
    v = (cosine * dy[:, None] - sine * dx[None]) // radius
    inside = OUTLINES[name](u, v)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    points = inside.view(np.int8).reshape(
        height, SAMPLES, width, SAMPLES
    )  # (h SAMPLES) (w SAMPLES) -> h 4 w 4
    lines = (
        points[:, 0] + points[:, 1] + points[:, 2] + points[:, 3]
    )  # h w 4; much faster than sum() over two axes
    cover = lines[..., 0] + lines[..., 1] + lines[..., 2] + lines[..., 3]
    return Stamp((rows, columns), cover.astype(np.int32))


def _sample_points(pixels: slice) -> np.ndarray:
    step = STEPS // SAMPLES
    return np.arange(pixels.start * STEPS, pixels.stop * STEPS, step, dtype=np.int32) + step // 2


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
    """h w int32 in 0..256: `cells` random numbers a side, smoothly interpolated."""
    knots = dice.numbers(0, 256, cells + 1, cells + 1)
    rows, columns = (np.arange(n, dtype=np.int32) * cells * 256 // n for n in (height, width))
    knots = _between(knots, rows)  # cells cells -> h cells
    return _between(knots.T, columns).T  # h cells -> h w


def _between(knots: np.ndarray, position: np.ndarray) -> np.ndarray:
    index, share = position >> 8, position & 255
    smooth = (share * share * (768 - 2 * share) >> 16)[:, None]  # 3 t^2 - 2 t^3 of a share t of 256
    return (knots[index] * (256 - smooth) + knots[index + 1] * smooth) >> 8


def png(picture: np.ndarray) -> bytes:
    """A PNG file of an H W 3 uint8 picture, without compression: deflate's output differs between
    zlib builds.
    """
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + width * 3), np.uint8)  # each row opens with its filter: 0, none
    rows[:, 1:] = picture.reshape(height, -1)
    raw = rows.tobytes()
    blocks = [raw[start : start + 65535] for start in range(0, len(raw), 65535)]
    stored = b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block
        for block in blocks
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
