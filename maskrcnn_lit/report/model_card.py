"""The model card of a published run, in the form of the Hugging Face hub."""

from collections.abc import Mapping
from typing import Any

import yaml

from maskrcnn_lit.evaluation.titles import AP_COLUMNS
from maskrcnn_lit.report.format import number

Facts = Mapping[str, Any]


def model_card(
    facts: Facts, *, name: str, license: str | None, plot: str, picture: str | None
) -> str:
    """Markdown with a header of yaml. `facts`: of launch/publish.py; name: USER/NAME, or that of a
    folder; plot, picture: files beside the card.
    """
    load = f"hf:{name}" if "/" in name else "DIR"
    lines = [
        "---",
        yaml.safe_dump(_header(facts, name, license), sort_keys=False).rstrip(),
        "---",
        "",
        f"# {name}",
        "",
        _lead(facts),
        "",
        "```python",
        "from maskrcnn_lit import load_model",
        "",
        f'model = load_model("{load}")',
        'found = model.predict("photo.jpg")',
        "```",
        "",
        "## Scores",
        "",
        *_scores(facts),
        "",
        f"![AP of {'masks and boxes' if facts['model']['masks'] else 'boxes'}]({plot})",
        "",
        *([f"![predictions on validation images]({picture})", ""] if picture else []),
        "## Classes",
        "",
        ", ".join(name for _, name in facts["categories"]),
        "",
        "## Training",
        "",
        "```bash",
        " ".join(facts["command"]),
        "```",
        "",
        *_data(facts["data"]),
        f"- weights: {facts['weights']} (checkpoint: {facts['checkpoint']})",
        f"- digest of the config: {facts['config_sha256']}",
        f"- commit of maskrcnn_lit: {facts['commit'] or 'unknown'}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}",
        "",
        "License of the weights: " + (license or "none is given, so ask whoever published them."),
        "",
    ]
    return "\n".join(lines)


def _header(facts: Facts, name: str, license: str | None) -> dict[str, Any]:
    scores = [
        {"type": metric.removeprefix("val/"), "name": metric, "value": round(value, 4)}
        for metric, value in facts["metrics"].items()
        if metric in ("val/mask_ap", "val/mask_ap50", "val/box_ap", "val/box_ap50")
    ]
    dataset = {"name": facts["data"].get("name", "unknown"), "type": "coco", "split": "validation"}
    if facts["model"]["masks"]:
        task = {"type": "image-segmentation", "name": "instance segmentation"}
        tags = ["mask-rcnn", "instance-segmentation", "object-detection"]
    else:
        task = {"type": "object-detection", "name": "object detection"}
        tags = ["faster-rcnn", "object-detection"]
    header: dict[str, Any] = {
        "library_name": "maskrcnn_lit",
        "pipeline_tag": task["type"],
        "tags": tags,
    }
    if license is not None:
        header["license"] = license
    results = [{"task": task, "dataset": dataset, "metrics": scores}]
    return {**header, "model-index": [{"name": name.split("/")[-1], "results": results}]}


def _lead(facts: Facts) -> str:
    model = facts["model"]
    about = [f"backbone {model['backbone']}"] if model["backbone"] else []
    if model["parameters"]:
        about.append(f"{model['parameters'] / 1e6:.1f} million parameters")
    about.append(f"images resized to {model['image_size']}")
    name = "Mask R-CNN" if model["masks"] else "Faster R-CNN, which detects boxes alone,"
    return f"A {name} of maskrcnn_lit: {', '.join(about)}."


def _scores(facts: Facts) -> list[str]:
    """A table, rows of masks and boxes, of the validation images at the end of the run."""
    metrics, intervals = facts["metrics"], facts["intervals"]
    columns = {
        key: title
        for key, title in AP_COLUMNS.items()
        if any(f"val/{kind}_{key}" in metrics for kind in ("mask", "box"))
    }
    rows = [f"| | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for kind in ("mask", "box"):
        if f"val/{kind}_ap" in metrics:
            cells = [_cell(metrics, intervals, f"val/{kind}_{key}") for key in columns]
            rows.append(f"| {kind} | {' | '.join(cells)} |")
    images = facts["data"].get("val", {}).get("images", "the")
    return [f"COCO AP on {images} validation images, with 95 % intervals over images.", "", *rows]


def _cell(metrics: Facts, intervals: Facts, metric: str) -> str:
    interval = intervals.get(metric)
    text = number(metrics.get(metric))
    return f"{text} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else text


def _data(data: Facts) -> list[str]:
    """The data and their digests."""
    return [
        f"- {part} data: {data[part]['images']} images of {data.get('name', 'unknown')}, "
        f"annotations {str(data[part].get('annotations_sha256'))[:16]}, "
        f"ids {str(data[part].get('ids_sha256'))[:16]} (digests)"
        for part in ("train", "val")
        if part in data
    ]
