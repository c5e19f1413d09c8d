"""A video of the demo's shapes that cross each other's paths, with their exact identities."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.datasets.shape_drawing import (
    STEPS,
    VIVID,
    Dice,
    Stamp,
    background,
    paint,
    stamp,
)
from maskrcnn_lit.data.datasets.shapes import NAMES


@dataclass(frozen=True)
class Mover:
    """A shape that goes straight on. Positions and lengths in eighths of a pixel."""

    name: str
    x: int
    y: int
    across: int  # a frame
    down: int
    radius: int
    turn: int

    def at(self, frame: int) -> tuple[int, int]:
        return self.x + self.across * frame, self.y + self.down * frame

    def stamp(self, frame: int, size: int) -> Stamp:
        x, y = self.at(frame)
        return stamp(self.name, size=size, x=x, y=y, radius=self.radius, turn=self.turn)


class MovingFrame(NamedTuple):
    """picture: size size 3 uint8. ids: T, from 1. boxes: T 4. masks: T RLEs of the visible parts.
    labels: T, from 1. Shapes that others hide are left out.
    """

    picture: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    masks: list[dict]
    labels: np.ndarray


def gaps(one: Mover, other: Mover, frames: int) -> np.ndarray:
    """Pixels between two shapes in each frame, at least; below 0 where they overlap."""
    places = np.array([[mover.at(frame) for frame in range(frames)] for mover in (one, other)])
    distance = np.hypot(*(places[0] - places[1]).T) - 1.12 * (one.radius + other.radius)
    return distance / STEPS


def paths_cross(one: Mover, other: Mover, frames: int) -> bool:
    """Whether one comes to where the other was or will be."""
    places = np.array([[mover.at(frame) for frame in range(frames)] for mover in (one, other)])
    between = np.hypot(*(places[0][:, None] - places[1][None]).transpose(2, 0, 1))
    return bool(between.min() < min(one.radius, other.radius))


def movers(seed: int, count: int, size: int, frames: int, *, occlude: bool) -> list[Mover]:
    """Shapes whose paths cross; with `occlude` at the same time, so that one hides the other."""
    dice, chosen = Dice(seed, 77), list[Mover]()
    for _ in range(20_000):
        radius = dice.number(size // 14, size // 10) * STEPS
        edge = size * STEPS - radius
        ends = [(dice.number(radius, edge), dice.number(radius, edge)) for _ in range(2)]
        across, down = ((b - a) // frames for a, b in zip(*ends, strict=True))
        name, turn = dice.pick(NAMES), dice.number(-16, 16)
        mover = Mover(name, *ends[0], across, down, radius, turn)
        if np.hypot(across, down) > radius / 6 or np.hypot(across, down) < STEPS / 2:
            continue
        least = [gaps(mover, other, frames).min() for other in chosen]
        starts = [gaps(mover, other, 1).min() for other in chosen]
        crosses = not chosen or any(paths_cross(mover, other, frames) for other in chosen)
        apart = all(gap > 1 for gap in (starts if occlude else least))
        meets = not chosen or not occlude or min(least) < -radius / STEPS
        if crosses and apart and meets:
            chosen.append(mover)
        if len(chosen) == count:
            return chosen
    raise RuntimeError("no such shapes")


@lru_cache(maxsize=4)
def moving_frames(
    seed: int, count: int = 5, size: int = 128, frames: int = 60, occlude: bool = False
) -> list[MovingFrame]:
    shapes = movers(seed, count, size, frames, occlude=occlude)
    ground = background(Dice(seed, 78), size)
    return [_draw(seed, shapes, ground, frame) for frame in range(frames)]


def _draw(seed: int, shapes: list[Mover], ground: np.ndarray, frame: int) -> MovingFrame:
    size, picture = len(ground), ground.copy()
    visible: list[np.ndarray] = []
    for number, mover in enumerate(shapes):
        shape = mover.stamp(frame, size)
        paint(picture, shape, Dice(seed, number), VIVID[number % len(VIVID)])
        mask = shape.mask_of(size)
        visible = [earlier & ~mask for earlier in visible] + [mask]
    seen = [number for number, mask in enumerate(visible) if mask.sum() > 20]
    masks = [coco_mask.encode(np.asfortranarray(visible[n].astype(np.uint8))) for n in seen]
    boxes = np.array([coco_mask.toBbox(mask) for mask in masks]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return MovingFrame(
        picture.astype(np.uint8),
        np.array(seen) + 1,
        boxes,
        masks,
        np.array([NAMES.index(shapes[n].name) + 1 for n in seen]),
    )
