"""Void pixels and boxes without masks in the metrics, on an image of 10 x 20 pixels."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from maskrcnn_lit.evaluation.analysis.analyze import analyze
from maskrcnn_lit.evaluation.coco.scores import score_results
from maskrcnn_lit.evaluation.coco.void import VoidRegion, has_mask, truth_mask, void_of

SIZE = (10, 20)


def rle(*boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    """The union of rectangles x y w h."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = 1
    encoded = rle_tools.encode(mask)
    return encoded | {"counts": encoded["counts"].decode()}


def truth(*objects: tuple[int, int, int, int], void: Any = None, bare: int = 0) -> dict[str, Any]:
    """Objects that fill their boxes; the last `bare` have no mask."""
    image: dict[str, Any] = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    if void is not None:
        image["ignore"] = rle(void)
    annotations = [
        {
            "id": n,
            "image_id": 1,
            "category_id": 1,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": rle(box) if n <= len(objects) - bare else [],
        }
        for n, box in enumerate(objects, 1)
    ]
    return {
        "images": [image],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def detection(box: tuple[int, int, int, int], score: float, category: int = 1) -> dict[str, Any]:
    return {
        "image_id": 1,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": rle(box),
    }


def test_masks_lose_their_void_pixels_before_the_iou():
    """The object has columns 0 to 9, of which 8 and 9 are void. A mask of columns 0 to 11 is exact
    where anything counts if 10 and 11 are void, too: IoU 1, not 10 / 12.
    """
    object_, wide = (0, 0, 10, 10), (0, 0, 12, 10)
    plain = score_results(truth(object_), [detection(wide, 0.9)]).metrics
    assert plain["val/mask_ap"] == pytest.approx(0.7)  # IoU 0.833: right at 0.5 to 0.8
    without = score_results(truth(object_, void=(8, 0, 4, 10)), [detection(wide, 0.9)]).metrics
    assert without["val/mask_ap"] == pytest.approx(1.0)
    assert without["val/box_ap"] == plain["val/box_ap"]  # boxes have no pixels to lose


@pytest.mark.parametrize(("share", "ap"), [(0, 0.5), (4, 0.5), (5, 0.55), (9, 0.95), (10, 1.0)])
def test_an_unmatched_detection_is_ignored_from_its_share_of_void_on(share: int, ap: float):
    """A false detection of ten columns ranks above a right one. Where it counts, precision is 1/2;
    it does not count at thresholds up to its share of void.
    """
    scene = truth((0, 0, 10, 10), void=(10, 0, share, 10) if share else None)
    results = [detection((10, 0, 10, 10), 0.9), detection((0, 0, 10, 10), 0.8)]
    metrics = score_results(scene, results).metrics
    assert metrics["val/mask_ap"] == pytest.approx(ap)
    assert metrics["val/box_ap"] == pytest.approx(ap)


def test_an_object_of_void_alone_is_no_object_for_masks():
    scene = truth((0, 0, 10, 10), (12, 0, 4, 4), void=(12, 0, 4, 4))
    metrics = score_results(scene, [detection((0, 0, 10, 10), 0.8)]).metrics
    assert metrics["val/mask_ap"] == pytest.approx(1.0)
    assert metrics["val/box_ap"] == pytest.approx(51 / 101)  # half of the boxes


def test_an_object_without_a_mask_counts_for_boxes_alone():
    scene = truth((0, 0, 10, 10), (12, 0, 8, 8), bare=1)
    right = detection((0, 0, 10, 10), 0.8)
    metrics = score_results(scene, [right]).metrics
    assert metrics["val/mask_ap"] == pytest.approx(1.0)
    assert metrics["val/box_ap"] == pytest.approx(51 / 101)
    # a mask inside of its box is neither right nor wrong, of its class alone
    inside = detection((13, 0, 6, 6), 0.9)
    assert score_results(scene, [inside, right]).metrics["val/mask_ap"] == pytest.approx(1.0)
    scene["annotations"][1]["category_id"] = 2
    assert score_results(scene, [inside, right]).metrics["val/mask_ap"] == pytest.approx(0.5)


def test_the_analysis_ignores_what_the_scores_ignore():
    scene = truth((0, 0, 10, 10), (12, 0, 4, 4), void=(10, 0, 2, 10), bare=1)
    results = [
        detection((0, 0, 12, 10), 0.9),
        detection((10, 0, 2, 10), 0.8, category=2),  # void
        detection((12, 0, 4, 4), 0.7),  # on the object without a mask
    ]
    analysis = analyze(scene, results)
    assert analysis["objects"] == 1
    assert analysis["mask_ap"] == pytest.approx(1.0)
    assert sum(analysis["errors"]["counts"].values()) == 0
    assert analysis["worst"] == []
    assert analysis["confusion"]["counts"] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert [row["mask_ap50"] for row in analysis["per_class"]] == [pytest.approx(1.0), None]


def test_the_shares_of_void_and_the_rest_of_a_mask():
    region = void_of(truth(void=(0, 0, 5, 10))["images"][0])
    assert isinstance(region, VoidRegion)
    visible = region.visible([rle((0, 0, 10, 10)), rle((0, 0, 2, 2)), rle()])
    assert [int(rle_tools.area(mask)) for mask in visible.masks] == [50, 0, 0]
    assert visible.void.tolist() == [0.5, 1.0, 0.0]
    boxes = np.array([[0, 0, 10, 10], [-5, 0, 10, 10], [10, 0, 0, 0], [8, 0, 2, 2.0]])
    assert region.share_of_boxes(boxes).tolist() == [0.5, 1.0, 0.0, 0.0]
    assert region.share_of_boxes(boxes[:0]).tolist() == []
    assert void_of(truth()["images"][0]) is None


def test_the_mask_of_an_object_without_one_is_its_box():
    scene = truth((1, 2, 3, 4), bare=1)
    (annotation,), (image,) = scene["annotations"], scene["images"]
    assert not has_mask(annotation)
    assert int(rle_tools.area(truth_mask(annotation, image))) == 12
    del annotation["segmentation"]
    assert not has_mask(annotation)
