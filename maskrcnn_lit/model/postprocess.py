"""Converts detections on the padded, resized batch to pixels of the original images, with masks as
COCO RLE.

Letters: B images, D detections, m mask side (28), H W the original image.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.rasterize import inverted
from maskrcnn_lit.model.paste_masks import masks_to_rle


def to_original(
    detections: dict[str, Tensor], batch: Batch, thresholds: NDArray[np.float64] | None = None
) -> list[dict[str, Any]]:
    """One dict per image: image_id int, boxes R 4 float32 (x1 y1 x2 y2 in the original image's
    pixels), scores R, labels R (1..K), masks: R COCO RLEs {"size": [H, W], "counts": bytes}
    if the model has a mask head. Sorted by descending score.

    thresholds: K; detections with a score below that of their class are left out.

    Of detections that are marked `exclusive` (B D bool), a pixel belongs to the one with the
    highest score; one that loses all of its pixels is left out.

    Everything is copied to the host at once, including masks: separate copies would stall a GPU
    about sixty times per image. Memory never grows as detections x image area.
    """
    filled = {key: value.detach().cpu() for key, value in detections.items()}
    scales, sizes = batch["scales"].cpu(), batch["original_sizes"].cpu()
    images = []
    for i, image_id in enumerate(batch["image_ids"].tolist()):
        valid = filled["valid"][i]
        if thresholds is not None:
            labels, scores = (filled[name][i].numpy() for name in ("labels", "scores"))
            valid = valid & torch.from_numpy(scores >= thresholds[labels - 1])
        height, width = sizes[i].tolist()
        boxes = original_boxes(filled["boxes"][i][valid], scales[i], height, width)
        image = {
            "image_id": image_id,
            "boxes": boxes.numpy(),
            "scores": filled["scores"][i][valid].numpy(),
            "labels": filled["labels"][i][valid].numpy(),
        }
        if "masks" in filled:
            image["masks"] = masks_to_rle(filled["masks"][i][valid], boxes, height, width)
        exclusive = "exclusive" in filled and bool(filled["exclusive"][i].any())
        images.append(without_overlap(image) if exclusive else image)
    return images


def without_overlap(image: dict[str, Any]) -> dict[str, Any]:
    """Detections of an image, as `to_original` gives them, of which each pixel belongs to one: that
    of the highest score. One whose mask had pixels and has none left is gone.
    """
    masks, seen = [], []
    free: dict[str, Any] | None = None  # pixels of no better detection
    for n, mask in enumerate(image["masks"]):
        own = mask if free is None else coco_mask.merge([mask, free], intersect=True)
        if not coco_mask.area(own) and coco_mask.area(mask):
            continue
        masks.append(own)
        seen.append(n)
        others = inverted(mask)
        free = others if free is None else coco_mask.merge([free, others], intersect=True)
    fields = {key: image[key][seen] for key in ("boxes", "scores", "labels")}
    return image | fields | {"masks": masks}


def original_boxes(boxes: Tensor, scale: Tensor, height: int, width: int) -> Tensor:
    """D 4 in pixels of the batch -> D 4 in pixels of the original image, clipped to it; `scale` is
    (y, x).
    """
    boxes = boxes / scale.flip(0).repeat(2)
    return torch.minimum(
        boxes.clamp(min=0), torch.tensor([width, height, width, height], dtype=boxes.dtype)
    )
