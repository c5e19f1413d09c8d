import pytest

from maskrcnn_lit.evaluation.titles import coco_columns, metric_title


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("val/mask_ap", "mask AP"),
        ("val/box_ap50", "box AP50"),
        ("mask_ap_small", "mask small"),
        ("val/roi_accuracy", "roi_accuracy"),
        ("f1", "F1"),
    ],
)
def test_titles(metric: str, expected: str):
    assert metric_title(metric) == expected


def test_columns_of_recall_follow_the_metrics():
    columns = coco_columns(["val/mask_ar100", "val/mask_ar1", "val/box_ar10", "val/mask_ar_small"])
    assert list(columns.values()) == [
        *("AP", "AP50", "AP75", "small", "medium", "large"),
        *("AR1", "AR10", "AR100"),
    ]
