"""The validation images of a run with the losses and detections of its model, to look at.

One pass computes both, and RUN/show/CHECKPOINT.json keeps them for the next time.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn_lit import __version__
from maskrcnn_lit.config.compose import build
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.fingerprint import fingerprint
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.analysis.image_errors import ImageErrors, image_errors
from maskrcnn_lit.evaluation.analysis.pairs import Kind, image_pairs
from maskrcnn_lit.evaluation.coco.results import compressed_rle, of_categories
from maskrcnn_lit.evaluation.coco.scores import to_coco_results
from maskrcnn_lit.evaluation.coco.void import has_mask
from maskrcnn_lit.launch.evaluate import loaded_model, validation_alone
from maskrcnn_lit.model.inside import Inside, look_inside
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.runs.own_validation import check_own_validation
from maskrcnn_lit.runs.trained_model import read
from maskrcnn_lit.storage.checkpoints import best_checkpoint, last_checkpoint
from maskrcnn_lit.storage.files import file_digest
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json, write_sealed_json
from maskrcnn_lit.terminal.progress import Counter
from maskrcnn_lit.training.devices import resolve_accelerator

FOLDER = "show"  # in the run folder

_log = logging.getLogger(__name__)


class Validation:
    """A run's model and its own validation images.

    Args:
        run: a run folder.
        checkpoint: best or last.
        trust: packages whose classes the run's config may use.
        accelerator: auto, cpu or gpu.

    Attributes:
        index: the images and their objects; an image has a position in it, from 0.
        truth: the same as a COCO dict.
        results: COCO results of all images, with "slot", the position in the model's output.
        losses: of each image by name; None: its file cannot be read.
        pairs: of each image.

    Raises:
        UserError: `run` is not a run folder, or its images have changed.
    """

    def __init__(self, run: Path, checkpoint: str, trust: Sequence[str], accelerator: str) -> None:
        if not (run / "config.yaml").is_file():
            raise UserError(
                f"run={run} is not a run folder: give one that `maskrcnn-lit train` wrote"
            )
        config, categories, state = read(run, checkpoint, trust)
        self.data: CocoDataModule = build(validation_alone(config.data))
        self.data.use_categories(categories)
        self.data.prepare_data()
        self.data.setup("validate")
        if self.data.split is not None:
            check_own_validation(run, self.data, "")
        self.model: MaskRCNN = loaded_model(config, state).eval()
        device = resolve_accelerator(accelerator, 1, option="accelerator")
        self.model.to("cuda" if device == "gpu" else "cpu")
        self.dataset = self.data.val_dataset
        self.index, self.categories = self.dataset.index, tuple(categories)
        self.ids: list[int] = self.index.image_ids.tolist()
        self.truth = self.index.coco_ground_truth()
        self.losses, self.results = self._looked_at(run, checkpoint)
        kind: Kind = "box" if self.model.mask_head is None else "mask"
        by_id = {one.image_id: one for one in image_pairs(self.truth, self.results, empty=kind)}
        self.pairs = [by_id[number] for number in self.ids]
        self._annotations: dict[int, list[int]] = defaultdict(list)
        for n, annotation in enumerate(self.truth["annotations"]):
            self._annotations[annotation["image_id"]].append(n)
        self._lock = threading.Lock()
        self.errors = lru_cache(8)(self._errors)
        self.inside = lru_cache(4)(self._inside)

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, i: int) -> Batch:
        """The image at position i with its targets, as in evaluation."""
        size = self.dataset.image_size
        shapes = None if isinstance(size, tuple) else [(size, size)]
        batch = collate([self.dataset[0, i]], shapes)
        device = self.model.mean.device
        return {key: value.to(device) for key, value in batch.items()}

    def annotations_of(self, i: int) -> dict[int, dict[str, Any]]:
        """The annotations of the image at position i by their positions in `truth`, with masks as
        RLE; a box alone has no "segmentation".
        """
        image = self.truth["images"][i]
        found = {}
        for n in self._annotations[image["id"]]:
            annotation = dict(self.truth["annotations"][n])
            shape = annotation.pop("segmentation")
            if has_mask({"segmentation": shape}):
                rle = compressed_rle(shape, image)
                counts = rle["counts"]
                text = counts.decode() if isinstance(counts, bytes) else counts
                annotation["segmentation"] = {"size": list(rle["size"]), "counts": text}
            found[n] = annotation
        return found

    def slots(self, i: int, batch: Batch) -> dict[int, int]:
        """The id of the annotation in each slot of a batch of the image at position i: the one
        whose box is nearest.
        """
        annotations = [self.truth["annotations"][n] for n in self._annotations[self.ids[i]]]
        corners = np.array([one["bbox"] for one in annotations], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        back = batch["scales"][0].flip(0).repeat(2)
        boxes = (batch["boxes"][0] / back).cpu().numpy()
        return {
            slot: annotations[int(np.abs(corners - boxes[slot]).sum(axis=1).argmin())]["id"]
            for slot in batch["valid"][0].nonzero()[:, 0].tolist()
        }

    def _errors(self, threshold: float) -> list[ImageErrors]:
        """Of each image, counting detections from this score."""
        thresholds = np.full(len(self.truth["categories"]), threshold)
        return [image_errors(pairs, thresholds) for pairs in self.pairs]

    def _inside(self, i: int) -> tuple[Inside, Batch]:
        """What the model computes for the image at position i, and its batch."""
        with self._lock:
            batch = self.batch(i)
            return look_inside(self.model, batch), batch

    def _looked_at(
        self, run: Path, checkpoint: str
    ) -> tuple[list[dict[str, float] | None], list[dict[str, Any]]]:
        """The losses of each image, and the results of all: stored ones, or of a pass that stores
        them.
        """
        weights = best_checkpoint(run) if checkpoint == "best" else last_checkpoint(run)
        key = {
            "version": __version__,
            "checkpoint_sha256": None if weights is None else file_digest(weights, "sha256"),
            **fingerprint(self.index),
        }
        path = run / FOLDER / f"{checkpoint}.json"
        stored = _read(path)
        if stored is None or {name: stored.get(name) for name in key} != key:
            losses, results = self._pass()
            stored = {**key, "losses": losses, "results": results}
            try:
                write_sealed_json(path, stored)
            except OSError as error:
                _log.info(f"{path} cannot be written ({error}): the next start computes it again")
        return stored["losses"], stored["results"]

    @torch.inference_mode()
    def _pass(self) -> tuple[list[dict[str, float] | None], list[dict[str, Any]]]:
        """The losses of each image, and the results of all."""
        losses: list[dict[str, float] | None] = []
        results: list[dict[str, Any]] = []
        with Counter("losses and detections", len(self), unit="images") as counter:
            for i in range(len(self)):
                batch = self.batch(i)
                output = self.model(batch)
                readable = bool(batch["readable"][0])
                named = {name: float(loss) for name, loss in output.losses.items()}
                losses.append(named if readable else None)
                if readable and output.detections is not None:
                    found = to_coco_results(to_original(output.detections, batch), self.categories)
                    results += [entry | {"slot": slot} for slot, entry in enumerate(found)]
                counter.advance(1)
        results, left_out = of_categories(results, self.categories, self.truth["categories"])
        if left_out:
            _log.info(left_out)
        return losses, results


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_sealed_json(path)
    except (OSError, DamagedFileError):
        return None
