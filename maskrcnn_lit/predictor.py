"""A trained model from its run folder, and what it finds on images: the Python interface.

from maskrcnn_lit import load_model
model = load_model("outputs/2026-11-23/10-00-00")
for found in model.predict(["a.jpg", "b.jpg"]):
    print(found.names, found.scores, found.boxes)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.data.transforms import read_image_size
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.scores import to_coco_results
from maskrcnn_lit.evaluation.thresholds import read_thresholds
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.report.draw import draw_instances
from maskrcnn_lit.runs.trained_model import read
from maskrcnn_lit.storage.images import MAX_PIXELS, read_images
from maskrcnn_lit.training.devices import resolve_accelerator


@dataclass(frozen=True)
class Detections:
    """What the model found on one image, best first. R detections.

    name: of the image, as its source gave it; image: H W 3 uint8 RGB.
    boxes: R 4 float32, x1 y1 x2 y2 in pixels; scores: R; labels: R, 1..K; names: R class names.
    masks: R COCO RLEs of the whole image.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    masks: list[dict[str, Any]]
    categories: tuple[Category, ...]

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Entries of a COCO results json, with the category ids of the training data."""
        entry = {
            "image_id": image_id,
            **{key: getattr(self, key) for key in ("boxes", "scores", "labels", "masks")},
        }
        return to_coco_results([entry], self.categories)

    def draw(self) -> np.ndarray:
        """The image with boxes, masks, class names and scores, H W 3 uint8."""
        return draw_instances(
            self.image, boxes=self.boxes, masks=self.masks, names=self.names, scores=self.scores
        )


@dataclass(frozen=True)
class Predictor:
    """A model in evaluation mode, and what it needs to read an image and to name what it finds."""

    model: MaskRCNN
    categories: tuple[Category, ...]
    config: DictConfig
    score_thresholds: np.ndarray  # K: of label l at l - 1

    @torch.inference_mode()
    def predict(
        self,
        sources: str | Path | np.ndarray | Iterable[str | Path | np.ndarray],
        *,
        max_pixels: int = MAX_PIXELS,
        page: int | None = None,
    ) -> Iterator[Detections]:
        """Detections of each image: files, folders, globs, or arrays H W 3 uint8 RGB.

        Args: max_pixels: the most that an image file may have. page: of a TIFF or GIF with several,
            from 1; None: the first, and a warning says so.
        """
        several = sources if not isinstance(sources, (str, Path, np.ndarray)) else [sources]
        for source in several:
            named = (
                [("array", source)]
                if isinstance(source, np.ndarray)
                else read_images(source, max_pixels=max_pixels, page=page)
            )
            for name, image in named:
                yield self._detect(name, image)

    def _detect(self, name: str, image: np.ndarray) -> Detections:
        batch = image_batch([image], [0], read_image_size(self.config.data.image_size))
        device = self.model.mean.device
        output = self.model({key: value.to(device) for key, value in batch.items()})
        if output.detections is None:
            raise RuntimeError("the model is in training mode: call model.eval() before predict")
        found = to_original(output.detections, batch)[0]
        kept = np.flatnonzero(found["scores"] >= self.score_thresholds[found["labels"] - 1])
        return Detections(
            name=name,
            image=image,
            boxes=found["boxes"][kept],
            scores=found["scores"][kept],
            labels=found["labels"][kept],
            names=[self.categories[label - 1].name for label in found["labels"][kept]],
            masks=[found["masks"][r] for r in kept],
            categories=self.categories,
        )


def load_model(
    source: str | Path,
    *,
    score_threshold: float | Literal["best"] = 0.5,
    max_detections: int = 100,
    accelerator: str = "auto",
    checkpoint: str = "best",
    trust: Sequence[str] = (),
) -> Predictor:
    """A trained model, ready to predict.

    Args: source: a run folder, a checkpoint of one, a weights file of torchvision's or Detectron2's
        Mask R-CNN, or the name of published weights (`pretrained.PUBLISHED`). score_threshold:
        detections below it are left out, 0..1; "best": below the threshold of their class that
        `maskrcnn-lit evaluate` found best for the run's best weights on its validation images (0.5
        for a class without one). max_detections: an image. accelerator: auto, cpu or gpu.
        checkpoint: best or last, of a run folder. trust: packages whose classes its config may name
        beside ours.

    Raises: UserError: no such run or checkpoint, a threshold outside of 0..1, or "best" of a run
        that was not evaluated.
    """
    if score_threshold != "best" and not (
        isinstance(score_threshold, (int, float)) and 0 <= score_threshold <= 1
    ):
        raise UserError(
            f"score_threshold={score_threshold} must be from 0 (all detections) to 1, or best: each class's own"
        )
    if max_detections < 1:
        raise UserError(f"max_detections={max_detections} must be at least 1")
    config, categories, state = read(source, checkpoint, trust)
    if score_threshold == "best":
        thresholds = np.array(
            read_thresholds(source, [category.name for category in categories], checkpoint)
        )
    else:
        thresholds = np.full(len(categories), float(score_threshold))
    config.model.box_head.max_detections = max_detections
    config.model.box_head.score_threshold = min(
        *thresholds.tolist(), config.model.box_head.score_threshold
    )
    model = build(config.model)
    weights.load(model, state)
    device = "cuda" if resolve_accelerator(accelerator, 1, option="accelerator") == "gpu" else "cpu"
    return Predictor(for_inference(model.to(device)), categories, config, thresholds)
