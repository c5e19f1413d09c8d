"""What tells the data of one run from that of another, as far as it can be told at little cost."""

import hashlib
import json

import numpy as np

from maskrcnn_lit.data.index import AnnotationIndex

CONTENTS = 100  # image files of which every byte counts


def fingerprint(index: AnnotationIndex) -> dict[str, str]:
    """Digests of the annotation file (the first half of its SHA-256, which the cache has computed) and of the images in
    use (SHA-256): of their file names and, unless they are far away, of the size of each file and of the contents of
    CONTENTS of them, evenly spaced. A file that cannot be read counts as missing."""
    return {"annotations_sha256": index.packed.key.partition("-")[0], "images_sha256": _images(index)}


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
