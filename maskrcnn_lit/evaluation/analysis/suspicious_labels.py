"""Ranks the labels that contradict a trained model by the AP that each costs.

Each suspicion is one repair of the ground truth, as the model suggests it:

missing    a confident detection where no label is: add it as a label
class      a confident detection of another class lies on the label: change the label's class
outline    the confident detections on the label have another outline: take the most confident
           one's, unless it covers most of another label, too
several    several confident detections lie inside of one label: replace it by them
unseen     nothing is detected on the label: remove it

Its *gain* is exact: AP (COCO's, mean over classes) of the same detections on the ground truth with
this one repair, minus AP before. AP's own matcher matches the image again; nothing is approximated.
Its *cost* is the gain times a *weight* in 0..1, how far the model is to be believed. The ranking is
by cost. The weight is

missing    the score of the detection
class      its score minus that of the best detection of the label's own class
outline    its score, times 2 - 2 IoU / usual IoU, at most 1: half of the usual IoU is enough
several    the lowest of the scores
unseen     1 - the expected number of unseen labels of the class in this image, divided by their
           number: a model that misses many labels says little about each

The usual IoU is the median of the labels of this class in the same image, or in all images where it
has fewer than USUAL: a model whose outlines are coarse in an image says little there. The expected
number is that of the image's labels of this class times the share that is unseen in all images.

A model that was trained on the labels may have memorized their errors: train on one half and check
the other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.analysis.average_precision import Bools
from maskrcnn_lit.evaluation.analysis.pairs import Floats, Pairs, image_pairs, kind_of
from maskrcnn_lit.evaluation.coco.federated import is_federated
from maskrcnn_lit.evaluation.coco.matching import Matches, match_results
from maskrcnn_lit.evaluation.coco.precision import coco_tables

CONFIDENT = 0.5  # the least score of a detection that suggests a repair

NEAR, ON = 0.1, 0.5  # IoU: less than NEAR is elsewhere, ON or more is in place (TIDE's t_b and t_f)

AGREES = 0.75  # an outline with this IoU or more is not suspicious

USUAL = 5  # labels of a class in an image from which its own IoU counts

INSIDE = 0.7  # share of a detection within a label that covers several objects

MOST = 2000  # repairs whose gain is computed

KINDS = ("missing", "class", "outline", "several", "unseen")

Json = dict[str, Any]


class Repair(NamedTuple):
    """What the model suggests: the label to change, and the detections to take."""

    kind: str
    image_id: int
    label: int | None  # index into the annotations; None: a new one
    detections: tuple[int, ...]  # indices into the results
    iou: float  # of the label and the (nearest) detection, 0 without one
    weight: float


class Usual(NamedTuple):
    """How well labels and detections agree."""

    iou: Floats  # K: the median IoU of a label and the best detection of its class
    unseen: Floats  # K: the share of the labels with no detection nearer than NEAR


class Suspicion(NamedTuple):
    """A repair and the AP that its label costs."""

    repair: Repair
    gain: float
    cost: float


def suspicious_labels(
    ground_truth: Mapping[str, Any],
    results: Sequence[Json],
    *,
    max_detections: int = 100,
    most: int = MOST,
) -> Json:
    """The suspicious labels of `ground_truth` by the detections `results` of a trained model.

    Args:
        ground_truth: a COCO instances json as a dict.
        results: entries of a COCO results json; IoU is that of masks if they have them, else boxes.
        max_detections: per image and class, by score.
        most: the number of repairs whose gain is computed, the likeliest first.

    Returns:
        {"kind": mask or box, "ap", "images", "labels": number, "suggested": {kind: number of
        repairs before `most` and before those without a gain are dropped}, "suspicions": by
        descending cost [{"rank", "kind", "image_id", "file_name", "annotation": id or None,
        "category", "suggested_category", "detections": indices into the results, "iou", "score",
        "gain", "cost", "what"}]}

    Raises:
        UserError: results with unknown images or classes, or with missing fields.
    """
    kind = kind_of(results, ground_truth)
    pairs = list(image_pairs(ground_truth, results, max_detections=max_detections))
    scorer = _Scorer(ground_truth, results, kind, max_detections)
    usual = usual_agreement(pairs, len(ground_truth["categories"]))
    repairs = [repair for image in pairs for repair in suggest(image, usual)]
    repairs.sort(key=lambda repair: -repair.weight * scorer.unit(repair))
    measured = []
    for repair in repairs[:most]:
        gain = scorer.gain(repair)
        if gain > 0:
            measured.append(Suspicion(repair, gain, gain * repair.weight))
    measured.sort(key=lambda one: (-one.cost, one.repair.image_id, one.repair.label or -1))
    return {
        "kind": kind,
        "ap": scorer.ap,
        "images": len(ground_truth["images"]),
        "labels": len(ground_truth["annotations"]),
        "suggested": {name: sum(r.kind == name for r in repairs) for name in KINDS},
        "suspicions": [
            {"rank": rank, **_described(one, ground_truth, results)}
            for rank, one in enumerate(measured, 1)
        ],
    }


def suggest(image: Pairs, usual: Usual) -> Iterator[Repair]:
    """The repairs that an image's detections suggest, at most one for each label.

    usual: of all images; those of this image count where it has USUAL labels of a class.
    """
    own = image.labels[:, None] == image.crowd_labels
    confident = (image.scores >= CONFIDENT) & ~(own & (image.crowd_iou >= ON)).any(1)
    elsewhere = confident & (image.iou.max(1, initial=0.0) < NEAR)
    for d in np.flatnonzero(elsewhere).tolist():
        score = float(image.scores[d])
        yield Repair("missing", image.image_id, None, (int(image.detections[d]),), 0.0, score)
    here = _of_image(image, usual)
    unseen = image.iou.max(0, initial=0.0) < NEAR
    classes = len(usual.iou)
    together = np.bincount(image.object_labels[unseen], minlength=classes)
    expected = usual.unseen * np.bincount(image.object_labels, minlength=classes)
    for g, label in enumerate(image.object_labels.tolist()):
        found = _of_label(image, confident, g, float(here.iou[label]))
        if unseen[g]:
            found = "unseen", [], float((1 - expected[label]) / together[label])
        if found is None or found[2] <= 0:
            continue
        name, chosen, weight = found
        places = tuple(image.detections[chosen].tolist()) if chosen else ()
        iou = float(image.iou[chosen, g].max()) if chosen else 0.0
        yield Repair(name, image.image_id, int(image.objects[g]), places, iou, weight)


def usual_agreement(pairs: Sequence[Pairs], classes: int) -> Usual:
    """How well labels and detections agree, for each class; 0 without labels."""
    labels = np.concatenate([np.zeros(0, np.int64), *(image.object_labels for image in pairs)])
    best = np.concatenate([np.zeros(0), *map(_best_iou, pairs)])
    anything = np.concatenate([np.zeros(0), *(image.iou.max(0, initial=0.0) for image in pairs)])
    iou, unseen = np.zeros(classes), np.zeros(classes)
    for k in np.unique(labels).tolist():
        own = best[labels == k]
        unseen[k] = (anything[labels == k] < NEAR).mean()
        iou[k] = np.median(own[own >= NEAR]) if (own >= NEAR).any() else 0.0
    return Usual(iou, unseen)


def _of_image(image: Pairs, usual: Usual) -> Usual:
    here = usual_agreement([image], len(usual.iou))
    several = np.bincount(image.object_labels, minlength=len(usual.iou)) >= USUAL
    return Usual(*(np.where(several, own, all_) for own, all_ in zip(here, usual, strict=True)))


def _best_iou(image: Pairs) -> Floats:
    """G: the highest IoU of each label with a detection of its class."""
    same = image.labels[:, None] == image.object_labels
    return np.where(same, image.iou, 0.0).max(0, initial=0.0)


def _of_label(
    image: Pairs, confident: Bools, g: int, usual_iou: float
) -> tuple[str, list[int], float] | None:
    """Kind, detections and weight of the repair of label g; None: nothing contradicts it."""
    iou, same = image.iou[:, g], image.labels == image.object_labels[g]
    believed = float(image.scores[same & (iou >= ON)].max(initial=0.0))
    others = np.flatnonzero(confident & ~same & (iou >= ON)).tolist()
    if others:
        best = max(others, key=lambda d: image.scores[d])
        if image.scores[best] > believed:
            return "class", [best], float(image.scores[best]) - believed
    nearest = iou == image.iou.max(1)  # to this label and not to another
    near = np.flatnonzero(confident & same & (iou >= NEAR) & nearest).tolist()
    if not near or iou[near].max() >= AGREES:
        return None
    shared = iou * (image.areas + image.object_pixels[g]) / (1 + iou)  # pixels
    inside = [d for d in near if shared[d] >= INSIDE * image.areas[d]]
    covered = shared[inside].sum()
    if len(inside) > 1 and ON * image.object_pixels[g] <= covered <= image.object_pixels[g]:
        return "several", inside, float(image.scores[inside].min())
    best = max(near, key=lambda d: image.scores[d])
    if _merges(image, best, g):
        return None
    lacking = 2 - 2 * iou[best] / usual_iou if usual_iou > 0 else 0.0
    return "outline", [best], float(image.scores[best] * np.clip(lacking, 0, 1))


def _merges(image: Pairs, d: int, g: int) -> bool:
    """Whether detection d covers more than half of another label of its class than g, too: then the
    model is wrong and not the outline.
    """
    shared = image.iou[d] * (image.areas[d] + image.object_pixels) / (1 + image.iou[d])
    others = (image.object_labels == image.labels[d]) & (shared > image.object_pixels / 2)
    return bool(np.delete(others, g).any())


class _Scorer:
    """AP of the results, and of a ground truth with one repair."""

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        results: Sequence[Json],
        kind: str,
        limit: int,
    ) -> None:
        self.truth, self.results, self.limit = ground_truth, results, limit
        self.federated = is_federated(ground_truth)
        self.iou_type = "segm" if kind == "mask" else "bbox"
        self.matches = match_results(ground_truth, results, iou_type=self.iou_type, limit=limit)
        order = sorted(category["id"] for category in ground_truth["categories"])
        self.number = {category: k for k, category in enumerate(order)}
        ids = sorted(image["id"] for image in ground_truth["images"])
        self.position = {image_id: i for i, image_id in enumerate(ids)}
        self.images = {image["id"]: image for image in ground_truth["images"]}
        self.annotations = _by_image(ground_truth["annotations"])
        self.detections = _by_image(results)
        every = range(self.matches.classes)
        self.objects = self._counts(self.matches)
        self._before: dict[Any, Matches] = {}  # image id -> its matches alone
        self.rows = [np.flatnonzero(self.matches.labels == k) for k in every]
        self.aps = [
            _class_ap(self.matches, self.rows[k], self.matches.outcome, int(self.objects[k]))
            for k in every
        ]
        self.ap = _mean(self.aps)

    def _counts(self, matches: Matches) -> np.ndarray:
        counted = matches.truth_labels[matches.truth_counted[:, 0]]
        return np.bincount(counted, minlength=self.matches.classes)

    def unit(self, repair: Repair) -> float:
        """About what one object of the class is worth in AP: the order before gains are known."""
        number = self.number[suggested_category(repair, self.truth, self.results)]
        return 1 / max(int(self.objects[number]), 1)

    def gain(self, repair: Repair) -> float:
        """AP with this repair minus AP without."""
        image_id = repair.image_id
        own = [self.truth["annotations"][n] for n in self.annotations.get(image_id, ())]
        image = self.images[image_id]
        if self.federated:  # the repair does not change which classes count in the image
            verified = {entry["category_id"] for entry in own} | {*image["neg_category_ids"]}
            image = image | {"neg_category_ids": sorted(verified)}
        one = {"images": [image], "categories": self.truth["categories"]}
        if image_id not in self._before:
            self._before[image_id] = self._match(one | {"annotations": own})
        before = self._before[image_id]
        after = self._match(one | {"annotations": repaired(self.truth, self.results, repair, own)})
        outcome = self.matches.outcome.copy()
        outcome[self.matches.image == self.position[image_id]] = after.outcome
        changed = self._counts(after) - self._counts(before)
        differs = (before.outcome != after.outcome).any((1, 2))
        touched = {*before.labels[differs].tolist(), *np.flatnonzero(changed).tolist()}
        aps = list(self.aps)
        for k in touched:
            objects = int(self.objects[k] + changed[k])
            aps[k] = _class_ap(self.matches, self.rows[k], outcome, objects)
        return _mean(aps) - self.ap

    def _match(self, truth: Json) -> Matches:
        results = [self.results[n] for n in self.detections.get(truth["images"][0]["id"], ())]
        return match_results(truth, results, iou_type=self.iou_type, limit=self.limit)


def repaired(
    ground_truth: Mapping[str, Any], results: Sequence[Json], repair: Repair, own: Sequence[Json]
) -> list[Json]:
    """The annotations `own` of the repair's image, with the repair."""
    old = None if repair.label is None else ground_truth["annotations"][repair.label]
    if repair.kind == "class" and old is not None:
        change = {"category_id": results[repair.detections[0]]["category_id"]}
        return [entry | change if entry is old else entry for entry in own]
    new = [
        {key: results[n][key] for key in ("bbox", "segmentation") if key in results[n]}
        | {
            "id": -1,
            "image_id": repair.image_id,
            "category_id": results[n]["category_id"],
            "area": float(old["area"]) if old else 0.0,  # the size range "all" does not use it
            "iscrowd": 0,
        }
        for n in repair.detections
    ]
    return [entry for entry in own if entry is not old] + new


