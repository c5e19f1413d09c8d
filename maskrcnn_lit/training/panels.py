"""What TensorBoard shows beside curves: validation images with ground truth and prediction."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from PIL import Image

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.draw import detections_to_draw, draw_instances, ground_truth_from_batch, side_by_side
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.training.loggers import tensorboard_writers, validation_step

LONGEST_SIDE = 1400  # of a panel, in pixels: two images beside each other stay legible, and a file stays small
IN_TENSORBOARD = 700  # the same there: it leaves out pixels where it shows a picture smaller, and with them thin lines


class Panels(Callback):
    """Every validation, for the same `images` validation images (drawn by `seed`): ground truth | prediction.

    The predictions are those of the validation pass, from `score_threshold` on. With several processes, those of the
    images appear that process 0 validates. Needs `trainer.datamodule.quick_index` and a module with `categories`.
    """

    def __init__(self, *, images: int, seed: int, score_threshold: float) -> None:
        self.images, self.seed, self.score_threshold = images, seed, score_threshold
        self._chosen: set[int] = set()
        self._panels: dict[int, np.ndarray] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if tensorboard_writers(trainer):
            ids = trainer.datamodule.quick_index.image_ids  # type: ignore[attr-defined]
            self._chosen = choose(ids, self.images, self.seed)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, *args: Any
    ) -> None:
        if not self._chosen or outputs.detections is None:
            return
        names = [category.name for category in pl_module.categories]
        for i, image_id in enumerate(batch["image_ids"].tolist()):
            if image_id in self._chosen:
                panel = draw_panel(batch, outputs, i, names, self.score_threshold, longest_side=IN_TENSORBOARD)
                self._panels[image_id] = panel

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        step = validation_step(trainer)
        for writer in tensorboard_writers(trainer):
            for image_id, panel in sorted(self._panels.items()):
                writer.add_image(f"val_images/{image_id}", panel, step, dataformats="HWC")
            writer.flush()
        self._panels.clear()


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
        raise ValueError("the output holds no detections: they come from a model in eval mode")
    image, truth = ground_truth_from_batch(batch, i, names)
    one = {key: value[i : i + 1] for key, value in output.detections.items()}
    found = to_original(one, {key: value[i : i + 1] for key, value in batch.items()})[0]
    left = draw_instances(image, **truth)
    right = draw_instances(image, **detections_to_draw(found, names, score_threshold))
    panel = Image.fromarray(side_by_side(left, right, ("ground truth", "prediction")))
    panel.thumbnail((longest_side, longest_side))
    return np.array(panel)
