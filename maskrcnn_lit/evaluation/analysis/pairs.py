"""The detections and objects of an image, and the IoU of each pair: the input of the error
analysis.

Letters: D detections, G objects, C crowd regions of an image; K classes, with labels 0..K-1 in the
order of the ground truth's categories.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from maskrcnn_lit.evaluation.analysis.boundary import with_boundaries
from maskrcnn_lit.evaluation.coco.federated import (
    counted_results,
    incomplete_classes,
    is_federated,
)
from maskrcnn_lit.evaluation.coco.matching import mask_areas
from maskrcnn_lit.evaluation.coco.results import check_results
from maskrcnn_lit.evaluation.coco.void import VoidRegion, has_mask, truth_mask, void_of

Ints = NDArray[np.int64]

Floats = NDArray[np.float64]

Kind = Literal["mask", "box"]

LEAST_IOU = 0.5  # the lowest of COCO's thresholds


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One image: detections by descending score, objects in the order of the annotations."""

    image_id: int
    detections: Ints  # D: index into the results
    labels: Ints  # D
    scores: Floats  # D
    areas: Floats  # D, in pixels: area of the mask, or of the box
    objects: Ints  # G: index into the annotations
    object_labels: Ints  # G
    object_areas: Floats  # G, as annotated; it decides COCO's size small, medium or large
    object_pixels: (
        Floats  # G: area of the mask or the box, like `areas`; NaN in an image without detections
    )
    boxes: Floats  # G 4, x y w h
    crowd_labels: Ints  # C; a void region is one of each detected class, see coco/void.py
    iou: Floats  # D G, across classes
    crowd_iou: Floats  # D C: share of the detection inside the region, COCO's crowd IoU
    boundary_iou: (
        Floats | None
    )  # D G: see `boundary.with_boundaries`; only pairs of one class with a mask IoU of 0.5 or more

    def of_one_class(self, iou: Floats | None = None) -> Floats:
        """D G+C: IoU with the objects (or `iou`, D G, instead), then with the crowd regions; 0
        across classes.
        """
        both = np.hstack([self.iou if iou is None else iou, self.crowd_iou])
        theirs = np.concatenate([self.object_labels, self.crowd_labels])
        return both * (self.labels[:, None] == theirs)


def kind_of(results: Sequence[Mapping[str, Any]], ground_truth: Mapping[str, Any]) -> Kind:
    """ "mask" if the results have masks, else "box". Without results: whether the objects have."""
    entries = results or ground_truth["annotations"]
    masks = any(entry.get("segmentation") for entry in entries)
    return "mask" if masks or not entries else "box"