def suggested_category(
    repair: Repair, ground_truth: Mapping[str, Any], results: Sequence[Json]
) -> Any:
    """The category id after the repair; of a label to remove, its own."""
    if repair.detections:
        return results[repair.detections[0]]["category_id"]
    return ground_truth["annotations"][repair.label]["category_id"]


def _by_image(entries: Sequence[Mapping[str, Any]]) -> dict[Any, list[int]]:
    places: dict[Any, list[int]] = {}
    for n, entry in enumerate(entries):
        places.setdefault(entry["image_id"], []).append(n)
    return places


def _class_ap(matches: Matches, rows: np.ndarray, outcome: np.ndarray, objects: int) -> float:
    """AP of one class, from its rows of the detections; NaN without objects."""
    alone = Matches(
        images=matches.images,
        classes=1,
        labels=np.zeros(len(rows), np.int64),
        image=matches.image[rows],
        scores=matches.scores[rows],
        rank=matches.rank[rows],
        outcome=outcome[rows][:, :, :1],
        truth_labels=np.zeros(objects, np.int64),
        truth_image=np.zeros(objects, np.int64),
        truth_counted=np.ones((objects, 1), dtype=bool),
    )
    return float(coco_tables(alone, [1]).precision.mean()) if objects else np.nan


def _mean(aps: Sequence[float]) -> float:
    known = [ap for ap in aps if not np.isnan(ap)]
    return float(np.mean(known)) if known else 0.0


