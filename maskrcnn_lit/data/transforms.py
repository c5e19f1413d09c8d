"""Augmentation of a training image: one affine map for pixels, boxes and masks, then color jitter
on the pixels.

The map is sampled once per image (`sample_transform`): a crop of whole pixels, resized, possibly
mirrored. It is composed of matrices, and pixels are resampled once. Coordinates are continuous:
pixel i spans i to i + 1.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_lit.data.image_size import ImageSize, fit, fitted_sizes
from maskrcnn_lit.data.warp import (
    MAX_PERSPECTIVE,
    Blur,
    Noise,
    Perspective,
    QuarterTurns,
    Rotation,
    Transform,
    VerticalFlip,
)
from maskrcnn_lit.errors import UserError, check_list, check_whole, check_within

# crops begin at multiples of this, so a JPEG decoded at 1/8 size begins at a whole pixel
_GRID = 8

_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601 weights of red, green, blue


MAX_BLUR = 20.0  # of augment.blur: pixels

MAX_PASTED = 1000  # of augment.copy_paste.objects

MIN_SCALE, MAX_SCALE = 0.01, 4.0  # of augment.scale; also the minimum of augment.crop


class CopyPaste(NamedTuple):
    """Objects of another training image are pasted on an image, see paste.py."""

    p: float = 0.0  # probability that an image gets objects
    occlude: float = 0.3  # share of the pasted objects that are put on another object
    visible: float = 0.05  # an object of which a smaller share remains is dropped
    objects: int = 3  # at most as many are pasted on an image


class Augment(NamedTuple):
    """Random changes to a training image; the defaults change nothing. Documented in
    conf/augment/default.yaml.
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    crop: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    vertical_flip: float = 0.0  # these six are applied as the first `transforms`
    rot90: float = 0.0
    perspective: float = 0.0
    rotation: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    transforms: tuple[Transform, ...] = ()  # custom ones, applied after these, in order
    copy_paste: CopyPaste = CopyPaste()  # applied before color jitter and `transforms`


class SampledTransform(NamedTuple):
    """The sampled crop, resize and flip of an image."""

    window: tuple[int, int, int, int]  # y, x, height, width of the crop, in pixels of the file
    size: tuple[int, int]  # height, width after the resize
    flip: bool  # whether to mirror left to right after the resize
    matrix: NDArray[
        np.float64
    ]  # 2 3, x, y, 1 of the file -> x, y of the training image; it is axis-aligned


# in the order in which they are applied: perspective first, so that rotation leaves no part of the
# image behind its horizon
_OURS: dict[str, Callable[[float], Transform]] = {
    "vertical_flip": VerticalFlip,
    "rot90": QuarterTurns,
    "perspective": Perspective,
    "rotation": Rotation,
    "blur": Blur,
    "noise": Noise,
}


