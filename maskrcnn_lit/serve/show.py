"""The addresses by which the page looks into a run: its validation images, their errors, and what
the model computed for them.
"""

import io
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maskrcnn_lit.evaluation.analysis.image_errors import ImageErrors
from maskrcnn_lit.evaluation.analysis.pairs import Pairs
from maskrcnn_lit.serve.pictures import Refused
from maskrcnn_lit.serve.validation import Validation
from maskrcnn_lit.storage.images import UnreadableImageError

SIZES = (32**2, 96**2)  # COCO's limits of small and medium objects, in pixels

KINDS = ("missed", "false", "merged", "wrong class")

PROPOSALS = 100  # shown of an image, the best

DIGITS = 3  # of probabilities


def show_routes(validation: Validation) -> list[Route]:
    """The routes for `build_app`. An image has its position in the validation json."""
    return [
        Route("/run/images", partial(_images, validation)),
        Route("/run/images/{i:int}", partial(_image, validation)),
        Route("/run/images/{i:int}/picture", partial(_picture, validation)),
        Route("/run/images/{i:int}/inside", partial(_inside, validation)),
        Route("/run/images/{i:int}/masks/{slot:int}", partial(_mask, validation)),
    ]


def run_facts(validation: Validation) -> dict[str, Any]:
    """What the page knows of the run before it asks."""
    return {
        "images": len(validation),
        "classes": [category["name"] for category in validation.truth["categories"]],
        "sizes": ["small", "medium", "large"],
        "kinds": list(KINDS),
        "masks": validation.model.mask_head is not None,
    }


def kinds_of(pairs: Pairs, errors: ImageErrors) -> tuple[list[list[str]], list[list[str]]]:
    """The kinds of errors of each object and of each detection of an image. They exclude each
    other, but a merged detection can be false as well: an object under a detection of a wrong class
    is not missed, and that detection is not false.
    """
    objects: list[list[str]] = [[] for _ in pairs.objects]
    detections: list[list[str]] = [[] for _ in pairs.detections]
    for n in np.setdiff1d(errors.missed, errors.confused).tolist():
        objects[n].append("missed")
    for n in np.setdiff1d(errors.false, errors.wrong_class).tolist():
        detections[n].append("false")
    for n in errors.merged.tolist():
        detections[n].append("merged")
    for n in errors.wrong_class.tolist():
        detections[n].append("wrong class")
    return objects, detections


def image_rows(pairs: Pairs, errors: ImageErrors, threshold: float) -> list[dict[str, Any]]:
    """The objects of an image, and its detections from `threshold` on, by which it is filtered:
    class (position), size (position in small, medium, large), kinds, and the score of a detection.
    """
    objects, detections = kinds_of(pairs, errors)
    rows: list[dict[str, Any]] = [
        {"class": int(label), "size": _size(area), "kinds": kinds, "score": None}
        for label, area, kinds in zip(pairs.object_labels, pairs.object_areas, objects, strict=True)
    ]
    rows += [
        {"class": int(label), "size": _size(area), "kinds": kinds, "score": float(score)}
        for label, area, kinds, score in zip(
            pairs.labels, pairs.areas, detections, pairs.scores, strict=True
        )
        if score >= threshold
    ]
    return rows


def _size(area: float) -> int:
    return int(np.searchsorted(SIZES, area, side="right"))


def _images(validation: Validation, request: Request) -> Response:
    threshold = _threshold(request)
    names, errors = validation.index.file_names, validation.errors(threshold)
    return JSONResponse(
        {
            "threshold": threshold,
            "images": [
                {
                    "name": str(names[i]),
                    "loss": None if losses is None else sum(losses.values()),
                    "rows": image_rows(validation.pairs[i], errors[i], threshold),
                }
                for i, losses in enumerate(validation.losses)
            ],
        }
    )


