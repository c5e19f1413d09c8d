"""What text, tables, plots and charts call a score: the one table of titles."""

import re
from collections.abc import Iterable

from maskrcnn_lit.data.coco.sizes import SIZES

# Ending of a metric of a kind of IoU (mask_..., box_...) -> head of its column.
AP_COLUMNS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    **{f"ap_{size}": size for size in SIZES},
}

# The same of classes by their frequency, where the data name it, as LVIS does.
FREQUENCY_COLUMNS = {f"ap_{name}": name for name in ("rare", "common", "frequent")}

# Of objects that others hide (evaluation/analysis/hidden_objects.py), and of crowded images.
HIDDEN = {
    "recall_hidden_0": "recall, hidden 0 to 0.1",
    "recall_hidden_10": "recall, hidden 0.1 to 0.4",
    "recall_hidden_40": "recall, hidden 0.4 to 0.6",
    "recall_hidden_60": "recall, hidden 0.6 to 0.85",
    "recall_hidden_85": "recall, hidden 0.85 and more",
    "recall_occluded": "recall, occluded",
    "recall_separated": "recall, separated",
    "ap_crowded": "AP of crowded images",
    "merged": "merged",
    "split": "split",
    "count_error": "count error an image",
}

TITLES = {
    **{
        f"{kind}_{key}": f"{kind} {(AP_COLUMNS | FREQUENCY_COLUMNS)[key]}"
        for kind in ("mask", "box")
        for key in (AP_COLUMNS | FREQUENCY_COLUMNS)
    },
    "boundary_ap": "boundary AP",
    "cityscapes_ap": "Cityscapes AP",
    "cityscapes_ap50": "Cityscapes AP50",
    "roi_accuracy": "roi_accuracy",
    **HIDDEN,
    "loss": "loss",
    "objects": "objects",
    "detections": "detections",
    "threshold": "threshold",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}


def metric_title(metric: str) -> str:
    """The title of a metric, logged ("val/mask_ap50") or of a class ("mask_ap50")."""
    return TITLES[metric.removeprefix("val/")]


def coco_columns(metrics: Iterable[str]) -> dict[str, str]:
    """Endings of the COCO metrics among the logged names -> heads: AP, by size, by frequency of the
    class where it is known, AR by the numbers of detections.
    """
    names = list(metrics)
    limits = sorted({int(m[1]) for name in names if (m := re.fullmatch(r"val/\w+_ar(\d+)", name))})
    by_frequency = {
        key: head
        for key, head in FREQUENCY_COLUMNS.items()
        if any(name.endswith(f"_{key}") for name in names)
    }
    return AP_COLUMNS | by_frequency | {f"ar{limit}": f"AR{limit}" for limit in limits}
