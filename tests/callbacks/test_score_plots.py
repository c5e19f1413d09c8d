import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from colored import colors_of
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from tiny_commands import EPOCHS, STEPS

from maskrcnn_lit.callbacks.score_plots import THRESHOLDS, class_table, drawn, threshold_counts
from maskrcnn_lit.data.datasets.shapes import NAMES
from maskrcnn_lit.evaluation.analysis.average_precision import Judged

pytest_plugins = ("tiny_commands",)
pytestmark = pytest.mark.long

STEPS_SHOWN = [STEPS // EPOCHS - 1, STEPS - 1]  # those of val/mask_ap


@pytest.fixture(scope="module")
def events(trained: Path) -> EventAccumulator:
    return EventAccumulator(str(trained), size_guidance={"images": 0, "tensors": 0}).Reload()


@pytest.mark.parametrize("name", ["class_ap", "precision_recall", "confusion"])
def test_a_picture_after_every_validation(events: EventAccumulator, name: str):
    shown = events.Images(f"val_plots/{name}")
    assert [event.step for event in shown] == STEPS_SHOWN
    for event in shown:
        picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        assert picture.shape[1] == 960
        assert len(colors_of(picture)) > 10


def test_ap_of_each_class_is_a_curve(events: EventAccumulator, trained: Path):
    """The mean of the classes is the AP that is logged."""
    for kind in ("mask_ap", "box_ap"):
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(f"val_class_{kind}/")]
        assert {tag.partition("/")[2] for tag in tags} <= set(NAMES)
        assert all([e.step for e in events.Scalars(tag)] == STEPS_SHOWN for tag in tags)
        values = [events.Scalars(tag)[-1].value for tag in tags]
        assert np.mean(values) == pytest.approx(events.Scalars(f"val/{kind}")[-1].value, abs=1e-6)


def test_the_table_of_classes(events: EventAccumulator, strange: Path):
    shown = events.Tensors("val_tables/classes/text_summary")
    assert [event.step for event in shown] == STEPS_SHOWN
    head, _, *rows = make_ndarray(shown[-1].tensor_proto).item().decode().splitlines()
    assert head == "| class | objects | mask AP | box AP | roi\\_accuracy |"
    objects = [int(row.split("|")[2]) for row in rows]
    assert objects == sorted(objects, reverse=True)
    truth = json.loads((strange / "annotations" / "instances_val.json").read_text())
    assert sum(objects) == sum(not entry.get("iscrowd") for entry in truth["annotations"])


def test_a_class_without_objects_has_empty_cells():
    rows = [
        {"name": "a", "objects": 1, "box_ap": 0.5, "mask_ap": None},
        {"name": "b", "objects": 0, "box_ap": None, "mask_ap": None},
        {"name": "c", "objects": 3, "box_ap": 0.25, "mask_ap": None},
    ]
    per_class = {"a": {"roi_accuracy": 1.0}, "b": {}, "c": {"roi_accuracy": math.nan}}
    table = class_table(rows, per_class)
    assert table.head == ["class", "objects", "box AP", "roi_accuracy"]
    assert table.rows == [["c", 3, 0.25, None], ["a", 1, 0.5, 1.0], ["b", 0, None, None]]


def test_a_curve_of_each_class_and_of_all_of_them(events: EventAccumulator):
    curves = set(events.summary_metadata) & {
        tag for tag in events.Tags()["tensors"] if tag.startswith("pr")
    }
    assert curves == {"pr/all classes"} | {f"pr_class/{name}" for name in NAMES}
    for tag in curves:
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == "pr_curves"
        assert [event.step for event in events.Tensors(tag)] == STEPS_SHOWN


def test_the_curve_of_all_classes_counts_what_pycocotools_matches(
    events: EventAccumulator, trained: Path, strange: Path
):
    truth = COCO(strange / "annotations" / "instances_val.json")
    entries = json.loads((trained / "detections.json").read_text())
    found = truth.loadRes(
        [{key: value for key, value in entry.items() if key != "bbox"} for entry in entries]
    )
    scored = COCOeval(truth, found, "segm")
    scored.evaluate()
    images = [
        image for image in scored.evalImgs if image and image["aRng"] == scored.params.areaRng[0]
    ]
    scores = np.concatenate([image["dtScores"] for image in images])
    right = np.concatenate([image["dtMatches"][0] > 0 for image in images])
    counts = make_ndarray(events.Tensors("pr/all classes")[-1].tensor_proto)
    assert counts.shape == (6, len(THRESHOLDS))
    for threshold, (hits, false, _, missed, precision, recall) in zip(
        THRESHOLDS, counts.T, strict=True
    ):
        passed = scores >= threshold
        assert hits == (right & passed).sum()
        assert false == (~right & passed).sum()
        assert hits + missed == len(truth.getAnnIds())
        assert recall == pytest.approx(hits / (hits + missed))
        assert precision == pytest.approx(hits / max(passed.sum(), 1))


JUDGED = Judged(
    labels=np.array([0, 0, 1, 0]),
    scores=np.array([0.9, 0.4, 0.8, 0.7]),
    right=np.array([[True, False, True, False]]),
    ignored=np.array([[False, False, False, True]]),
    objects=np.array([2, 1, 0]),
)


def test_counts_by_hand():
    hits, false, negatives, missed, precision, recall = threshold_counts(JUDGED, 0)
    assert THRESHOLDS[0] == 0
    assert (hits[0], false[0], missed[0]) == (1, 1, 1), "the ignored one is neither"
    assert precision[0] == recall[0] == 0.5
    assert not negatives.any()
    half = int(np.argmax(THRESHOLDS > 0.5))
    assert (hits[half], false[half], precision[half]) == (1, 0, 1.0)
    assert (hits[-1], false[-1], missed[-1], precision[-1]) == (0, 0, 2, 0)
    assert [values[0] for values in threshold_counts(JUDGED, None)[:4]] == [2, 1, 0, 1]
    assert not any(values.any() for values in threshold_counts(JUDGED, 2)), (
        "no objects and no detections"
    )


def test_what_is_drawn():
    per_class = {
        "a": {"box_ap": 0.1, "mask_ap": 0.2},
        "b": {"box_ap": 0.3},
        "c": {"box_ap": math.nan},
    }
    shown = drawn(["a", "b", "c"], JUDGED, per_class, "mask")
    assert shown["per_class"] == [
        {"name": "a", "objects": 2, "box_ap": 0.1, "mask_ap": 0.2},
        {"name": "b", "objects": 1, "box_ap": 0.3, "mask_ap": None},
        {"name": "c", "objects": 0, "box_ap": None, "mask_ap": None},
    ]
    assert [curve["name"] for curve in shown["curves"]] == ["a", "b", "c", "all classes"]
    assert shown["curves"][0]["recall"].tolist() == [0.5, 0.5]
    assert shown["curves"][0]["precision"].tolist() == [1, 0.5]


def test_a_class_may_be_called_all_classes():
    shown = drawn(
        ["all classes", "b", "c"], JUDGED, {name: {} for name in ("all classes", "b", "c")}, "mask"
    )
    assert [curve["name"] for curve in shown["curves"]] == ["all classes", "b", "c", "all classes"]
    assert shown["curves"][0]["recall"].tolist() == [0.5, 0.5]
    assert len(shown["curves"][-1]["recall"]) == 3
