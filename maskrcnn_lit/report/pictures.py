"""Pictures for reports and panels: read, draw side by side, shrink, encode."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.evaluation.coco.results import mask_rle
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.report.draw import (
    detections_to_draw,
    draw_instances,
    grid,
    ground_truth_from_batch,
    side_by_side,
)
from maskrcnn_lit.storage.images import UnreadableImageError
from maskrcnn_lit.training.module import DetectionModule

PICTURES = 6  # validation images in predictions.png

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


LONGEST_SIDE = (
    1400  # of a panel, in pixels: two images side by side stay legible, and the file stays small
)


def choose(ids: Iterable[int], count: int, seed: int) -> set[int]:
    """`count` of `ids`, or all of them; the same for the same seed and the same set of ids."""
    known = np.sort(np.asarray(list(ids)))
    picked = np.random.default_rng(seed).choice(known, size=min(count, len(known)), replace=False)
    return {int(image_id) for image_id in picked}


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


def with_pixels(batch: Batch, i: int, data: CocoDataModule) -> Batch:
    """A validation batch that has features in place of pixels, with the pixels of its image `i`."""
    dataset, image_id = data.val_dataset, int(batch["image_ids"][i])
    position = int(np.flatnonzero(dataset.index.image_ids == image_id)[0])
    pixels = dataset[0, position]["images"]
    count, _, *padded = batch["images"].shape
    images = torch.zeros(count, 3, *padded, dtype=torch.uint8)
    images[i, :, : pixels.shape[1], : pixels.shape[2]] = pixels
    return batch | {"images": images}


@torch.no_grad()
def draw_predictions(module: DetectionModule, data: CocoDataModule) -> Any:
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
