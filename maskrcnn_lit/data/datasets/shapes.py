"""The synthetic set: pictures of shapes on textured backgrounds, with COCO jsons, drawn in seconds.

    root/train/000000.png ...    root/annotations/instances_train.json
    root/val/000000.png ...      root/annotations/instances_val.json

The six classes (circle, cross, rectangle, ring, star, triangle) differ only in their outline:
color, texture and size are random. Later shapes hide earlier ones; an annotation is the visible
part, and a shape that would leave less than a quarter of an earlier one visible is not drawn. About
one picture in twenty is empty, and one in twenty has a crowd region: a cluster of tiny shapes under
one annotation with `iscrowd` 1.

A pixel belongs to a shape that covers at least half of it. Every rasterizer reproduces exactly
these pixels from the segmentations: polygons run along pixel edges, one for each part of the mask;
a mask with a hole, which COCO's polygons cannot express, is compressed RLE; a crowd region is
uncompressed RLE, as in COCO. Box and area are those of the mask.

With an overlap (shape_pairs.py), the shapes come in pairs in which the upper hides this share of
the lower, and an annotation has the mask of the whole shape, too: `amodal_segmentation`.

Every picture depends on (seed, split, position, size, overlap) and Pillow's version alone: the
first 100 pictures of 100 and of 400 are the same.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from maskrcnn_lit.data.coco.annotations import AMODAL
from maskrcnn_lit.data.datasets.shape_annotation import annotate, compressed
from maskrcnn_lit.data.datasets.shape_drawing import (
    OUTLINES,
    STEPS,
    VIVID,
    Color,
    Dice,
    Stamp,
    background,
    paint,
    stamp,
)
from maskrcnn_lit.data.datasets.shape_pairs import draw_pairs
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import atomic_folder

NAMES = tuple(OUTLINES)

FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}

MOST_OVERLAP = 0.9

VERSION = 2  # of the pictures: raise it with every change of a pixel or an annotation

TURN = 16  # up to 28 degrees each way: a small model learns this within a few hundred steps

_MARKER, _COUNTS = "shapes.json", ("train_images", "val_images")

_log = logging.getLogger(__name__)


class Instance(NamedTuple):
    """An annotation while a scene is drawn."""

    name: str
    mask: np.ndarray  # size size bool: the visible part
    whole: int  # pixels before occlusion
    crowd: bool
    amodal: np.ndarray | None = None  # size size bool: the part that others hide included


class Scene(NamedTuple):
    """A picture, size size 3 int32 in 0..255, and its instances."""

    picture: np.ndarray
    instances: list[Instance]


def write_shapes(
    *,
    root: str | Path,
    train_images: int,
    val_images: int,
    size: int,
    seed: int,
    overlap: float | None = None,
) -> None:
    """Draw the set into `root`, unless `root` has a set of the same size, seed and overlap with at
    least as many pictures.

    overlap: in 0..0.9, see shape_pairs.py; None: shapes at random places.

    A new set is drawn into a temporary folder and replaces an old one when it is complete, so
    readers see a complete set or none, even after a killed run. Raises UserError if `root` has
    other files.
    """
    root = Path(root)
    wanted: dict[str, Any] = {
        "version": VERSION,
        "size": size,
        "seed": seed,
        "train_images": train_images,
        "val_images": val_images,
    }
    _check(wanted)
    if overlap is not None:
        _check_overlap(overlap)
        wanted["overlap"] = float(overlap)
    present = _present(root)
    if _serves(present, wanted):
        return
    if present is not None and _same_pictures(
        present, wanted
    ):  # grow, never shrink: another run may read it
        wanted |= {key: max(wanted[key], present[key]) for key in _COUNTS}
    strange = _strange(root, drawn_here=present is not None)
    if strange:
        raise UserError(
            f"{root} has {strange}, which is not part of the synthetic set, so it is not "
            "overwritten: give an empty or a new folder with data.root=DIR"
        )
    _log.debug(
        "drawing %d + %d pictures of %d px into %s",
        wanted["train_images"],
        wanted["val_images"],
        size,
        root,
    )
    try:
        _replace(root, wanted)
    except OSError as error:
        if _serves(_present(root), wanted):  # another process was faster
            return
        needs = (train_images + val_images) * size * size * 3 / 1e6 + 1
        raise UserError(
            f"cannot write the synthetic set into {root}: {error.strerror or error}; "
            f"free {needs:.0f} MB there, or give another folder with data.root=DIR"
        ) from error


def _check(wanted: dict[str, Any]) -> None:
    for key, least in (("train_images", 1), ("val_images", 1), ("size", 64), ("seed", 0)):
        if not isinstance(wanted[key], int) or wanted[key] < least:
            name = f"data.{key}" if key.endswith("images") else f"data.prepare.{key}"
            raise UserError(
                f"{name}={wanted[key]} must be a whole number of {least} or more: use for example "
                f"{name}={max(least, 100)}"
            )


def _check_overlap(overlap: Any) -> None:
    number = isinstance(overlap, (int, float)) and not isinstance(overlap, bool)
    if not number or not 0 <= overlap <= MOST_OVERLAP:  # NaN, too
        raise UserError(
            f"data.overlap={overlap} must be a number from 0 (shapes that touch) to "
            f"{MOST_OVERLAP}, the share of the lower shape of a pair that is hidden: use for "
            "example data.overlap=0.5, or null"
        )


def _present(root: Path) -> dict[str, Any] | None:
    """The parameters of the set in `root`; None without a set."""
    try:
        return dict(json.loads((root / _MARKER).read_text()))
    except (OSError, ValueError):
        return None


def _serves(present: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return (
        present is not None
        and _same_pictures(present, wanted)
        and all(present[k] >= wanted[k] for k in _COUNTS)
    )


def _same_pictures(present: dict[str, Any], wanted: dict[str, Any]) -> bool:
    keys = ("version", "size", "seed", "overlap")
    return all(present.get(key) == wanted.get(key) for key in keys)


def _strange(root: Path, drawn_here: bool) -> str | None:
    """The name of a file in `root` that does not belong to the set, or None."""
    if not root.exists():
        return None
    if not root.is_dir():
        return "a file"
    ours = {_MARKER, "annotations", *FIRST_IMAGE_ID} if drawn_here else set()
    return next((repr(path.name) for path in sorted(root.iterdir()) if path.name not in ours), None)


def _replace(root: Path, wanted: dict[str, Any]) -> None:
    # not flushed to the disk: that takes longer than drawing
    with atomic_folder(root, replace=True, durable=False) as new:
        for split in FIRST_IMAGE_ID:
            _write_split(new, split, wanted)
        (new / _MARKER).write_text(json.dumps(wanted, indent=1) + "\n")


def _write_split(root: Path, split: str, wanted: dict[str, Any]) -> None:
    folder = root / split
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    size, overlap = wanted["size"], wanted.get("overlap")
    for position in range(wanted[f"{split}_images"]):
        image_id = FIRST_IMAGE_ID[split] + position
        dice = Dice(wanted["seed"], FIRST_IMAGE_ID[split], position)
        scene = draw_scene(dice, size) if overlap is None else draw_overlapping(dice, size, overlap)
        name = f"{position:06d}.png"
        Image.fromarray(scene.picture.astype(np.uint8)).save(folder / name, compress_level=1)
        images.append({"id": image_id, "file_name": name, "height": size, "width": size})
        annotations += [
            {
                "id": image_id * 100 + number,
                "image_id": image_id,
                "category_id": NAMES.index(instance.name) + 1,
                **annotate(instance.mask, instance.crowd),
                **({} if instance.amodal is None else {AMODAL: compressed(instance.amodal)}),
            }
            for number, instance in enumerate(scene.instances)
        ]
    content = {
        "info": {
            "description": f"synthetic shapes, {split}, version {VERSION}, seed {wanted['seed']}"
            + ("" if overlap is None else f", overlap {overlap:g}")
        },
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(NAMES, 1)
        ],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(
        json.dumps(content, separators=(",", ":")) + "\n"
    )


def draw_scene(dice: Dice, size: int) -> Scene:
    """A picture of `size` x `size` pixels: background, possibly a crowd, and one large shape with
    few others, or up to six.
    """
    scene = Scene(background(dice, size), [])
    if dice.chance(5):
        return scene
    if dice.chance(5):
        _add_crowd(scene, dice, size)
    pixel = size * STEPS // 128  # lengths below refer to a picture of 128 x 128 pixels
    most = 6
    if dice.chance(6):
        # Its visible part has over 96 x 96 pixels: COCO's size large.
        _add_shape(
            scene, dice, size, dice.pick(("circle", "ring")), dice.number(64 * pixel, 70 * pixel)
        )
        most = 2
    for _ in range(dice.number(min(2, most), most)):
        _add_shape(scene, dice, size, dice.pick(NAMES), dice.number(8 * pixel, 31 * pixel))
    return scene


def draw_overlapping(dice: Dice, size: int, overlap: float) -> Scene:
    """A picture of `size` x `size` pixels: background, and one to three pairs of shapes of which
    the upper hides the share `overlap` of the lower (shape_pairs.py).
    """
    scene = Scene(background(dice, size), [])
    for name, stamps in draw_pairs(dice, size, overlap):
        below, above = (shape.mask_of(size) for shape in stamps)
        color: Color | None = None
        for shape, mask, visible in zip(
            stamps, (below, above), (below & ~above, above), strict=True
        ):
            color = _contrasting(scene.picture, shape, dice, color)
            paint(scene.picture, shape, dice, color)
            scene.instances.append(
                Instance(name, visible, int(mask.sum()), crowd=False, amodal=mask)
            )
    return scene


def _add_shape(scene: Scene, dice: Dice, size: int, name: str, radius: int) -> None:
    """Draw the shape at the first of six random positions where it fits; if none fits, leave it
    out.

    One in four may hide three quarters of an earlier shape, the others an eighth.
    """
    margin = min(radius * 3 // 4, size * STEPS * 7 // 16)
    in_sight = 2 if dice.chance(25) else 7  # eighths
    for _ in range(6):
        x, y = (dice.number(margin, size * STEPS - margin) for _ in range(2))
        shape = stamp(name, size=size, x=x, y=y, radius=radius, turn=dice.number(-TURN, TURN))
        mask = shape.mask_of(size)
        if all(
            int((earlier.mask & ~mask).sum()) * 8 >= earlier.whole * in_sight
            for earlier in scene.instances
        ):
            paint(scene.picture, shape, dice, _contrasting(scene.picture, shape, dice))
            for earlier in scene.instances:
                earlier.mask[mask] = False
            scene.instances.append(Instance(name, mask, int(mask.sum()), crowd=False))
            return


def _add_crowd(scene: Scene, dice: Dice, size: int) -> None:
    """Draw a cluster of tiny shapes of one class and color; the crowd region extends three pixels
    beyond them.
    """
    pixel = size * STEPS // 128
    name, spread = dice.pick(NAMES), dice.number(14 * pixel, 22 * pixel)
    x, y = (dice.number(26 * pixel, 102 * pixel) for _ in range(2))
    region = np.zeros((size, size), bool)
    color: Color | None = None
    for _ in range(dice.number(14, 22)):
        center = {"x": x + dice.number(-spread, spread), "y": y + dice.number(-spread, spread)}
        radius, turn = dice.number(4 * pixel, 5 * pixel), dice.number(-TURN, TURN)
        shape = stamp(name, size=size, radius=radius, turn=turn, **center)
        color = color or _contrasting(scene.picture, shape, dice)
        paint(scene.picture, shape, dice, color)
        region |= stamp("circle", size=size, radius=radius + 3 * pixel, turn=0, **center).mask_of(
            size
        )
    scene.instances.append(Instance(name, region, int(region.sum()), crowd=True))


def _contrasting(
    picture: np.ndarray, shape: Stamp, dice: Dice, other: Color | None = None
) -> Color:
    """A random color that contrasts with the pixels under the shape, and with `other`."""
    under = picture[shape.part][shape.cover > 0]
    mean = (under.sum(0) // len(under)).tolist()
    choices = [color for color in VIVID if other is None or _distance(color, other) > 200]
    for _ in range(8):
        color = dice.pick(choices)
        if _distance(color, mean) > 200:
            break
    return color


def _distance(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))
