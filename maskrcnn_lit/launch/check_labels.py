"""`data check run=RUN`: the labels that contradict a trained model, by the AP that they cost."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.stored import load_run_config
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.analysis.suspicious_labels import suspicious_labels
from maskrcnn_lit.evaluation.coco.results import of_categories, write_results
from maskrcnn_lit.predictor import Predictor, load_model
from maskrcnn_lit.report.pictures import image_reader
from maskrcnn_lit.report.suspicious_labels import labels_page
from maskrcnn_lit.runs.folder import check_output_folder, new_output_folder, remove_if_empty
from maskrcnn_lit.runs.own_validation import same_validation_images
from maskrcnn_lit.storage.files import atomic_write, write_json
from maskrcnn_lit.storage.images import UnreadableImageError

LEAST_SCORE = 0.05  # of a detection, as in evaluation

BATCH = 4  # images in a forward pass

_log = logging.getLogger(__name__)


def own_data(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The data of the run, unless the command names others."""
    if any(text.lstrip("+~").startswith(("data=", "data.")) for text in overrides):
        return config.data
    if not Path(config.run).is_dir():
        raise UserError(
            f"run={config.run} is not a run folder: give one that `maskrcnn-lit train` wrote, or "
            "name the data, too: data=..."
        )
    return load_run_config(Path(config.run), config.trust).data


def check_labels(
    config: DictConfig,
    overrides: Sequence[str],
    parts: Mapping[str, tuple[AnnotationIndex, Path]],
) -> dict[str, Path]:
    """Write the page of suspicious labels of each part: index.html, suspicious_labels.json and
    detections.json in a folder. `config` is conf/data_check.yaml composed with `overrides`.

    Args:
        config, overrides: of the command.
        parts: part -> its index, and the path of its json.

    Returns:
        the page of each part.

    Raises:
        UserError: the run does not exist, or its classes are others.
    """
    check_output_folder(config.run_dir, overwrite=config.overwrite)
    run = Path(config.run)
    trained = load_run_config(run, config.trust) if run.is_dir() else None
    # an image can have more objects than the model would give otherwise
    limit = (
        100
        if trained is None
        else max(trained.model.box_head.max_detections, trained.metrics.max_detections[-1])
    )
    model = load_model(
        config.run,
        score_threshold=LEAST_SCORE,
        max_detections=limit,
        accelerator=config.accelerator,
        checkpoint=config.checkpoint,
        trust=config.trust,
    )
    folder = new_output_folder(config.run, config.run_dir, "suspicious_labels")
    try:
        return {
            part: _check_part(
                config,
                overrides,
                index.with_categories(model.categories),
                model,
                folder / part,
                _trained_on(config, trained, part, index, file),
            )
            for part, (index, file) in parts.items()
        }
    except BaseException:
        remove_if_empty(folder)
        raise


def _trained_on(
    config: DictConfig, trained: DictConfig | None, part: str, index: AnnotationIndex, file: Path
) -> bool:
    """Whether the run was trained on this part. A checkpoint without its folder: assumed."""
    if trained is None:
        return True
    annotations = OmegaConf.select(trained, "data.train.annotations")
    if annotations is not None:
        own = Path(trained.data.get("root") or ".") / str(annotations)
        return own.absolute() == file.absolute()
    if _source(config.data) != _source(trained.data):
        return False
    if part == "train" or trained.data.get("val_share") is None:
        return part == "train"
    if not trained.data.keep_empty:
        index = index.at(np.flatnonzero(index.spans[:, 1] > index.spans[:, 0]))
    # files that were added or removed divide the images in another way
    return not same_validation_images(config.run, index)


def _source(data: DictConfig) -> tuple[Path, Path]:
    """What a reader reads: the folder, or one json."""
    root = Path(data.get("root") or ".").absolute()
    return root, root / str(data.get("annotations"))


def _check_part(
    config: DictConfig,
    overrides: Sequence[str],
    index: AnnotationIndex,
    model: Predictor,
    folder: Path,
    trained_on_them: bool,
) -> Path:
    results, readable = detect(model, index)
    truth = index.with_ids(readable).coco_ground_truth()
    results, left_out = of_categories(results, index.categories, truth["categories"])
    if left_out:
        _log.info(left_out)
    limit = model.config.model.box_head.max_detections
    suspicious = suspicious_labels(truth, results, max_detections=limit)
    write_results(folder / "detections.json", results)
    write_json(folder / "suspicious_labels.json", suspicious)
    facts = [
        ("run", str(config.run)),
        ("checkpoint", config.checkpoint),
        ("options", " ".join(overrides)),
        ("written", time.strftime("%Y-%m-%d %H:%M")),
    ]
    page = labels_page(
        suspicious,
        truth,
        results,
        image_reader(index),
        first=config.first,
        facts=facts,
        trained_on_them=trained_on_them,
    )
    atomic_write(folder / "index.html", page)
    return folder / "index.html"


def detect(model: Predictor, index: AnnotationIndex) -> tuple[list[dict[str, Any]], list[int]]:
    """COCO results of the readable images, and their ids."""
    readable: list[int] = []

    def pixels() -> Iterator[np.ndarray]:
        for i in range(len(index)):
            try:
                image = index.decode(i)[0]
            except (OSError, UnreadableImageError):
                continue
            readable.append(int(index.image_ids[i]))
            yield image

    results: list[dict[str, Any]] = []
    stream = model.predict(pixels(), stream=True, batch_size=BATCH)
    for n, found in enumerate(stream):
        results += replace(found, categories=tuple(index.categories)).to_coco(readable[n])
    return results, readable
