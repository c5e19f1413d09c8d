"""`maskrcnn-lit predict`: a run folder and images -> the images with what was found drawn on them,
and COCO results.
"""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig

from maskrcnn_lit.evaluation.thresholds import DEFAULT, has_thresholds
from maskrcnn_lit.predictor import Predictor, load_model
from maskrcnn_lit.runs.folder import output_folder
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.storage.images import write_image


def run(config: DictConfig, overrides: list[str]) -> None:
    """Predict; `config` is that of conf/predict.yaml with `overrides`."""
    folder = output_folder(config.run, config.run_dir, "predictions")
    threshold = config.score_threshold
    if threshold == "auto":
        threshold = "best" if has_thresholds(config.run, config.checkpoint) else DEFAULT
    model = load_model(
        config.run,
        score_threshold=threshold,
        max_detections=config.max_detections,
        accelerator=config.accelerator,
        checkpoint=config.checkpoint,
        trust=config.trust,
    )
    print(f"score_threshold {_thresholds_told(threshold, model)}")
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    detections = model.predict(config.source, max_pixels=config.max_pixels, page=config.page)
    for image_id, found in enumerate(detections, start=1):
        height, width = found.image.shape[:2]
        images.append({"id": image_id, "file_name": found.name, "height": height, "width": width})
        results += found.to_coco(image_id)
        # The source's folders and endings are kept, so that no two pictures have one name.
        drawn = (
            folder / "images" / (found.name if found.name.endswith(".png") else f"{found.name}.png")
        )
        write_image(drawn, found.draw())
        print(f"{found.name}: {_told(found.names)} -> {drawn}")
    write_json(folder / "detections.json", results)
    # Results name images by number; this says which file each number is.
    write_json(folder / "images.json", images)
    print(
        f"{len(results)} detections on {len(images)} images: {folder / 'detections.json'}, {folder / 'images.json'}"
    )


def _thresholds_told(threshold: float | str, model: Predictor) -> str:
    if threshold != "best":
        return f"{threshold:g}"
    values = zip(
        (category.name for category in model.categories),
        model.score_thresholds.tolist(),
        strict=True,
    )
    return f"of each class, by its best F1 on the run's validation images: {_some(values)}"


def _some(values: Iterable[tuple[str, float]]) -> str:
    told = [f"{name} {value:.2f}" for name, value in values]
    return ", ".join(told[:8]) + (f" and {len(told) - 8} more" if len(told) > 8 else "")


def _told(names: list[str]) -> str:
    counts = {name: names.count(name) for name in sorted(set(names))}
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
