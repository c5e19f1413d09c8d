"""Run folders without a training: a few validation images, detections made from their ground truth,
and a result.json that tells the AP that these have. And jobs of made-up numbers, for what needs no
folder.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.data.datasets.shapes import write_shapes
from maskrcnn_lit.evaluation.bootstrap import intervals
from maskrcnn_lit.evaluation.coco.results import compressed_rle, write_results
from maskrcnn_lit.evaluation.coco.scores import match_all, score_matches
from maskrcnn_lit.report.comparison.settings import Job
from maskrcnn_lit.runs.provenance import describe_data
from maskrcnn_lit.runs.result import RunResult, write_result

IMAGES, SIZE = 16, 64
COST = {
    "parameters": 4_000_000,
    "flops": 2_500_000_000,
    "seconds": 120.25,
    "images_per_second": 12.5,
    "inference_images_per_second": 40.125,
    "latency_seconds": 0.03125,
    "peak_memory_bytes": 1_250_000_000,
    "energy_joules": None,
    "device": "a processor",
}


def draw(root: Path) -> dict[str, Any]:
    """The validation images in `root`; their ground truth."""
    write_shapes(root=root, train_images=2, val_images=IMAGES, size=SIZE, seed=0)
    return json.loads((root / "annotations/instances_val.json").read_text())


def detections(truth: dict[str, Any], share: float, seed: int = 0) -> list[dict[str, Any]]:
    """So many of the objects, exactly as they are."""
    images = {image["id"]: image for image in truth["images"]}
    rng = np.random.default_rng(seed)
    found = []
    for entry in truth["annotations"]:
        if rng.random() < share and not entry["iscrowd"]:
            mask = compressed_rle(entry["segmentation"], images[entry["image_id"]])
            counts = mask["counts"] if isinstance(mask["counts"], str) else mask["counts"].decode()
            mask = {"size": [int(side) for side in mask["size"]], "counts": counts}
            kept = {key: entry[key] for key in ("image_id", "category_id", "bbox")}
            found.append(
                kept | {"segmentation": mask, "score": round(float(rng.uniform(0.6, 1)), 3)}
            )
    return found


def make_run(
    folder: Path,
    root: Path,
    truth: dict[str, Any],
    *overrides: str,
    share: float | None = None,
    drawn: int = 0,
    cost: dict[str, Any] | None = None,
    **result: Any,
) -> Path:
    """A run folder of these overrides: finished, with `share` of the objects found, unless `result`
    says otherwise.
    """
    typed = [
        "data=shapes",
        f"data.root={root}",
        f"data.val_images={IMAGES}",
        "model=tiny",
        *overrides,
    ]
    if not any(text.startswith("backbone=") for text in overrides):
        typed.insert(0, "backbone=resnet18")
    config = compose("train", [*typed, f"run_dir='{folder}'"])
    ids = [image["id"] for image in truth["images"]]
    seed = int(config.seed)
    told = RunResult(status="finished", seed=seed, overrides=[*typed, f"run_dir={folder}"])
    told.data = describe_data(
        name="shapes",
        subset_ids={"train": list(range(config.data.train_images)), "val": ids},
        categories=[(c["id"], c["name"]) for c in truth["categories"]],
    )
    told.cost = {**COST, **(cost or {})}
    if share is not None:
        results = detections(truth, share, seed=drawn or seed)
        matches = match_all(truth, results, 100)
        scores = score_matches(matches, truth["categories"], (1, 10, 100))
        told.metrics = scores.metrics | {
            "val/images": float(len(ids)),
            "val/roi_accuracy": 0.25 + share / 2,
        }
        told.intervals = intervals(matches)
        write_results(folder / "detections.json", results)
        write_curves(
            folder / "metrics.csv", int(config.trainer.epochs), told.metrics["val/mask_ap"]
        )
    for name, value in result.items():
        setattr(told, name, value)
    write_result(folder / "result.json", told)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    return folder


def write_curves(file: Path, epochs: int, ap: float) -> None:
    """Four steps an epoch, and a validation of everything after the last one."""
    rows: list[dict[str, Any]] = []
    for epoch in range(epochs):
        rows += [
            {"step": 4 * epoch + i, "epoch": epoch, "train/loss": 3 / (4 * epoch + i + 1)}
            for i in (1, 3)
        ]
        share = (epoch + 1) / epochs
        scores = {
            "val/loss": 2 - share,
            "val/mask_ap": ap * share,
            "val/box_ap": ap * share,
            "val/roi_accuracy": share / 2,
        }
        rows.append({"step": 4 * epoch + 3, "epoch": epoch, **scores})
    rows.append({"step": 4 * epochs, "epoch": epochs, "val/mask_ap": ap})
    with open(file, "w", newline="") as opened:
        writer = csv.DictWriter(opened, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_sweep(
    folder: Path, jobs: Sequence[tuple[str, Sequence[str]]], question: str | None = None
) -> None:
    """sweep.json as `train -m` leaves it."""
    content = {
        "command": ["maskrcnn-lit", "train", "-m", "backbone=resnet18,resnet34"],
        "question": question,
        "jobs": [{"name": name, "overrides": list(overrides)} for name, overrides in jobs],
    }
    (folder / "sweep.json").write_text(json.dumps(content))


def job(
    name: str,
    *overrides: str,
    ap: float | None = None,
    seed: int = 1,
    config: dict[str, Any] | None = None,
    cost: dict[str, Any] | None = None,
    truth: str | None = "t",
    **more: Any,
) -> Job:
    """A job of made-up numbers. `config`: what matters of it; `more`: of its result, data and
    metrics among it.
    """
    metrics = {} if ap is None else {"val/mask_ap": ap, "val/box_ap": ap + 0.01, "val/images": 50.0}
    metrics |= more.pop("metrics", {})
    train = {"images": 100, "ids_sha256": "x"}
    data = {"name": "made up", "train": train, "val": {"images": 50, "ids_sha256": "y"}} | more.pop(
        "data", {}
    )
    status = more.pop("status", "finished")
    curves = tuple(more.pop("curves", ()))
    held = {"seed": seed, "run_dir": f"runs/{name}"} | (config or {})
    result = RunResult(
        status=status, metrics=metrics, data=data, cost=COST | (cost or {}), seed=seed, **more
    )
    return Job(name, Path("runs") / name, overrides, held, result, curves, truth)
