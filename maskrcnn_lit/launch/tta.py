"""`evaluate tta=flip`: whether test-time augmentation was worth its time."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.bootstrap import differences
from maskrcnn_lit.evaluation.coco.matching import Matches
from maskrcnn_lit.evaluation.coco.results import of_categories
from maskrcnn_lit.evaluation.coco.scores import match_all, score_matches
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
        plain: COCO results without it, on the images of `truth`, with `categories`.
        limits: as for `check_limits`.
    """
    results, _ = of_categories(plain, categories, truth["categories"])
    others = match_all(truth, results, limits[-1], "mask" in matches)
    images = max(1, model.images)
    return {
        "kind": kind,
        "views": 2 * len(model.sizes),
        "sizes": model.sizes,
        "seconds_per_image": model.seconds / images,
        "plain_seconds_per_image": model.plain_seconds / images,
        "plain": score_matches(others, truth["categories"], limits).metrics,
        "differences": differences(matches, others),
    }


def gain_text(row: Mapping[str, Any]) -> str:
    """`gain` in a line for each of its figures."""
    head = f"tta={row['kind']} ({row['views']} views of an image)"
    lines = []
    for name, difference in row["differences"].items():
        kind, value = name.removeprefix("val/").removesuffix("_ap"), difference["value"]
        if value != value:
            continue  # no objects, so no difference either
        low, high = difference["interval"]
        plain = row["plain"][name]
        lines.append(
            f"{head}: {kind} AP {plain + value:.3f}, without {plain:.3f}: {value:+.3f}, 95 % "
            f"interval {low:+.3f} to {high:+.3f}, p = {difference['p_value']:.3f}"
        )
    seconds, alone = row["seconds_per_image"], row["plain_seconds_per_image"]
    times = f" ({seconds / alone:.1f} times)" if alone else ""
    lines.append(f"{head}: {seconds:.3f} s of the model an image, without {alone:.3f} s{times}")
    return "\n".join(lines)
