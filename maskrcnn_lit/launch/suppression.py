"""`evaluate nms=all`: scores every kind of suppression, and says which differs from the run's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.analysis.hidden_objects import hidden_object_metrics
from maskrcnn_lit.evaluation.bootstrap import difference, resample
from maskrcnn_lit.evaluation.coco.results import of_categories
from maskrcnn_lit.evaluation.coco.scores import match_all, score_matches
from maskrcnn_lit.model.suppression import Suppression
from maskrcnn_lit.report.evaluation.suppression import choice_rows, verdict
from maskrcnn_lit.terminal.table import text_table

Row = dict[str, Any]


def score_choices(
    choices: Iterable[tuple[Suppression, list[dict[str, Any]]]],
    own: Suppression,
    truth: Mapping[str, Any],
    categories: Sequence[Category],
    limits: Sequence[int],
) -> list[Row]:
    """A row for each choice, the highest mask AP first, and `own` before its equals: nms,
    agnostic_nms, exclusive, "own" (bool), "metrics" by logged name, and "difference" of its mask AP
    from that of `own`: {"value", "interval", "p_value"}, by a bootstrap over the same images; None
    for the run's own.

    Args:
        choices: each with its COCO results for the images of `truth`; `own` is one of them.
        categories: of the results.
        limits: as for `check_limits`.
    """
    rows, resampled = [], {}
    for choice, every in choices:
        results, _ = of_categories(every, categories, truth["categories"])
        matches = match_all(truth, results, limits[-1])
        metrics = score_matches(matches, truth["categories"], limits).metrics
        metrics |= hidden_object_metrics(truth, results, limits[-1])
        resampled[choice] = resample(matches["mask"])
        rows.append({**choice._asdict(), "own": choice == own, "metrics": metrics})
    for choice, row in zip(resampled, rows, strict=True):
        row["difference"] = None
        if choice != own:
            row["difference"] = difference(resampled[choice], resampled[own])._asdict()
    return sorted(rows, key=lambda row: (-_known(row["metrics"]["val/mask_ap"]), not row["own"]))


def _known(value: float) -> float:
    return value if value == value else -1.0  # NaN: no object, and all are equal


def choices_text(rows: Sequence[Row]) -> str:
    """The table, and a sentence on the choices that differ from the run's own."""
    lines = text_table(*choice_rows(rows))
    return "\n".join([*lines, verdict(rows)])
