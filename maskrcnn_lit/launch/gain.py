"""What `evaluate tta=flip` and `evaluate tile=1024` gain over the images as they are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.bootstrap import differences
from maskrcnn_lit.evaluation.coco.matching import Matches
from maskrcnn_lit.evaluation.coco.results import of_categories
from maskrcnn_lit.evaluation.coco.scores import match_all, score_matches


def against_plain(
    matches: Mapping[str, Matches],
    plain: list[dict[str, Any]],
    truth: Mapping[str, Any],
    categories: Sequence[Category],
    limits: Sequence[int],
) -> dict[str, Any]:
    """ "plain": metrics of the images as they are; "differences" from these, by a paired bootstrap
    over images.

    Args:
        matches: of the detections with the option.
        plain: COCO results without it, on the images of `truth`, with `categories`.
        limits: as for `check_limits`.
    """
    results, _ = of_categories(plain, categories, truth["categories"])
    others = match_all(truth, results, limits[-1], "mask" in matches)
    return {
        "plain": score_matches(others, truth["categories"], limits).metrics,
        "differences": differences(matches, others),
    }


def difference_lines(head: str, row: Mapping[str, Any]) -> Iterator[str]:
    """A line for each AP of `against_plain`."""
    for name, difference in row["differences"].items():
        kind, value = name.removeprefix("val/").removesuffix("_ap"), difference["value"]
        if value != value:
            continue  # no objects, so no difference either
        low, high = difference["interval"]
        plain = row["plain"][name]
        yield (
            f"{head}: {kind} AP {plain + value:.3f}, without {plain:.3f}: {value:+.3f}, 95 % "
            f"interval {low:+.3f} to {high:+.3f}, p = {difference['p_value']:.3f}"
        )


def seconds_line(head: str, row: Mapping[str, Any]) -> str:
    """The price in time."""
    seconds, alone = row["seconds_per_image"], row["plain_seconds_per_image"]
    times = f" ({seconds / alone:.1f} times)" if alone else ""
    return f"{head}: {seconds:.3f} s of the model an image, without {alone:.3f} s{times}"
