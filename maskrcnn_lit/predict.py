"""`maskrcnn-lit predict`: a run folder and images -> the images with what was found drawn on them, and COCO results."""

from typing import Any

from omegaconf import DictConfig

from maskrcnn_lit.data.media import write_image
from maskrcnn_lit.files import write_json
from maskrcnn_lit.predictor import load_model, output_folder


def run(config: DictConfig, overrides: list[str]) -> None:
    """Predict; `config` is that of conf/predict.yaml with `overrides`."""
    folder = output_folder(config.run, config.run_dir, "predictions")
    model = load_model(
        config.run,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
        accelerator=config.accelerator,
        checkpoint=config.checkpoint,
    )
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for image_id, found in enumerate(model.predict(config.source), start=1):
        height, width = found.image.shape[:2]
        images.append({"id": image_id, "file_name": found.name, "height": height, "width": width})
        results += found.to_coco(image_id)
        # The source's folders and endings are kept, so that no two pictures have one name.
        drawn = folder / "images" / (found.name if found.name.endswith(".png") else f"{found.name}.png")
        write_image(drawn, found.draw())
        print(f"{found.name}: {_told(found.names)} -> {drawn}")
    write_json(folder / "detections.json", results)
    # Results name images by number; this says which file each number is.
    write_json(folder / "images.json", images)
    print(f"{len(results)} detections on {len(images)} images: {folder / 'detections.json'}, {folder / 'images.json'}")


def _told(names: list[str]) -> str:
    counts = {name: names.count(name) for name in sorted(set(names))}
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
