"""LVIS's rules: each class is labeled in some of the images only (Gupta et al. 2019, "LVIS: A
Dataset for Large Vocabulary Instance Segmentation", arXiv:1908.03195, section 3.3).

A ground truth is federated if an image has "neg_category_ids". A class is *verified* in an image if
the image has an object of it, or lists it there: detections of other classes do not count at all.
If "not_exhaustive_category_ids" lists a class, not all of its objects are labeled: detections of it
that match no object are ignored. The limit on detections is for an image, over all classes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEDERATED_LIMITS = (1, 10, 300)  # LVIS's limits on detections; the last one is for an image

FREQUENCIES = {"rare": "r", "common": "c", "frequent": "f"}  # name in metrics -> in LVIS's json


def is_federated(ground_truth: Mapping[str, Any]) -> bool:
    return any("neg_category_ids" in image for image in ground_truth["images"])


def counted_results(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], limit: int
) -> NDArray[np.int64]:
    """The indices, in order, of the results among the `limit` best of their image (ties in order)
    whose class is verified there.
    """
    verified: dict[Any, set[Any]] = defaultdict(set)
    for image in ground_truth["images"]:
        verified[image["id"]].update(image.get("neg_category_ids", ()))
    for annotation in ground_truth["annotations"]:
        verified[annotation["image_id"]].add(annotation["category_id"])
    of_image: dict[Any, int] = defaultdict(int)
    counted = []
    for n in sorted(range(len(results)), key=lambda n: -results[n]["score"]):
        image_id = results[n]["image_id"]
        of_image[image_id] += 1
        if of_image[image_id] <= limit and results[n]["category_id"] in verified[image_id]:
            counted.append(n)
    return np.sort(np.array(counted, dtype=np.int64))


def incomplete_classes(ground_truth: Mapping[str, Any]) -> dict[Any, set[Any]]:
    """Image id -> the ids of the classes of which not all objects are labeled."""
    return {
        image["id"]: set(image.get("not_exhaustive_category_ids", ()))
        for image in ground_truth["images"]
    }
