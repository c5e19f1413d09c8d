"""`evaluate tta=flip`: whether test-time augmentation was worth its time."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.coco.matching import Matches
from maskrcnn_lit.launch.gain import against_plain, difference_lines, seconds_line
from maskrcnn_lit.model.tta import WithViews


def gain(
    kind: str,
    model: WithViews,
    matches: Mapping[str, Matches],
    plain: list[dict[str, Any]],
    truth: Mapping[str, Any],
    categories: Sequence[Category],
    limits: Sequence[int],
) -> dict[str, Any]:
    """What evaluation.json says of test-time augmentation: kind, the number of views, their sizes,
    seconds of the model for an image with and without it, "plain" metrics without it, and
    "differences" from these, by a paired bootstrap over images.

    Args:
        model: after the evaluation.
        matches: of the detections with it.
        plain, truth, categories, limits: as for `against_plain`.
    """
    images = max(1, model.images)
    return {
        "kind": kind,
        "views": 2 * len(model.sizes),
        "sizes": model.sizes,
        "seconds_per_image": model.seconds / images,
        "plain_seconds_per_image": model.plain_seconds / images,
        **against_plain(matches, plain, truth, categories, limits),
    }


def gain_text(row: Mapping[str, Any]) -> str:
    """`gain` in a line for each of its figures."""
    head = f"tta={row['kind']} ({row['views']} views of an image)"
    return "\n".join([*difference_lines(head, row), seconds_line(head, row)])
