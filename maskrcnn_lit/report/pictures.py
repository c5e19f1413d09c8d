"""Pictures for reports: which images, read, shrunk, encoded."""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.evaluation.coco.results import mask_rle
from maskrcnn_lit.storage.images import UnreadableImageError

LONGEST = 640  # pixels of the longest side of a picture

_QUALITY = 82

ReadImage = Callable[[int], np.ndarray | None]  # image id -> H W 3 uint8; None: it cannot be read


def image_reader(index: AnnotationIndex) -> ReadImage:
    """Reads images by their id."""
    places = {int(image_id): i for i, image_id in enumerate(index.image_ids)}

    def read(image_id: int) -> np.ndarray | None:
        i = places[image_id]
        try:
            return index.decode(i)[0]
        except (OSError, UnreadableImageError):
            return None

    return read


def box_of(entry: Mapping[str, Any], image: Mapping[str, Any]) -> Any:
    """x, y, w, h of an entry, from its mask if it has no box."""
    return entry["bbox"] if "bbox" in entry else rle_tools.toBbox(mask_rle(entry, image))


def shrunk(picture: np.ndarray) -> np.ndarray:
    height, width, _ = picture.shape
    share = LONGEST / max(height, width)
    if share >= 1:
        return picture
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def to_jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def choose(ids: Iterable[int], count: int, seed: int) -> set[int]:
    """`count` of `ids`, or all of them; the same for the same seed and the same set of ids."""
    known = np.sort(np.asarray(list(ids)))
    picked = np.random.default_rng(seed).choice(known, size=min(count, len(known)), replace=False)
    return {int(image_id) for image_id in picked}
