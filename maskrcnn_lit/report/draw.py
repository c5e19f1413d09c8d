"""Draws instances on an image: translucent masks with smooth outlines, boxes, and legible labels.

Two parts: conversion of detections to the arguments of `draw_instances` (`detections_to_draw`), and
drawing (`draw_instances`, `side_by_side`, `grid`). Pictures are H W 3 uint8 arrays, RGB, in and
out. panels.py converts a batch.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_mask

from maskrcnn_lit.report.fonts import Font, fitting_font

# smaller images are enlarged to about this size, so that labels are legible and small beside
# objects
LONG_SIDE = 512

LABEL_SHARE = 0.1  # share of the picture that labels may cover

MANY = 40  # number of objects from which labels must not hide other objects

PAPER, INK = (250, 250, 248), (16, 16, 18)

STRIPES = (190, 70)  # of void pixels

Color = tuple[int, int, int]

Box = tuple[float, float, float, float]

# Light enough for text in INK (contrast of 4.5 or more). Neighbors in the list differ clearly,
# since adjacent objects of one class use the next color.
PALETTE: tuple[Color, ...] = (
    *((255, 72, 72), (0, 176, 255), (255, 202, 20), (176, 96, 255), (44, 214, 106)),
    *((255, 128, 16), (0, 214, 204), (255, 92, 190), (176, 226, 44), (92, 116, 255)),
)


def draw_instances(
    image: np.ndarray,
    *,
    boxes: np.ndarray,
    masks: Sequence[Any],
    names: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
    colors: Sequence[Color] | None = None,
    void: np.ndarray | None = None,
) -> np.ndarray:
    """`image` (H W 3 uint8) with R instances drawn on it; small images are enlarged by an integer
    factor.

    `boxes` R 4 are x1 y1 x2 y2 in pixels of `image`; `masks` are R bool arrays H W or COCO RLE
    dicts, or none at all; `names` and `scores` become the labels. Colors are by class, but adjacent
    objects differ in color; `colors` sets one for each object. A label that is empty, has no free
    place, or would hide too much of the picture is left out. `void` (H W bool) is hatched in gray.
    """
    height, width = image.shape[:2]
    if not len(names) == len(boxes) == len(masks or names):
        raise ValueError(
            f"{len(boxes)} boxes, {len(masks)} masks and {len(names)} names; one of each is "
            "required"
        )
    factor = max(1, round(LONG_SIDE / max(height, width)))
    canvas = Image.fromarray(image).resize(
        (width * factor, height * factor), Image.Resampling.BICUBIC
    )
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * factor
    lines = np.clip(np.sqrt(abs(_areas(boxes))) / 14, 1, max(1.0, max(canvas.size) / 400)).tolist()
    order = np.argsort(-_areas(boxes), kind="stable").tolist()  # small ones over large ones
    colors = colors or _colors(boxes, names, order, near=0.04 * max(canvas.size))
    pixels = np.array(canvas)
    if void is not None:
        _hatch(pixels, void, factor)
    for i in order if len(masks) else ():
        _blend_mask(pixels, _decode(masks[i], height, width), colors[i], factor, lines[i])
    canvas = Image.fromarray(pixels)
    pencil = ImageDraw.Draw(canvas)
    for i in order:
        pencil.rectangle(_inside(boxes[i], canvas.size), outline=colors[i], width=round(lines[i]))
    texts = (
        list(names)
        if scores is None
        else [f"{n} {s:.2f}" for n, s in zip(names, scores, strict=True)]
    )
    ranked = order if scores is None else np.argsort(-np.asarray(scores), kind="stable").tolist()
    _write_labels(
        canvas, [(tuple(boxes[i].tolist()), texts[i], colors[i]) for i in ranked if texts[i]]
    )
    return np.array(canvas)


def side_by_side(left: np.ndarray, right: np.ndarray, titles: tuple[str, str]) -> np.ndarray:
    """Two pictures in one, each under its title, e.g. ("ground truth", "prediction")."""
    return grid([titled(left, titles[0]), titled(right, titles[1])], columns=2)


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures in rows of `columns`, each centered in its cell, on a light background."""
    if not pictures or columns < 1:
        raise ValueError(
            f"a grid needs a picture and a column, got {len(pictures)} pictures and "
            f"columns={columns}"
        )
    columns = min(columns, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    widths = [
        max(picture.shape[1] for picture in pictures[column::columns]) for column in range(columns)
    ]
    gap = max(4, max(widths) // 64)
    sheet = np.full(
        (sum(heights) + gap * (len(rows) + 1), sum(widths) + gap * (columns + 1), 3),
        PAPER,
        np.uint8,
    )
    for position, picture in enumerate(pictures):
        row, column = divmod(position, columns)
        height, width, _ = picture.shape
        top = gap * (row + 1) + sum(heights[:row]) + (heights[row] - height) // 2
        left = gap * (column + 1) + sum(widths[:column]) + (widths[column] - width) // 2
        sheet[top : top + height, left : left + width] = picture
    return sheet


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """A picture under its title, of one size over upright and wide pictures. A title that is too
    long is cut in its middle: file names differ at their ends.
    """
    size = max(14, max(picture.shape[:2]) // 26)
    strip = Image.new("RGB", (picture.shape[1], round(size * 1.7)), PAPER)
    font, text = fitting_font(title, size)
    text = _cut_to(picture.shape[1] - 4, text, font)
    ImageDraw.Draw(strip).text((2, strip.height // 2), text, INK, font, anchor="lm")
    return np.concatenate([np.array(strip), picture])


def _cut_to(width: int, text: str, font: Font) -> str:
    """`text`, or its first and last letters around "..." where it is wider than `width` pixels."""
    letters = len(text)
    shown = text
    while font.getlength(shown) > width and letters > 1:
        letters -= 1
        shown = f"{text[: letters // 3]}...{text[len(text) - (letters - letters // 3) :]}"
    return shown


def detections_to_draw(
    detections: Mapping[str, Any], names: Sequence[str], score_threshold: float
) -> dict[str, Any]:
    """One image's detections (a dict of `to_original`) with a score of `score_threshold` or more,
    as arguments of `draw_instances`.
    """
    selected = np.flatnonzero(np.asarray(detections["scores"]) >= score_threshold).tolist()
    return {
        "boxes": np.asarray(detections["boxes"]).reshape(-1, 4)[selected],
        "masks": [detections["masks"][r] for r in selected] if "masks" in detections else [],
        "names": [names[int(detections["labels"][r]) - 1] for r in selected],
        "scores": np.asarray(detections["scores"])[selected],
    }


def _decode(mask: Any, height: int, width: int) -> np.ndarray:
    if isinstance(mask, Mapping):
        if isinstance(mask["counts"], list):
            mask = coco_mask.frPyObjects(mask, *mask["size"])
        mask = coco_mask.decode(mask)
    mask = np.asarray(mask).astype(bool)
    if mask.shape != (height, width):
        raise ValueError(
            f"a mask of {mask.shape} (height, width) cannot lie on an image of {(height, width)}"
        )
    return mask


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _inside(box: np.ndarray, size: tuple[int, int]) -> list[int]:
    """Corner pixels of a box, clipped to the image."""
    x1, y1, x2, y2 = np.round(box).astype(int).tolist()
    x1, y1 = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return [x1, y1, max(x1, min(x2, size[0]) - 1), max(y1, min(y2, size[1]) - 1)]


def _colors(
    boxes: np.ndarray, names: Sequence[str], order: Sequence[int], near: float
) -> list[Color]:
    """A color for each box: that of its class, or the next in the palette that no box within `near`
    pixels has.
    """
    taken = np.full(len(boxes), -1)
    for i in order:
        gaps = np.maximum(boxes[:, :2] - boxes[i, 2:], boxes[i, :2] - boxes[:, 2:]).max(1)
        uses = np.bincount(taken[(gaps < near) & (taken >= 0)], minlength=len(PALETTE))
        # stable across processes, unlike hash()
        first = zlib.adler32(names[i].encode("utf-8", "backslashreplace")) % len(PALETTE)
        taken[i] = (first + np.roll(uses, -first).argmin()) % len(PALETTE)
    return [PALETTE[color] for color in taken]


def _hatch(pixels: np.ndarray, void: np.ndarray, factor: int) -> None:
    """Draw diagonal stripes, light and dark gray, on the pixels of a region, which is `factor`
    times smaller.
    """
    width = max(2, max(pixels.shape[:2]) // 128)  # of a stripe
    y, x = np.nonzero(np.kron(void.astype(bool), np.ones((factor, factor), bool)))
    gray = np.where((x + y) // width % 2, *STRIPES)
    pixels[y, x] = np.round(0.3 * pixels[y, x] + 0.7 * gray[:, None])


def _blend_mask(
    pixels: np.ndarray, mask: np.ndarray, color: Color, factor: int, line: float
) -> None:
    """Tint `pixels` under `mask` (which is `factor` times smaller) and draw its outline."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return
    margin = math.ceil(3 * line / factor) + 1
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    part = mask[top : rows[-1] + 1 + margin, left : columns[-1] + 1 + margin]
    picture = Image.fromarray(part.astype(np.uint8) * 255)
    picture = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.BILINEAR
    )
    blur = max(0.7 * line, 0.6 * factor)  # enough to smooth the steps of an enlarged mask
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255
    inwards = (soft - 0.5) * 2.5 * blur  # pixels from a straight edge, up to 1.25 blur
    fill = np.clip(inwards + 0.5, 0, 1) * 0.35
    edge = np.clip((0.6 - abs(inwards) / line) * 4 + 0.5, 0, 1)
    halo = (
        np.asarray(
            Image.fromarray(np.uint8(edge * 255)).filter(ImageFilter.GaussianBlur(line)), np.float32
        )
        / 255
    )
    target = pixels[
        top * factor : top * factor + len(fill), left * factor : left * factor + fill.shape[1]
    ]
    for tint, share in ((color, fill), (INK, halo * 0.7), (color, edge)):
        target[:] = np.round(target + (np.array(tint, np.float32) - target) * share[..., None])


def _write_labels(canvas: Image.Image, labels: Sequence[tuple[Box, str, Color]]) -> None:
    """Write a tag for each (box, text, color); earlier ones choose their place first."""
    size = max(
        12, round(max(canvas.size) / 42 * min(1.0, 20 / max(1, len(labels))) ** 0.25)
    )  # smaller for many objects
    pencil = ImageDraw.Draw(canvas)
    boxes = np.array([box for box, _, _ in labels]).reshape(-1, 4)
    placed = np.zeros((0, 4))
    room = LABEL_SHARE * canvas.width * canvas.height
    for i, (box, text, color) in enumerate(labels):
        font, text = fitting_font(text, size)
        width, height = font.getlength(text) + size * 0.5, size * 1.3
        if room < width * height:
            break
        spots = _spots(box, width, height, canvas.size)
        tags_hidden = np.array([_overlap(spot, placed) for spot in spots])
        objects_hidden = np.array([_overlap(spot, np.delete(boxes, i, 0)) for spot in spots])
        best = int(np.argmin(tags_hidden * 10 + objects_hidden))
        hides = max(tags_hidden[best], objects_hidden[best] if len(labels) >= MANY else 0)
        if hides > 0.1 * width * height:
            continue
        room -= width * height
        placed = np.vstack([placed, spots[best]])
        pencil.rounded_rectangle(
            [round(side) for side in spots[best]], radius=size * 0.25, fill=color
        )
        middle = ((spots[best][0] + spots[best][2]) / 2, (spots[best][1] + spots[best][3]) / 2)
        pencil.text(middle, text, INK, font, anchor="mm")


def _spots(box: Box, width: float, height: float, size: tuple[int, int]) -> list[Box]:
    """The possible places of a tag, best first: above the box, below it, inside at the top, inside
    at the bottom.
    """
    x1, y1, x2, y2 = box
    spots = []
    for y in (y1 - height, y2, y1, y2 - height):
        for x in (x1, x2 - width, (x1 + x2 - width) / 2):
            left, top = (
                min(max(x, 0), max(0, size[0] - width - 1)),
                min(max(y, 0), max(0, size[1] - height - 1)),
            )
            spots.append((left, top, left + width, top + height))
    return spots


def _overlap(spot: Box, placed: np.ndarray) -> float:
    """Pixels of `spot` that placed tags (N 4) cover."""
    sides = np.minimum(placed[:, 2:], spot[2:]) - np.maximum(placed[:, :2], spot[:2])
    return float(np.prod(np.clip(sides, 0, None), axis=1).sum())
