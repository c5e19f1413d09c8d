"""Calibration of scores (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2). A
detection is right if COCO's rules match it to an object at IoU 0.5.

Detections are binned by score into ten bins of equal width, ((m - 1) / 10, m / 10]; a score of 0
belongs to the first. The expected calibration error is the mean of |precision - mean score| over
the bins, weighted by their counts (equation 3 there). Detections that COCO ignores are excluded.
"""

from typing import Any

import numpy as np

from maskrcnn_lit.evaluation.analysis.average_precision import Bools, Floats

BINS = 10


def calibration(scores: Floats, right: Bools, bins: int = BINS) -> dict[str, Any]:
    """{"bins": [{"from", "to", "score", "precision", "count"}], "error"}: score: the mean score of
    the bin; NaN for an empty bin. `scores`, `right`: of D detections; scores outside 0..1 go into
    the first or last bin.
    """
    edges = np.arange(bins + 1) / bins
    bin_index = np.searchsorted(edges[1:-1], scores, side="left")
    count = np.bincount(bin_index, minlength=bins)
    with np.errstate(invalid="ignore"):
        score = np.bincount(bin_index, scores, bins) / count
        precision = np.bincount(bin_index, right, bins) / count
    gap = np.abs(precision - score)[count > 0]
    return {
        "bins": [
            {"from": low, "to": high, "score": s, "precision": p, "count": n}
            for low, high, s, p, n in zip(
                edges[:-1].tolist(),
                edges[1:].tolist(),
                score.tolist(),
                precision.tolist(),
                count.tolist(),
                strict=True,
            )
        ],
        "error": float(gap @ count[count > 0] / len(scores)) if len(scores) else float("nan"),
    }
