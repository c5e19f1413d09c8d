"""The sentences: which stand, and that each number in them is one of the data."""

import json
import re

from report_sample import analysis

from maskrcnn_lit.report.evaluation.sentences import summary


def said(start: str, **more: object) -> str:
    (sentence,) = [text for text in summary(analysis() | more) if text.startswith(start)]
    return sentence


def test_the_first_sentence_tells_the_scores():
    assert (
        summary(analysis())[0]
        == "Mask AP 0.531 and box AP 0.562 on 2 images with 20 objects and 90 detections."
    )
    boxes = analysis() | {"kind": "box", "mask_ap": None, "boundary_ap": None, "images": 1}
    assert summary(boxes)[0] == "Box AP 0.562 on 1 image with 20 objects and 90 detections."
    assert not [text for text in summary(boxes) if "oundary" in text]


def test_the_largest_loss_is_named_first():
    assert said("AP50") == (
        "AP50 is 0.613. The costliest kind of error is missed objects (0.188 AP50 if it alone were "
        "fixed), "
        "then detections where nothing is (0.098)."
    )
    errors = analysis()["errors"] | {
        "missed": 0.0,
        "background": 0.0,
        "localisation": 0.0,
        "duplicate": 0.0,
    }
    assert said("AP50", errors=errors) == (
        "AP50 is 0.613. The costliest kind of error is objects given the wrong class (0.031 AP50 "
        "if it alone were "
        "fixed)."
    )


def test_the_other_sentences():
    assert (
        said("Boundary")
        == "Boundary AP, for which outlines must agree too, is 0.425: 80% of mask AP."
    )
    assert said("The best") == (
        "The best class is circle (AP 0.890, 10 objects), the worst square <b> (AP 0.657, 10 "
        "objects)."
    )
    assert (
        said("AP is")
        == "AP is 0.710 for objects of which others cover 0 to 0.1, and 0.520 where they cover 0.1 "
        "to 0.4."
    )
    assert said("In crowded") == "In crowded images AP is 0.430 and recall 0.667."
    counts = [[5, 3, 0], [1, 7, 0], [0, 2, 0]]
    confusion = {"iou": 0.5, "labels": ["cat", "dog", "background"], "counts": counts}
    assert said("Most often", confusion=confusion) == (
        "Most often mixed up: 3 of 8 objects of class cat are detected as dog."
    )
    bins = [{"from": 0, "to": 0.5, "score": 0.4, "precision": 0.1, "count": 3}]
    bins += [{"from": 0.5, "to": 1, "score": 0.8, "precision": 0.9, "count": 1}]
    assert said("Scores", calibration={"bins": bins, "error": 0.25}) == (
        "Scores are higher than the share of detections that is right by 0.200 on average "
        "(calibration error 0.250)."
    )


def test_the_best_threshold_of_all_classes_is_told():
    curve = {"name": "all classes", "recall": [0.1, 0.5, 0.9], "precision": [1.0, 0.8, 0.2]}
    curve |= {"thresholds": [0.9, 0.45, 0.05], "f1": [0.18, 0.615, None]}
    assert said("Detections", curves=[curve]) == (
        "Detections with a score of 0.45 or more give the best F1, 0.615: precision 0.800, recall "
        "0.500."
    )


def test_the_threshold_is_not_that_of_a_class_called_all_classes():
    curves = [
        {
            "name": "all classes",
            "recall": [0.1],
            "precision": [0.3],
            "thresholds": [threshold],
            "f1": [0.15],
        }
        for threshold in (0.25, 0.75)
    ]
    assert said("Detections", curves=curves).startswith("Detections with a score of 0.75 or more")


def test_nothing_is_said_of_what_is_not_there():
    found = analysis(("only",))
    found["errors"] |= {kind: None for kind in found["errors"] if kind != "counts"}
    found |= {"curves": [], "occlusion": [], "calibration": {"bins": [], "error": None}}
    found |= {"mask_ap": None, "box_ap": None, "boundary_ap": None, "detections": 0}
    assert summary(found) == ["AP - on 2 images with 20 objects and 0 detections."]


def test_every_number_comes_from_the_data():
    found = analysis()
    # an AP of 1 in all places would show a number that was written by hand
    known = {
        f"{float(text):.3f}" for text in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", json.dumps(found))
    }
    rows = {f"{float(sum(row)):.3f}" for row in found["confusion"]["counts"]}
    bins = [entry for entry in found["calibration"]["bins"] if entry["count"]]
    excess = sum((entry["score"] - entry["precision"]) * entry["count"] for entry in bins) / sum(
        b["count"] for b in bins
    )
    known |= rows | {f"{excess:.3f}", f"{100 * found['boundary_ap'] / found['mask_ap']:.3f}"}
    thresholds = {f"{value:.2f}" for value in found["curves"][-1]["thresholds"]}
    for sentence in summary(found):
        for text in re.findall(r"\d+(?:\.\d+)?", sentence.replace("AP50", "")):
            assert text in thresholds or f"{float(text):.3f}" in known, (text, sentence)
