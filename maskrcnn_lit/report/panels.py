"""Ground truth beside prediction, of a batch and its output."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.report.draw import detections_to_draw, draw_instances, grid, side_by_side
from maskrcnn_lit.report.pictures import choose

if TYPE_CHECKING:  # they load Lightning
    from maskrcnn_lit.data.datamodule import CocoDataModule
    from maskrcnn_lit.training.module import DetectionModule

PICTURES = 6  # validation images in predictions.png

LONGEST_SIDE = (
    1400  # of a panel, in pixels: two images side by side stay legible, and the file stays small
)


def ground_truth_from_batch(
    batch: Batch, i: int, names: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Image `i` of a batch in its original size, and its target as arguments of `draw_instances`.

    `names[l - 1]` is the class of label l. Boxes and masks have the original scale, like those of
    `detections_to_draw`; the pixels are the model's input, resized back. Crowd regions are labeled
    as such, and data with void pixels have `void`.
    """
    height, width = batch["image_sizes"][i].tolist()
    original_height, original_width = batch["original_sizes"][i].tolist()
    seen = batch["images"][i, :, :height, :width].permute(1, 2, 0).cpu().numpy()  # 3 H W -> H W 3
    image = Image.fromarray(seen).resize(
        (original_width, original_height), Image.Resampling.BICUBIC
    )
    annotated = (batch["valid"][i] | batch["crowd"][i]).nonzero()[:, 0].tolist()
    back = batch["scales"][i].flip(0).repeat(2).cpu().numpy()  # y, x -> x, y, x, y
    boxes, mask_boxes = (
        batch[key][i].cpu().numpy()[annotated] / back for key in ("boxes", "mask_boxes")
    )
    crops = batch["masks"][i].cpu().numpy()
    if "masked" in batch:  # a box alone is drawn as one
        crops = crops * batch["masked"][i].cpu().numpy()[:, None, None]
    labels, crowd = batch["labels"][i].tolist(), batch["crowd"][i].tolist()
    target: dict[str, Any] = {
        "boxes": boxes,
        "masks": [
            _paste(crops[g], box, original_height, original_width)
            for g, box in zip(annotated, mask_boxes, strict=True)
        ],
        "names": [names[labels[g] - 1] + (" (crowd)" if crowd[g] else "") for g in annotated],
    }
    if "void" in batch:
        seen = batch["void"][i, :height, :width].cpu().numpy()
        region = Image.fromarray(seen).resize(image.size, Image.Resampling.NEAREST)
        target["void"] = np.array(region).astype(bool)
    return np.array(image), target


def _paste(crop: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """An M x M crop as an H W bool mask: bilinear between the crop's pixel centers, False outside
    of `box`.
    """
    weights, within = [], []
    for low, high, length in ((box[1], box[3], height), (box[0], box[2], width)):
        centers = np.arange(length) + 0.5
        position = np.clip((centers - low) / (high - low) * len(crop) - 0.5, 0, len(crop) - 1)
        weights.append(np.clip(1 - abs(position[:, None] - np.arange(len(crop))), 0, 1))  # length M
        within.append((centers >= low) & (centers <= high))
    pasted = weights[0] @ crop.astype(np.float64) @ weights[1].T  # H M, M M, M W -> H W
    return (pasted >= 0.5) & within[0][:, None] & within[1]


def draw_panel(
    batch: Batch,
    output: Output,
    i: int,
    names: Sequence[str],
    score_threshold: float,
    longest_side: int = LONGEST_SIDE,
) -> np.ndarray:
    """Ground truth and prediction of image `i` side by side, H W 3 uint8."""
    if output.detections is None:
        raise ValueError("the output has no detections: set the model to eval mode")
    image, truth = ground_truth_from_batch(batch, i, names)
    one = {key: value[i : i + 1] for key, value in output.detections.items()}
    detections = to_original(one, {key: value[i : i + 1] for key, value in batch.items()})[0]
    left = draw_instances(image, **truth)
    right = draw_instances(image, **detections_to_draw(detections, names, score_threshold))
    panel = Image.fromarray(side_by_side(left, right, ("ground truth", "prediction")))
    panel.thumbnail((longest_side, longest_side))
    return np.array(panel)


def with_pixels(batch: Batch, i: int, data: "CocoDataModule") -> Batch:
    """A validation batch that has features in place of pixels, with the pixels of its image `i`."""
    dataset, image_id = data.val_dataset, int(batch["image_ids"][i])
    position = int(np.flatnonzero(dataset.index.image_ids == image_id)[0])
    pixels = dataset[0, position]["images"]
    count, _, *padded = batch["images"].shape
    images = torch.zeros(count, 3, *padded, dtype=torch.uint8)
    images[i, :, : pixels.shape[1], : pixels.shape[2]] = pixels
    return batch | {"images": images}


@torch.no_grad()
def draw_predictions(module: "DetectionModule", data: "CocoDataModule") -> Any:
    """Ground truth beside prediction for a few validation images, H W 3 uint8. A compiled model
    runs uncompiled, since each picture has its own size.
    """
    ids = data.val_dataset.index.image_ids.tolist()
    chosen = choose(ids, PICTURES, module.seed)
    positions = [i for i, image_id in enumerate(ids) if image_id in chosen]
    names = [category.name for category in module.categories]
    module.model.eval()
    panels = []
    for position in positions:
        batch = collate([data.val_dataset[0, position]])
        with torch.compiler.set_stance("force_eager"):
            output = module.model({key: value.to(module.device) for key, value in batch.items()})
        panels.append(draw_panel(batch, output, 0, names, score_threshold=0.5))
    return grid(panels, columns=2)
