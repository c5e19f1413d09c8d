"""A cheap fingerprint of the data of a run."""

import hashlib
import json

import numpy as np

from maskrcnn_lit.data.coco.index import AnnotationIndex

CONTENTS = 100  # number of image files whose full content is hashed


def fingerprint(index: AnnotationIndex) -> dict[str, str]:
    """Digests of the annotation file (the first half of its SHA-256, from the cache) and of the
    images in use (SHA-256): of their file names and, for local files, the size of each and the
    contents of CONTENTS evenly spaced ones. An unreadable file counts as missing.
    """
    return {
        "annotations_sha256": index.packed.key.partition("-")[0],
        "images_sha256": _images(index),
    }


def _images(index: AnnotationIndex) -> str:
    source, names = index.source, list(index.file_names)
    sizes = [(source.stamp(name) or (None,))[0] for name in names] if source.local else []
    digest = hashlib.sha256(json.dumps([names, sizes]).encode())
    if source.local:
        for i in np.unique(np.linspace(0, len(index) - 1, CONTENTS).round().astype(int)).tolist():
            digest.update(_content(index, i))
    return digest.hexdigest()


def _content(index: AnnotationIndex, i: int) -> bytes:
    try:
        return hashlib.sha256(index.read(i)).digest()
    except OSError:
        return b"missing"
