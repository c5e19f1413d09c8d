"""Detections on the padded, resized batch -> detections in each original image's pixels, masks as COCO RLE.

Letters: B images, D detections, m mask side (28), H W the original image, h w a box's pixels.
"""

from typing import Any

import numpy as np
import pycocotools.mask
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_lit.data.batch import Batch

MASK_THRESHOLD = 0.5  # section 3.1: the mask is resized to the region and binarised at 0.5


def to_original(detections: dict[str, Tensor], batch: Batch) -> list[dict[str, Any]]:
    """One dict an image: image_id int, boxes R 4 float32 (x1 y1 x2 y2 in the original image's pixels), scores R,
    labels R (1..K), masks: R COCO RLEs {"size": [H, W], "counts": bytes}. Best first, as the model gives them.

    Memory: one mask of one box at a time, never detections x image area.
    """
    held = {key: value.detach().cpu() for key, value in detections.items()}
    scales, sizes = batch["scales"].cpu(), batch["original_sizes"].cpu()
    images = []
    for i, image_id in enumerate(batch["image_ids"].tolist()):
        valid = held["valid"][i]
        height, width = sizes[i].tolist()
        boxes = original_boxes(held["boxes"][i][valid], scales[i], height, width)
        masks = held["masks"][i][valid]
        images.append(
            {
                "image_id": image_id,
                "boxes": boxes.numpy(),
                "scores": held["scores"][i][valid].numpy(),
                "labels": held["labels"][i][valid].numpy(),
                "masks": [mask_to_rle(m, b, height, width) for m, b in zip(masks, boxes, strict=True)],
            }
        )
    return images


def original_boxes(boxes: Tensor, scale: Tensor, height: int, width: int) -> Tensor:
    """D 4 in pixels of the batch -> D 4 in pixels of the original image, inside of it; `scale` is (y, x)."""
    boxes = boxes / scale.flip(0).repeat(2)
    return torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height], dtype=boxes.dtype))


def mask_to_rle(mask: Tensor, box: Tensor, height: int, width: int) -> dict[str, Any]:
    """A mask of probabilities, m m, stretched over `box` of an H x W image, binarised, as compressed COCO RLE.

    The same pixels as torchvision's `paste_masks_in_image` at 0.5, without the H x W canvas: only the box is made.
    """
    size = mask.shape[-1]
    # A ring of zeros lets the outline fall to 0 at the box's border; the box grows by the same share.
    grown = _grow(box, (size + 2) / size).to(torch.int64).tolist()
    x1, y1, x2, y2 = grown
    box_width, box_height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    padded = F.pad(mask, (1, 1, 1, 1))[None, None]
    pixels = F.interpolate(padded, size=(box_height, box_width), mode="bilinear", align_corners=False)[0, 0]
    left, top = max(x1, 0), max(y1, 0)
    inside = pixels[top - y1 : max(height - y1, 0), left - x1 : max(width - x1, 0)] > MASK_THRESHOLD
    return _rle(inside.numpy(), left, top, height, width)


def _grow(box: Tensor, factor: float) -> Tensor:
    centre, half = (box[2:] + box[:2]) * 0.5, (box[2:] - box[:2]) * 0.5 * factor
    return torch.cat([centre - half, centre + half])


def _rle(crop: np.ndarray, left: int, top: int, height: int, width: int) -> dict[str, Any]:
    """COCO run lengths (down the columns, background first) of an image that is empty but for `crop`, h w bool."""
    runs = run_lengths(crop, left, top, height, width)
    return pycocotools.mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def run_lengths(crop: np.ndarray, left: int, top: int, height: int, width: int) -> list[int]:
    """The uncompressed counts, from the crop alone: each column's runs are shifted to their place in the image."""
    if not crop.any():
        return [height * width]
    edges = np.diff(np.pad(crop.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)  # h w -> w h+1: +1 starts, -1 stops
    starts, stops = ((c + left) * height + r + top for c, r in (np.nonzero(edges == 1), np.nonzero(edges == -1)))
    apart = starts[1:] != stops[:-1]  # a run that ends at the bottom goes on at the top of the next column
    starts, stops = starts[np.r_[True, apart]], stops[np.r_[apart, True]]
    cuts = np.concatenate([[0], np.stack([starts, stops], axis=1).ravel(), [height * width]])
    counts = np.diff(cuts)
    return (counts[:-1] if counts[-1] == 0 else counts).tolist()
