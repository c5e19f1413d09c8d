"""`model.mask_head=null`: Faster R-CNN with RoIAlign, table 3 of the paper, in every command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import HEIGHT, WIDTH, batch_of, lively
from models import make_batch, make_model
from tiny_commands import MODEL, SIZE, printed_by, refused, result, run_command, shapes_data
from torch import Tensor

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.analysis.analyze import analyze
from maskrcnn_lit.evaluation.coco.scores import (
    DetectionCollector,
    match_all,
    score_results,
    to_coco_results,
)
from maskrcnn_lit.export.graph import operator_graph, outputs, plain_graph
from maskrcnn_lit.export.parity import Parity
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.model.suppression import Suppression
from maskrcnn_lit.predictor import load_model
from maskrcnn_lit.storage.sealed import read_sealed_json

pytest_plugins = ("tiny_commands", "plain_plots")
pytestmark = pytest.mark.usefixtures("plain_plots")


def pair() -> tuple[Any, Any]:
    """A model with masks, and one without and else the same weights."""
    torch.manual_seed(0)
    full, alone = make_model(), make_model(masks=False)
    state = {n: v for n, v in full.state_dict().items() if not n.startswith("mask_head.")}
    alone.load_state_dict(state)  # strict
    return full, alone


def test_all_but_the_masks_is_as_in_the_model_with_them():
    full, alone = pair()
    batch = make_batch()
    output, other = full(dict(batch)), alone(dict(batch))
    assert output.losses.keys() - other.losses.keys() == {"mask"}
    assert all(torch.equal(other.losses[name], output.losses[name]) for name in other.losses)
    assert other.counts.keys() == other.losses.keys()
    assert other.masks_dropped is None
    torch.stack(list(other.losses.values())).sum().backward()
    gradients: list[Tensor | None] = [p.grad for p in alone.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)
    for model in (full, alone):
        model.eval()
        model.box_head.score_threshold = 0.0
    with torch.no_grad():
        for static in (False, True):
            detected, boxes = full(batch, static).detections, alone(batch, static).detections
            assert detected.keys() - boxes.keys() == {"masks"}
            assert all(torch.equal(boxes[name], detected[name]) for name in boxes)


def test_images_and_results_have_no_masks():
    model = lively(masks=False)
    batch = make_batch()
    images = to_original(model(batch).detections, batch)
    assert images[0].keys() == {"image_id", "boxes", "scores", "labels"}
    assert len(images[0]["boxes"])
    categories = [Category(n, f"c{n}") for n in (3, 5, 9)]
    results = to_coco_results(images, categories)
    assert all(entry.keys() == {"image_id", "category_id", "bbox", "score"} for entry in results)
    truth: dict[str, Any] = {
        "images": [{"id": n, "height": 64, "width": 64} for n in (10, 11)],
        "annotations": [],
        "categories": [{"id": c.id, "name": c.name} for c in categories],
    }
    assert match_all(truth, results).keys() == {"box"}
    collector = DetectionCollector()
    assert collector.has_masks
    collector.add(
        [
            {key: value[:0] for key, value in images[0].items() if key != "image_id"}
            | {"image_id": 10}
        ],
        [True],
    )
    assert not collector.has_masks
    assert match_all(truth, [], masks=collector.has_masks).keys() == {"box"}
    assert match_all(truth, []).keys() == {"box", "mask"}
    scores = score_results(truth, results)
    assert analyze(truth, [], scores=scores)["kind"] == "box"


def test_options_that_need_masks_are_refused():
    for name, value in (("mask_iou", True), ("mask_refine", "points"), ("occluder", True)):
        wanted = rf"model.{name}={value} needs masks.*model.mask_head=null.*leave out model.{name}"
        with pytest.raises(UserError, match=wanted):
            make_model(masks=False, **{name: value})
    model = make_model(masks=False)
    model.set_suppression(Suppression("soft", True))
    for wrong, wanted in (
        (Suppression("mask"), r"nms=mask needs masks, .* makes none: use model.nms=box or soft"),
        (Suppression(exclusive=True), r"exclusive=True needs masks, and model.mask_head=null"),
    ):
        with pytest.raises(UserError, match=wanted):
            model.set_suppression(wrong)


def test_the_graphs_of_an_export_leave_masks_out():
    model = lively(masks=False)
    batch = batch_of([(64, 90), (HEIGHT, WIDTH)])
    inputs = batch["images"], batch["image_sizes"]
    names = outputs(model.mask_size)
    assert names == ("boxes", "scores", "labels", "valid") == outputs(0)
    with torch.no_grad():
        expected = model.infer(*inputs, True)
        plain = dict(zip(names, plain_graph(model)(*inputs), strict=True))
        operators = dict(zip(names, operator_graph(model)(*inputs), strict=True))
        fused = for_inference(lively(masks=False)).infer(*inputs, True)
    parity = Parity()
    for found in (plain, operators, fused):
        parity.add(expected, found, 0.0)
    assert not parity.broken()
    assert parity.detections > 0


@pytest.mark.long
@pytest.mark.process
def test_every_command_takes_a_run_without_masks(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    data = shapes_data(tmp_path / "data")
    options = (*data, *MODEL, "trainer.epochs=1", "optimizer.lr=4.0e-3", "model.mask_head=null")
    run = tmp_path / "box"
    assert "box AP50" in printed_by("train", *options, f"run_dir={run}")
    metrics = result(run)["metrics"]
    assert "val/box_ap" in metrics
    assert not any("mask" in name for name in metrics)
    assert (run / "checkpoints" / "best.ckpt").is_file()  # chosen by box AP
    plateau = ("optimizer.schedule=plateau", f"run_dir={tmp_path / 'plateau'}")
    assert "optimizer.plateau.monitor=val/box_ap" in refused("train", *options, *plateau)

    printed = printed_by("evaluate", f"run={run}", f"run_dir={tmp_path / 'scored'}")
    assert "\nbox " in printed
    assert "\nmask" not in printed
    record = read_sealed_json(tmp_path / "scored" / "evaluation.json")
    assert record["metrics"]["val/box_ap"] == metrics["val/box_ap"]
    assert "box AP" in (tmp_path / "scored" / "report.html").read_text()
    assert "mask_head=null" in refused("evaluate", f"run={run}", "nms=all")
    views = ("tta=flip", "report=false", f"run_dir={tmp_path / 'views'}")
    assert "tta=flip (2 views of an image): box AP" in printed_by("evaluate", f"run={run}", *views)
    assert "needs masks" in refused("evaluate", f"run={run}", "model.nms=mask")

    source = tmp_path / "data" / "val"
    predict = (f"run={run}", f"source={source}", "score_threshold=0.0")
    run_command("predict", *predict, f"run_dir={tmp_path / 'predicted'}")
    entries = json.loads((tmp_path / "predicted" / "detections.json").read_text())
    assert entries
    assert all("segmentation" not in entry for entry in entries)
    (detections, *_) = load_model(run, score_threshold=0.0).predict(source)
    assert len(detections)
    assert detections.masks == []
    assert detections.masks_array().shape == (0, SIZE, SIZE)
    x1, y1, x2, y2 = detections.boxes[0].tolist()
    assert detections.to_rows()[0]["area"] == round((x2 - x1) * (y2 - y1))
    assert "segmentation" not in detections.to_coco()[0]
    drawn = detections.draw()
    factor = drawn.shape[0] // SIZE
    assert np.any(drawn != np.kron(detections.image, np.ones((factor, factor, 1), np.uint8)))

    run_command("compare", f"runs=[{run}]", f"out={tmp_path / 'compared'}")
    assert "box AP" in (tmp_path / "compared" / "report.md").read_text()

    folder = tmp_path / "onnx"
    export = ("export", f"run={run}", "format=onnx", f"run_dir={folder}")
    assert "The certificate holds" in printed_by(*export)
    run_command("evaluate", f"run={folder}", f"run_dir={tmp_path / 'again'}", "report=false")
    metrics = read_sealed_json(tmp_path / "again" / "evaluation.json")["metrics"]
    assert "val/box_ap" in metrics
    assert "val/mask_ap" not in metrics
    (again, *_) = load_model(folder).predict(source, score_threshold=0.06)
    assert again.masks == []
