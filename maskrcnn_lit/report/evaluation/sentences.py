"""The sentences of an evaluation. Every number in them comes from the data."""

from collections.abc import Iterator

import numpy as np

from maskrcnn_lit.errors import plural
from maskrcnn_lit.report.format import Analysis, number

# The kinds of errors of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object
# Detection Errors", 2020)
ERRORS = {
    "classification": "wrong class",
    "localisation": "poor overlap",
    "both": "wrong class and poor overlap",
    "duplicate": "object detected twice",
    "background": "nothing there",
    "missed": "missed object",
    "false_positives": "all false detections",
    "false_negatives": "all missed objects",
}

_COSTLY = {
    "classification": "objects given the wrong class",
    "localisation": "detections that overlap their object too little",
    "both": "detections of the wrong class that overlap too little",
    "duplicate": "objects detected twice",
    "background": "detections where nothing is",
    "missed": "missed objects",
}


def headline(analysis: Analysis) -> str:
    """The key of the main AP of a class: that of masks if there are any."""
    return "mask_ap" if analysis["kind"] == "mask" else "box_ap"


def summary(analysis: Analysis) -> list[str]:
    """The main results as sentences, most important first."""
    return [
        sentence
        for part in (_scores, _losses, _classes, _mix_ups, _crowding, _threshold, _scores_as_shares)
        for sentence in part(analysis)
    ]


def _scores(analysis: Analysis) -> Iterator[str]:
    scores = [
        f"{kind} AP {number(analysis[f'{kind}_ap'])}"
        for kind in ("mask", "box")
        if analysis[f"{kind}_ap"]
    ]
    counts = " and ".join(
        (plural(analysis["objects"], "object"), f"{plural(analysis['detections'], 'detection')}")
    )
    message = " and ".join(scores) or f"AP {number(analysis['box_ap'])}"
    yield (
        f"{message[0].upper()}{message[1:]} on {plural(analysis['images'], 'image')} with {counts}."
    )
    mask, boundary = analysis["mask_ap"], analysis["boundary_ap"]
    if mask and boundary is not None:
        share = f"{boundary / mask:.0%} of mask AP"
        yield f"Boundary AP, for which outlines must agree too, is {number(boundary)}: {share}."


def _losses(analysis: Analysis) -> Iterator[str]:
    errors = analysis["errors"]
    ranked = sorted((kind for kind in _COSTLY if errors[kind]), key=lambda kind: -errors[kind])
    if not ranked or errors["ap50"] is None:
        return
    first, *others = ranked
    then = f", then {_COSTLY[others[0]]} ({number(errors[others[0]])})" if others else ""
    yield (
        f"AP50 is {number(errors['ap50'])}. The costliest kind of error is {_COSTLY[first]} "
        f"({number(errors[first])} AP50 if it alone were fixed){then}."
    )


def _classes(analysis: Analysis) -> Iterator[str]:
    key = headline(analysis)
    known = sorted((c for c in analysis["per_class"] if c[key] is not None), key=lambda c: -c[key])
    if len(known) > 1:
        best, worst = known[0], known[-1]
        yield (
            f"The best class is {best['name']} (AP {number(best[key])}, "
            f"{plural(best['objects'], 'object')}), "
            f"the worst {worst['name']} (AP {number(worst[key])}, "
            f"{plural(worst['objects'], 'object')})."
        )


def _mix_ups(analysis: Analysis) -> Iterator[str]:
    counts = np.asarray(analysis["confusion"]["counts"], np.int64)
    mixed = counts[:-1, :-1] * (1 - np.eye(len(counts) - 1, dtype=np.int64))
    if mixed.size and mixed.max():
        truth, called = np.unravel_index(mixed.argmax(), mixed.shape)
        labels = analysis["confusion"]["labels"]
        yield (
            f"Most often mixed up: {mixed[truth, called]:,} of {counts[truth].sum():,} objects of "
            "class "
            f"{labels[truth]} are detected as {labels[called]}."
        )


def _crowding(analysis: Analysis) -> Iterator[str]:
    slices = [
        entry for entry in analysis["occlusion"] if entry["objects"] and entry["ap"] is not None
    ]
    crowds = [entry for entry in slices if entry["slice"].startswith("crowded")]
    covered = [entry for entry in slices if entry not in crowds]
    if len(covered) > 1:
        low, high = covered[0], covered[-1]
        yield (
            f"AP is {number(low['ap'])} for objects of which others cover {low['slice']}, "
            f"and {number(high['ap'])} where they cover {high['slice']}."
        )
    for entry in crowds:
        yield (
            f"In {entry['slice']} AP is {number(entry['ap'])} and recall {number(entry['recall'])}."
        )


def _threshold(analysis: Analysis) -> Iterator[str]:
    for curve in analysis["curves"][-1:]:  # the pooled one
        known = [i for i, f1 in enumerate(curve["f1"]) if f1 is not None]
        if known:
            i = max(known, key=lambda i: curve["f1"][i])
            yield (
                f"Detections with a score of {number(curve['thresholds'][i], 2)} or more give the "
                "best F1, "
                f"{number(curve['f1'][i])}: precision {number(curve['precision'][i])}, "
                f"recall {number(curve['recall'][i])}."
            )


def _scores_as_shares(analysis: Analysis) -> Iterator[str]:
    bins = [entry for entry in analysis["calibration"]["bins"] if entry["count"]]
    count = sum(entry["count"] for entry in bins)
    if not count or analysis["calibration"]["error"] is None:
        return
    excess = sum((entry["score"] - entry["precision"]) * entry["count"] for entry in bins) / count
    yield (
        f"Scores are {'higher' if excess > 0 else 'lower'} than the share of detections that is "
        "right "
        f"by {number(abs(excess))} on average (calibration error "
        f"{number(analysis['calibration']['error'])})."
    )
