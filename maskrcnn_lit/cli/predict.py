"""`maskrcnn-lit predict`: detect objects in images; writes drawn pictures and COCO results."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import DictConfig

from maskrcnn_lit.evaluation.thresholds import FILE, has_thresholds
from maskrcnn_lit.predictor import Detections, Predictor, load_model
from maskrcnn_lit.runs.folder import check_output_folder, new_output_folder, remove_if_empty
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.storage.image_inputs import ImageInput, list_inputs


def run(config: DictConfig, overrides: list[str]) -> None:
    """Predict; `config` is conf/predict.yaml composed with `overrides`."""
    check_output_folder(config.run_dir, overwrite=config.overwrite)
    inputs = list_inputs(config.source, max_pixels=config.max_pixels, page=config.page)
    model = load_model(
        config.run,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
        accelerator=config.accelerator,
        checkpoint=config.checkpoint,
        trust=config.trust,
        provider=config.provider,
        **config.model,
    )
    stream = model.predict(inputs, stream=True, batch_size=config.batch_size)
    folder = new_output_folder(config.run, config.run_dir, "predictions")
    try:
        print(f"score_threshold {_describe_threshold(config, model)}", flush=True)
        _write_all(config, inputs, stream, folder)
    except BaseException:
        remove_if_empty(folder)
        raise


def _write_all(
    config: DictConfig,
    inputs: Sequence[ImageInput],
    stream: Iterable[Detections],
    folder: Path,
) -> None:
    """Draw and list the detections of `stream` in `folder`."""
    names = [source.name for source in inputs]
    number = {name: n for n, name in enumerate(names, start=1)}
    pictures = dict(zip(names, picture_names(names), strict=True))
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    started = time.perf_counter()
    for image_id, detections in enumerate(stream, start=1):
        name, (height, width) = detections.name, detections.image.shape[:2]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        results += detections.to_coco(image_id)
        line = f"{name}: {detections.summary()}"
        if config.save:
            picture = folder / "images" / pictures[name]
            detections.save(picture)
            line = f"{line} -> {picture}"
        counter = f"[{number[name]}/{len(names)}] " if len(names) > 1 else ""
        print(f"{counter}{line}", flush=True)
    write_json(folder / "detections.json", results)
    # COCO results refer to images by number; images.json maps numbers to files.
    write_json(folder / "images.json", images)
    seconds = (time.perf_counter() - started) / max(1, len(images))
    print(
        f"{_count(results, 'detection')} on {_count(images, 'image')}: "
        f"{folder / 'detections.json'}, {folder / 'images.json'} ({seconds:.2f} s per image)"
    )
    if len(images) < len(inputs):
        print(f"{len(inputs) - len(images)} of {_count(inputs, 'image')} could not be read")


def picture_names(names: Sequence[str]) -> list[str]:
    """The file name of each image's picture: photo.jpg becomes photo.png, or photo.jpg.png if
    another image would have that name. Folders are kept. Names are unique, even on file systems
    that ignore case.
    """
    short = [str(PurePosixPath(name).with_suffix(".png")) for name in names]
    uses = Counter(name.casefold() for name in short)
    taken = {name for name, count in uses.items() if count == 1}
    result = []
    for name, alone in zip(names, short, strict=True):
        if uses[alone.casefold()] > 1:
            alone = next(c for c in _candidates(name) if c.casefold() not in taken)
            taken.add(alone.casefold())
        result.append(alone)
    return result


def _candidates(name: str) -> Iterable[str]:
    if name.endswith(".png"):
        yield name
    yield f"{name}.png"
    yield from (f"{name}_{n}.png" for n in itertools.count(2))


def _describe_threshold(config: DictConfig, model: Predictor) -> str:
    if config.score_threshold == "best":
        values = zip(
            (category.name for category in model.categories),
            model.score_thresholds.tolist(),
            strict=True,
        )
        return f"of each class, by its best F1 on the run's validation images: {_some(values)}"
    number = f"{config.score_threshold:g}"
    if has_thresholds(config.run, config.checkpoint):
        stored = Path(config.run) / FILE
        return (
            f"{number} (score_threshold=best uses the best threshold of each class, from {stored})"
        )
    return number


def _some(values: Iterable[tuple[str, float]]) -> str:
    texts = [f"{name} {value:.2f}" for name, value in values]
    return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")


def _count(things: Sequence[Any], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