def read_augment(values: Mapping[str, Any]) -> Augment:
    """The augmentation with plain numbers as in conf/augment, and the objects in `transforms`.

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"augment={values} must have values for {', '.join(Augment._fields)}")
    unknown = [name for name in values if name not in Augment._fields]
    if unknown:
        raise UserError(f"augment.{unknown[0]} is unknown: use {', '.join(Augment._fields)}")
    transforms = _read_transforms(values.get("transforms", ()))
    copy_paste = _read_copy_paste(values.get("copy_paste", {}))
    given: dict[str, Any] = {
        key: value for key, value in values.items() if key not in ("transforms", "copy_paste")
    }
    augment = Augment(**given)
    check_list(MIN_SCALE, MAX_SCALE, 2, augment__scale=augment.scale)
    if augment.scale[0] > augment.scale[1]:
        raise UserError(
            f"augment.scale={list(augment.scale)} must be [low, high] with low at most high"
        )
    check_within(MIN_SCALE, 1, augment__crop=augment.crop)
    for name in ("flip", "vertical_flip", "rot90", "brightness", "contrast", "saturation"):
        check_within(0, 1, **{f"augment__{name}": getattr(augment, name)})
    check_within(0, MAX_PERSPECTIVE, augment__perspective=augment.perspective)
    check_within(0, 180, augment__rotation=augment.rotation)
    check_within(0, MAX_BLUR, augment__blur=augment.blur)
    check_within(0, 1, augment__noise=augment.noise)
    low, high = map(float, augment.scale)
    numbers = {name: float(value) for name, value in given.items() if name != "scale"}
    ours = [make(numbers[name]) for name, make in _OURS.items() if numbers.get(name)]
    return Augment(
        scale=(low, high), transforms=(*ours, *transforms), copy_paste=copy_paste, **numbers
    )


def _read_copy_paste(values: Any) -> CopyPaste:
    names = CopyPaste._fields
    if not isinstance(values, Mapping):
        raise UserError(f"augment.copy_paste={values} must have values for {', '.join(names)}")
    unknown = [name for name in values if name not in names]
    if unknown:
        raise UserError(f"augment.copy_paste.{unknown[0]} is unknown: use {', '.join(names)}")
    options = CopyPaste(**values)
    for name in ("p", "occlude", "visible"):
        check_within(0, 1, **{f"augment__copy_paste__{name}": getattr(options, name)})
    check_whole(1, MAX_PASTED, augment__copy_paste__objects=options.objects)
    return options


def _read_transforms(values: Any) -> tuple[Transform, ...]:
    if not isinstance(values, (list, tuple)):
        raise UserError(
            f"augment.transforms={values} must be a list: [{{_target_: mylab.augment.Rotate}}]"
        )
    for number, value in enumerate(values):
        if not all(callable(getattr(value, name, None)) for name in ("geometry", "pixels")):
            raise UserError(
                f"augment.transforms[{number}] is {value!r}, which has no methods geometry and "
                f"pixels: subclass maskrcnn_lit.data.warp.Transform and give {{_target_: its name}}"
            )
    return tuple(values)


def sample_transform(
    height: int,
    width: int,
    image_size: ImageSize,
    augment: Augment | None,
    rng: np.random.Generator,
) -> SampledTransform:
    """Sample crop, scale and flip for an image of this size; `augment` None: only resize the full
    image.

    A random crop is resized like an image of its size, but at most to the resized full image (or
    the square). Then the scale factor is applied; an image that becomes larger than that is cut at
    a random position. Every call draws the same number of random numbers.
    """
    augment = augment or Augment()
    draws = rng.random(6)
    full = np.array([height, width])
    shown = np.maximum(np.rint(full * (augment.crop + (1 - augment.crop) * draws[:2])), 1)
    room = np.full(2, image_size) if isinstance(image_size, int) else fitted_sizes(full, image_size)
    best = fit(shown, image_size)
    if augment.crop < 1:
        best = min(best, *(room / shown))
    low, high = augment.scale
    factor = best * (low + (high - low) * draws[2])
    shown = np.minimum(
        shown, np.maximum(np.floor((room + 0.5) / factor + 1e-6), 1)
    )  # sizes that round to the available room fit
    size = np.minimum(np.maximum(np.rint(shown * factor), 1), room)
    start = (full - shown) * draws[3:5] // _GRID * _GRID
    flip = bool(draws[5] < augment.flip)
    (y, x), (tall, wide), (h, w) = (
        start.astype(int).tolist(),
        shown.astype(int).tolist(),
        size.astype(int).tolist(),
    )
    return SampledTransform(
        (y, x, tall, wide), (h, w), flip, _matrix((y, x, tall, wide), (h, w), flip)
    )


def full_view(height: int, width: int, image_size: ImageSize) -> SampledTransform:
    """The resized full image, for validation and prediction."""
    return sample_transform(height, width, image_size, None, np.random.default_rng(0))


def whole_image(file_size: tuple[int, int], size: tuple[int, int]) -> SampledTransform:
    """The full image of `file_size` (height, width), resized to `size`."""
    window = (0, 0, *file_size)
    return SampledTransform(window, size, False, _matrix(window, size, False))


def _matrix(
    window: tuple[int, int, int, int], size: tuple[int, int], flip: bool
) -> NDArray[np.float64]:
    """The composed matrix: move the crop's corner to the origin, resize, mirror."""
    y, x, height, width = window
    down, across = size[0] / height, size[1] / width
    mirror, shift = (-1.0, size[1]) if flip else (1.0, 0)
    return np.array(
        [[mirror * across, 0, mirror * across * -x + shift], [0, down, down * -y]], np.float64
    )


def map_boxes(boxes: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map N 4 boxes, x1 y1 x2 y2, by an axis-aligned affine `matrix`."""
    corners = boxes.reshape(-1, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def resample(pixels: NDArray[np.uint8], factor: int, view: SampledTransform) -> Tensor:
    """The 3 H W uint8 image of `view`, from the file's pixels (H W 3), which are already downscaled
    by `factor` (see `decode`).

    Bilinear on 8 bits, antialiased when shrinking, align_corners=False. The memory format of the
    result is H W 3, which torch resizes 2.5 times as fast.
    """
    y, x, height, width = view.window
    bottom, right = (
        -(-(y + height) // factor),
        -(-(x + width) // factor),
    )  # rounded up: the last pixel may extend beyond the crop
    part = torch.from_numpy(pixels[y // factor : bottom, x // factor : right])
    part = part[None].permute(0, 3, 1, 2)  # H W 3 -> 1 3 H W
    if (
        height % factor or width % factor
    ):  # the part extends beyond the crop: fix the scale, cut the remainder
        scale = (view.size[0] * factor / height, view.size[1] * factor / width)
        image = F.interpolate(
            part, scale_factor=scale, mode="bilinear", antialias=True, recompute_scale_factor=False
        )
        image = image[..., : view.size[0], : view.size[1]]
    else:
        image = F.interpolate(part, size=view.size, mode="bilinear", antialias=True)
    return (image.flip(-1) if view.flip else image)[0]


def color_jitter(image: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast around the mean gray, and saturation around each pixel's gray, as one 3
    x 3 matrix.

    Like torchvision's ColorJitter in that order, but rounded and clamped to 0..255 once, at the
    end.
    """
    strengths = (augment.brightness, augment.contrast, augment.saturation)
    if not any(strengths):
        return image
    brightness, contrast, saturation = 1 + np.array(strengths) * rng.uniform(-1, 1, 3)
    gray = torch.tensor(_GRAY)
    values = image.flatten(1).float()  # 3 H W -> 3 (H W)
    mean = float(gray @ values.mean(1)) * brightness
    matrix = (
        contrast * brightness * (saturation * torch.eye(3) + (1 - saturation) * gray.expand(3, 3))
    )
    values = torch.addmm(torch.full((3, 1), (1 - contrast) * mean), matrix.float(), values)
    return values.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)
