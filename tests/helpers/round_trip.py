"""Compares the objects of two readings of the same images."""

import os
from collections import Counter

from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.index import AnnotationIndex

Object = tuple[str, str, bytes]  # image without folder and suffix, class, RLE


def objects(index: AnnotationIndex, crowd: bool = False) -> Counter[Object]:
    """Every object by image, class and mask; crowd regions only with `crowd`."""
    counted = Counter[Object]()
    for i in range(len(index)):
        stem = os.path.splitext(os.path.basename(index.file_name(i)))[0]
        annotations = index.annotations(i)
        for j, (label, is_crowd) in enumerate(
            zip(annotations["labels"].tolist(), annotations["crowd"].tolist(), strict=True)
        ):
            if crowd or not is_crowd:
                name = index.categories[label - 1].name
                counted[stem, name, index.rle(i, j)["counts"]] += 1
    return counted


def best_ious(before: AnnotationIndex, after: AnnotationIndex) -> list[float]:
    """For each object of `before` that is no crowd region, the IoU of the most alike object of
    the same image and class in `after`.
    """
    own: dict[tuple[str, str], list[bytes]] = {}
    for stem, name, counts in objects(after).elements():
        own.setdefault((stem, name), []).append(counts)
    sizes = {
        os.path.splitext(os.path.basename(before.file_name(i)))[0]: list(before.size(i))
        for i in range(len(before))
    }
    ious = []
    for stem, name, counts in objects(before).elements():
        others = [{"size": sizes[stem], "counts": one} for one in own.get((stem, name), [])]
        one = {"size": sizes[stem], "counts": counts}
        ious.append(float(coco_mask.iou(others, [one], [0]).max()) if others else 0.0)
    return ious
