"""Void pixels and objects without a mask: what no metric counts.

A void pixel is one that nobody has labeled, such as the border around the objects of Pascal VOC. An
image of the ground truth may have "ignore", the RLE of its void region.

- Masks, of detections and of objects, lose their void pixels before anything is computed from them.
  An object that has no other pixel is ignored.
- A detection that is matched to no object is ignored, not a false positive, if the share of it
  that is void reaches the IoU threshold: COCO's rule for crowd regions, for every class. A box is
  void by the pixels in it; boxes do not lose any.
- An object without a mask counts for boxes. For masks its box is a crowd region of its class.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.rasterize import inverted
from maskrcnn_lit.evaluation.coco.results import compressed_rle

Rle = dict[str, Any]


class Visible(NamedTuple):
    """N masks without their void pixels, and the share of each that was void, 0..1."""

    masks: list[Rle]
    void: NDArray[np.float64]


class VoidRegion:
    """The void region of an image of the ground truth, which must have one (see `void_of`)."""

    def __init__(self, image: Mapping[str, Any]) -> None:
        self.image = image
        self._void = compressed_rle(image["ignore"], image)
        self._rest = inverted(self._void)

    def visible(self, masks: Sequence[Rle]) -> Visible:
        """`masks`: N compressed RLEs."""
        left = [rle_tools.merge([mask, self._rest], intersect=True) for mask in masks]
        void = [rle_tools.merge([mask, self._void], intersect=True) for mask in masks]
        return Visible(left, _shares(void, masks))

    def share_of_boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """N: the share of the pixels in each box, N 4, x y w h, that is void."""
        height, width = self.image["height"], self.image["width"]
        if not len(boxes):
            return np.zeros(0)
        corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        corners = corners.clip(0, [width, height, width, height])
        inside = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
        whole = rle_tools.frPyObjects(inside, height, width)
        left = [rle_tools.merge([box, self._void], intersect=True) for box in whole]
        return _shares(left, whole)


def void_of(image: Mapping[str, Any]) -> VoidRegion | None:
    """The void region of an image of a COCO json; None if it has none."""
    return VoidRegion(image) if image.get("ignore") else None


def has_mask(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation of the ground truth has a mask; else it has a box alone."""
    return bool(annotation.get("segmentation"))


def truth_mask(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> Rle:
    """The mask of an annotation as a compressed RLE of the image, or its box if it has none."""
    if has_mask(annotation):
        return compressed_rle(annotation["segmentation"], image)
    box = np.array([annotation["bbox"]], np.float64)
    return rle_tools.frPyObjects(box, image["height"], image["width"])[0]


def _shares(parts: Sequence[Rle], wholes: Sequence[Rle]) -> NDArray[np.float64]:
    """N: the area of each part over that of its whole; 0 where the whole has none."""
    areas, all_areas = (
        np.array([float(rle_tools.area(mask)) for mask in masks]) for masks in (parts, wholes)
    )
    return np.divide(areas, all_areas, out=np.zeros(len(areas)), where=all_areas > 0)
