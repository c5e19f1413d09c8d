"""The images with most errors, by the number of missed objects, false and merged detections
(image_errors.py).
"""

from collections.abc import Sequence
from typing import Any

from maskrcnn_lit.evaluation.analysis.image_errors import image_errors
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Pairs


def worst_images(
    pairs: Sequence[Pairs],
    annotations: Sequence[dict[str, Any]],
    thresholds: Floats,
    count: int = 20,
) -> list[dict[str, Any]]:
    """At most `count` images with errors, worst first, ties by id: {"image_id", "missed":
    [annotation ids], "false": [indices into the results], "merged": [indices into the results]}.

    annotations: those of the ground truth of `pairs`; thresholds: K.
    """
    ranked = []
    for image in pairs:
        errors = image_errors(image, thresholds)
        entry = {
            "image_id": image.image_id,
            "missed": [annotations[n]["id"] for n in image.objects[errors.missed].tolist()],
            "false": image.detections[errors.false].tolist(),
            "merged": image.detections[errors.merged].tolist(),
        }
        bad = len(entry["missed"]) + len(entry["false"]) + len(entry["merged"])
        if bad:
            ranked.append((-bad, image.image_id, entry))
    return [entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])[:count]]