def _image(validation: Validation, request: Request) -> Response:
    """Two COCO jsons, `truth` and `prediction`, whose annotations have `kinds`; and the losses."""
    i, threshold = _position(validation, request), _threshold(request)
    pairs, errors = validation.pairs[i], validation.errors(threshold)[i]
    objects, detections = kinds_of(pairs, errors)
    height, width = validation.index.size(i)
    number = int(validation.index.image_ids[i])
    head = {
        "images": [
            {
                "id": number,
                "file_name": str(validation.index.file_names[i]),
                "height": height,
                "width": width,
            }
        ],
        "categories": [
            {"id": category["id"], "name": category["name"]}
            for category in validation.truth["categories"]
        ],
    }
    of_object = dict(zip(pairs.objects.tolist(), objects, strict=True))
    truth = [
        annotation | {"kinds": of_object.get(n, [])}
        for n, annotation in validation.annotations_of(i).items()
    ]
    results = [validation.results[n] for n in pairs.detections.tolist()]
    found = [
        entry | {"id": n, "iscrowd": 0, "area": float(area), "kinds": kinds, "iou": _best(iou)}
        for n, (entry, area, kinds, iou) in enumerate(
            zip(results, pairs.areas, detections, pairs.iou, strict=True), start=1
        )
    ]
    return JSONResponse(
        {
            "losses": validation.losses[i],
            "truth": {"info": {"model": "ground truth"}, **head, "annotations": truth},
            "prediction": {"info": {"model": "prediction"}, **head, "annotations": found},
        }
    )


def _best(iou: np.ndarray) -> float:
    return round(float(iou.max(initial=0)), DIGITS)


def _picture(validation: Validation, request: Request) -> Response:
    try:
        pixels = validation.index.decode(_position(validation, request))[0]
    except (OSError, UnreadableImageError) as error:
        raise Refused(404, f"the image cannot be read: {error}") from error
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return Response(buffer.getvalue(), media_type="image/png")


def _inside(validation: Validation, request: Request) -> Response:
    """Proposals, matched anchors and levels, with boxes in pixels of the image."""
    i = _position(validation, request)
    inside, batch = validation.inside(i)
    back = batch["scales"][0].flip(0).repeat(2)
    slots = validation.slots(i, batch)
    proposals = zip(
        (inside.proposals / back).tolist(),
        inside.objectness.tolist(),
        inside.proposal_levels.tolist(),
        strict=True,
    )
    anchors = zip(
        (inside.anchors / back).tolist(),
        inside.anchor_slots.tolist(),
        inside.anchor_ious.tolist(),
        inside.anchor_levels.tolist(),
        strict=True,
    )
    return JSONResponse(
        {
            "count": len(inside.proposals),
            "proposals": [
                {"box": box, "score": score, "level": level}
                for box, score, level in list(proposals)[:PROPOSALS]
            ],
            "anchors": [
                {"box": box, "annotation": slots.get(slot), "iou": iou, "level": level}
                for box, slot, iou, level in anchors
            ],
            "levels": inside.detection_levels.tolist(),  # of each slot of the detections
        }
    )


def _mask(validation: Validation, request: Request) -> Response:
    """The mask head's own probabilities for one detection, m x m."""
    i, slot = _position(validation, request), request.path_params["slot"]
    masks = validation.inside(i)[0].masks
    if masks is None or slot >= len(masks):
        raise Refused(404, f"image {i} has no detection {slot} with a mask")
    return JSONResponse(
        {"mask": [[round(value, DIGITS) for value in row] for row in masks[slot].tolist()]}
    )


def _position(validation: Validation, request: Request) -> int:
    i: int = request.path_params["i"]
    if i >= len(validation):
        raise Refused(404, f"there is no image {i}: the run has {len(validation)}, from 0")
    return i


def _threshold(request: Request) -> float:
    text = request.query_params.get("threshold", "0.5")
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise Refused(400, f"threshold={text[:100]} must be a number from 0 to 1")
    return round(threshold, 2)