def image_pairs(
    ground_truth: Mapping[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    max_detections: int = 100,
    boundary: bool = False,
    empty: Kind | None = None,
) -> Iterator[Pairs]:
    """Yield the Pairs of each image of `ground_truth`, ordered by id. Only one image's masks are in
    memory.

    Args: ground_truth: a COCO instances json as a dict. results: entries of a COCO results json.
        IoU is that of masks if they have them, else of boxes. max_detections: COCO's limit per
        image and class, by score; of a federated ground truth (federated.py) per image. There the
        detections of unverified classes are left out, and a class of which not all objects are
        labeled has a crowd region over the whole image. boundary: compute `Pairs.boundary_iou`,
        which needs masks. empty: what is compared without results; None: masks if the objects have
        them, else boxes.

    Raises: UserError: results with unknown images or classes, or with missing fields.
    """
    kind = empty if empty is not None and not results else kind_of(results, ground_truth)
    labels = {category["id"]: label for label, category in enumerate(ground_truth["categories"])}
    images = sorted(ground_truth["images"], key=lambda image: image["id"])
    ids = {image["id"] for image in images}
    check_results(results, ids, labels, "segmentation" if kind == "mask" else "bbox")
    detected, annotated = (_by_image(entries) for entries in (results, ground_truth["annotations"]))
    incomplete: Mapping[Any, Collection[Any]] = {}
    if is_federated(ground_truth):
        counted = set(counted_results(ground_truth, results, max_detections).tolist())
        detected = defaultdict(
            list, {i: [n for n in ns if n in counted] for i, ns in detected.items()}
        )
        incomplete = incomplete_classes(ground_truth)
    for image in images:
        detections = _best(results, detected[image["id"]], max_detections)
        sources = (ground_truth["annotations"], annotated[image["id"]], results, detections)
        pairs = _pairs(image, kind, labels, *sources, boundary)
        unsure = [labels[k] for k in incomplete.get(image["id"], ()) if k in labels]
        yield _with_unsure(pairs, unsure) if unsure else pairs


def _with_unsure(pairs: Pairs, labels: list[int]) -> Pairs:
    """With a crowd region of each of these classes over the whole image."""
    region = np.ones((len(pairs.labels), len(labels)))
    return replace(
        pairs,
        crowd_labels=np.concatenate([pairs.crowd_labels, np.array(labels, np.int64)]),
        crowd_iou=np.hstack([pairs.crowd_iou, region]),
    )


def _by_image(entries: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = defaultdict(list)
    for n, entry in enumerate(entries):
        places[entry["image_id"]].append(n)
    return places


def _best(results: Sequence[dict[str, Any]], places: list[int], limit: int) -> Ints:
    """The results at `places` that are among the `limit` best of their class, by descending score,
    ties in order.
    """
    of_class: dict[Any, int] = defaultdict(int)
    best = []
    for n in sorted(places, key=lambda n: -results[n]["score"]):
        of_class[results[n]["category_id"]] += 1
        if of_class[results[n]["category_id"]] <= limit:
            best.append(n)
    return np.array(best, dtype=np.int64)


def _pairs(
    image: dict[str, Any],
    kind: Kind,
    labels: dict[int, int],
    annotations: Sequence[dict[str, Any]],
    annotated: list[int],
    results: Sequence[dict[str, Any]],
    detections: Ints,
    boundary: bool,
) -> Pairs:
    region = void_of(image)
    ignored = {n for n in annotated if _is_ignored(annotations[n], kind, image, region)}
    objects = [n for n in annotated if n not in ignored]
    crowds = [n for n in annotated if n in ignored]
    sources = ((results, detections.tolist()), (annotations, objects), (annotations, crowds))
    wanted = [[source[n] for n in places] if len(detections) else [] for source, places in sources]
    shapes = [_shapes(entries, kind, image) for entries in wanted]
    void = np.zeros(len(detections))
    if region is not None:
        shapes, void = _without_void(shapes, kind, region)
    found_labels = _of(results, detections, lambda entry: labels[entry["category_id"]], np.int64)
    object_labels = _of(annotations, objects, lambda entry: labels[entry["category_id"]], np.int64)
    iou = _iou(shapes[0], shapes[1], len(objects), crowd=False)
    crowd_labels = _of(annotations, crowds, lambda entry: labels[entry["category_id"]], np.int64)
    crowd_iou = _iou(shapes[0], shapes[2], len(crowds), crowd=True)
    if region is not None:  # a crowd region of every class that is detected
        classes = np.unique(found_labels)
        crowd_labels = np.concatenate([crowd_labels, classes])
        crowd_iou = np.hstack([crowd_iou, np.tile(void[:, None], len(classes))])
    boundary_iou = None
    if boundary:
        may_match = (found_labels[:, None] == object_labels) & (iou >= LEAST_IOU)
        boundary_iou = with_boundaries(iou, may_match, shapes[0], shapes[1])
    return Pairs(
        image_id=image["id"],
        detections=detections,
        labels=found_labels,
        scores=_of(results, detections, lambda entry: entry["score"], np.float64),
        areas=_areas(shapes[0], kind),
        objects=np.array(objects, dtype=np.int64),
        object_labels=object_labels,
        object_areas=_of(annotations, objects, lambda entry: entry["area"], np.float64),
        object_pixels=_areas(shapes[1], kind) if len(detections) else np.full(len(objects), np.nan),
        boxes=_of(annotations, objects, lambda entry: entry["bbox"], np.float64).reshape(-1, 4),
        crowd_labels=crowd_labels,
        iou=iou,
        crowd_iou=crowd_iou,
        boundary_iou=boundary_iou,
    )


def _of(entries: Sequence[dict[str, Any]], places: Any, read: Any, dtype: Any) -> NDArray[Any]:
    return np.array([read(entries[n]) for n in places], dtype=dtype)


def _is_ignored(
    annotation: Mapping[str, Any], kind: Kind, image: Mapping[str, Any], region: VoidRegion | None
) -> bool:
    """Whether an annotation does not count: a crowd region and, for masks, a box alone or an object
    that is void as a whole.
    """
    if annotation.get("iscrowd", 0):
        return True
    if kind == "box":
        return False
    if not has_mask(annotation):
        return True
    if region is None:
        return False
    return not mask_areas(region.visible([truth_mask(annotation, image)]).masks)[0]


def _without_void(shapes: list[Any], kind: Kind, region: VoidRegion) -> tuple[list[Any], Floats]:
    """The shapes of detections, objects and crowd regions without their void pixels, and D: the
    share of each detection that is void.
    """
    if kind == "box":
        return shapes, region.share_of_boxes(shapes[0])
    visible = [region.visible(several) for several in shapes]
    return [several.masks for several in visible], visible[0].void


def _shapes(entries: list[dict[str, Any]], kind: Kind, image: dict[str, Any]) -> Any:
    """Compressed RLEs, or boxes N 4, x y w h."""
    if kind == "mask":
        return [truth_mask(entry, image) for entry in entries]
    return np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)


def _areas(shapes: Any, kind: Kind) -> Floats:
    if not len(shapes):
        return np.zeros(0)
    if kind == "box":
        return shapes[:, 2] * shapes[:, 3]
    return mask_areas(shapes)


def _iou(detections: Any, others: Any, count: int, crowd: bool) -> Floats:
    if not len(detections) or not len(others):
        return np.zeros((len(detections), count))
    return np.asarray(rle_tools.iou(detections, others, [int(crowd)] * count), dtype=np.float64)