def _described(one: Suspicion, ground_truth: Mapping[str, Any], results: Sequence[Json]) -> Json:
    repair = one.repair
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    files = {image["id"]: image.get("file_name", "") for image in ground_truth["images"]}
    label = None if repair.label is None else ground_truth["annotations"][repair.label]
    suggested = suggested_category(repair, ground_truth, results)
    scores = [float(results[n]["score"]) for n in repair.detections]
    category = names[suggested if label is None else label["category_id"]]
    values = {
        "name": category,
        "other": names[suggested],
        "score": f"{min(scores, default=0):.2f}",
        "iou": f"{repair.iou:.2f}",
        "count": plural(len(scores), "object"),
    }
    return {
        "kind": repair.kind,
        "image_id": repair.image_id,
        "file_name": files[repair.image_id],
        "annotation": None if label is None else label["id"],
        "category": None if label is None else category,
        "suggested_category": names[suggested] if repair.detections else None,
        "detections": list(repair.detections),
        "iou": repair.iou,
        "score": min(scores, default=None),
        "gain": one.gain,
        "cost": one.cost,
        "what": _WORDS[repair.kind].format(**values),
    }


_WORDS = {
    "missing": "no label here, but the model detects {name} (score {score})",
    "class": "labeled {name}, but the model detects {other} (score {score}, IoU {iou})",
    "outline": "the outline of {name} and the model's differ: IoU {iou} (score {score})",
    "several": "one label of {name}, but the model detects {count} inside (score {score} or more)",
    "unseen": "labeled {name}, but the model detects nothing there",
}
