"""The index of images and annotations that loader processes share and evaluation scores against.

The entry point is `read_index`. Images are sorted by file name, categories by name, the annotations
of an image by box. Ids do not affect the order, so renumbering a json does not change training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.annotations import AMODAL_AREA
from maskrcnn_lit.data.coco.arrays import Floats, Ints, Names, Packed, has_mask, open_json
from maskrcnn_lit.data.coco.categories import Category, match_categories
from maskrcnn_lit.data.coco.classes import ClassChoice, choose_classes
from maskrcnn_lit.data.coco.faults import Fault, describe
from maskrcnn_lit.data.coco.image_files import (
    RenamedFiles,
    image_size,
    readable_files,
    renamed,
    with_renamed_files,
)
from maskrcnn_lit.data.coco.parse import Measure
from maskrcnn_lit.data.coco.rasterize import Outline, compress_runs, polygons_rle
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import default_cache
from maskrcnn_lit.storage.images import MAX_PIXELS, read_pixels
from maskrcnn_lit.storage.sources import Folder, Source, open_annotations, open_images

OnInvalid = Literal["error", "skip"]

SubsetOrder = Literal["first", "random"]


@dataclass(frozen=True, kw_only=True)
class AnnotationIndex:
    """I images and their annotations. Label l (1..K) is `categories[l - 1]`, which has the json's
    id.
    """

    source: Source  # reads the image files
    packed: Packed  # the full json
    rows: Ints  # I: rows of the images in `packed`
    categories: tuple[Category, ...]
    labels: Ints  # 1 + K of the json: its label -> label here
    faults: tuple[Fault, ...] = ()  # entries that are left out
    changes: tuple[Fault, ...] = ()  # corrected entries
    max_pixels: int = MAX_PIXELS  # limit for an image file
    bits: int = 0  # depth of samples of more than 8 bits; 0: by each file
    ignore_void: bool = True  # whether void regions have no mask loss and no metric

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def image_ids(self) -> Ints:
        """I, as in the json."""
        return self.packed.arrays.image_ids[self.rows]

    @cached_property
    def sizes(self) -> Ints:
        """I 2: height, width from the json."""
        return np.stack(
            [self.packed.arrays.heights[self.rows], self.packed.arrays.widths[self.rows]], 1
        )

    @cached_property
    def spans(self) -> Ints:
        """I 2: begin, end of each image's annotations in the json's list."""
        return self.packed.arrays.spans[self.rows]

    @property
    def file_names(self) -> Names:
        return Names(self.packed.arrays.name_text, self.packed.arrays.name_spans[self.rows])

    @property
    def urls(self) -> Names:
        """The URL of each image in the json (its coco_url), or ""."""
        return Names(self.packed.arrays.url_text, self.packed.arrays.url_spans[self.rows])

    def size(self, i: int) -> tuple[int, int]:
        """Height, width of image i from the json."""
        row, arrays = self.rows[i], self.packed.arrays
        return int(arrays.heights[row]), int(arrays.widths[row])

    def span(self, i: int) -> tuple[int, int]:
        """Begin, end of the annotations of image i. Like `size`, it reads the shared mapped file,
        so workers copy nothing.
        """
        begin, end = self.packed.arrays.spans[self.rows[i]].tolist()
        return begin, end

    def file_name(self, i: int) -> str:
        return self.packed.names[int(self.rows[i])]

    def where(self, i: int) -> str:
        """The file of image i, for messages."""
        return f"{self.source.where}/{self.file_name(i)}"

    def read(self, i: int) -> bytes:
        """The bytes of the file of image i; OSError if it cannot be read."""
        return self.source.read(self.file_name(i))

    def decode(
        self, i: int, at_least: tuple[float, float] | None = None
    ) -> tuple[NDArray[np.uint8], int]:
        """The pixels of image i, H W 3, and the factor by which they are downscaled, see
        `storage.images.decode`. Raises OSError, UnreadableImageError.
        """
        name, size = self.file_name(i), self.size(i)
        return read_pixels(self.source, name, size, at_least, self.max_pixels, self.bits)

    @property
    def pixels_key(self) -> str:
        """A digest of the json, of where the files are, and of how their samples are read."""
        facts = f"{self.source.where} {self.bits}" if self.bits else self.source.where
        return f"{self.packed.key}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"

    def annotations(self, i: int) -> dict[str, NDArray[Any]]:
        """The R annotations of image i: boxes (R 4 float64, x1 y1 x2 y2 clipped to the image),
        labels (R, 1..K), crowd (R bool), areas (R float64), ids (R).
        """
        arrays, part, (height, width) = self.packed.arrays, slice(*self.span(i)), self.size(i)
        boxes = arrays.boxes[part].copy()
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, [width, height, width, height])
        fields = {"crowd": arrays.crowd[part], "areas": arrays.areas[part], "ids": arrays.ids[part]}
        return {"boxes": boxes, "labels": self.labels[arrays.labels[part]], **fields}

    def void(self, i: int) -> NDArray[np.uint32]:
        """The run lengths of the void region of image i; empty if it has none."""
        begin, end = self.packed.arrays.void_spans[self.rows[i]].tolist()
        return self.packed.arrays.void_runs[begin:end]

    def void_rle(self, i: int) -> dict[str, Any] | None:
        """The void region of image i as a compressed RLE; None if it has none."""
        runs = self.void(i)
        return compress_runs(runs, self.size(i)) if len(runs) else None

    @cached_property
    def has_void(self) -> bool:
        """Whether training and metrics ignore a void region of these images."""
        spans = self.packed.arrays.void_spans[self.rows]
        return self.ignore_void and bool((spans[:, 1] > spans[:, 0]).any())

    @cached_property
    def without_mask(self) -> Ints:
        """The objects that have a box and no mask, as rows of the json's list; no crowd regions."""
        arrays = self.packed.arrays
        bare = ~has_mask(arrays) & ~arrays.crowd[:]
        selected = np.zeros(len(bare) + 1, np.int64)
        np.add.at(selected, self.spans[:, 0], 1)
        np.add.at(selected, self.spans[:, 1], -1)
        return np.flatnonzero(bare & (np.cumsum(selected[:-1]) > 0))

    def masked(self, i: int) -> NDArray[np.bool_]:
        """R: whether each annotation of image i has a mask."""
        arrays, part = self.packed.arrays, slice(*self.span(i))
        pieces = np.diff(arrays.part_spans[part]) + np.diff(arrays.run_spans[part])
        return pieces[:, 0] > 0

    def outline(self, i: int, j: int) -> Outline:
        """Annotation j of image i: its polygons as flat x y x y ... arrays, none for a box without
        a mask, or the run lengths of its RLE.
        """
        n, arrays = self.span(i)[0] + j, self.packed.arrays
        begin, end = arrays.run_spans[n]
        if end > begin:
            return arrays.runs[begin:end]
        return [
            arrays.coordinates[a:b]
            for a, b in arrays.coordinate_spans[slice(*arrays.part_spans[n])]
        ]

    def segmentation(self, i: int, j: int) -> list[Floats] | dict[str, Any]:
        """Annotation j of image i: polygons (P 2 float64 each) or a compressed RLE, {"size",
        "counts": bytes}.
        """
        outline = self.outline(i, j)
        if isinstance(outline, np.ndarray):
            return compress_runs(outline, self.size(i))
        return [part.reshape(-1, 2) for part in outline]

    def rle(self, i: int, j: int) -> dict[str, Any]:
        """The mask of annotation j of image i as a compressed RLE of the full image."""
        outline, (height, width) = self.outline(i, j), self.size(i)
        if isinstance(outline, np.ndarray):
            return compress_runs(outline, (height, width))
        return polygons_rle(outline, height, width)

    def coco_annotation(self, i: int, j: int) -> tuple[dict[str, Any], int]:
        """Annotation j of image i as an entry of a COCO json, and its position in the json's
        list.
        """
        n = self.span(i)[0] + j
        return self._annotation(i, n), int(self.packed.arrays.order[n])

    def at(self, positions: Ints) -> AnnotationIndex:
        """The images at `positions`, in that order."""
        return replace(self, rows=self.rows[positions])

    def subset_order(self, how: SubsetOrder, seed: int) -> Ints:
        """All positions, in the order in which a subset selects them."""
        if how not in ("first", "random"):
            raise UserError(f"data.subset={how} is unknown: use first or random")
        count = len(self)
        return (
            np.random.default_rng((seed, 0)).permutation(count)
            if how == "random"
            else np.arange(count)
        )

    def subset(self, n: int, how: SubsetOrder = "random", seed: int = 0) -> AnnotationIndex:
        """`n` of the images: the first by file name, or random ones. With one seed, a smaller
        subset is part of a larger one.
        """
        if not 1 <= n <= len(self):
            raise UserError(
                f"{n} images were requested, but {self.source.where} has {len(self)}: request 1 to "
                f"{len(self)}"
            )
        return self.at(np.sort(self.subset_order(how, seed)[:n]))

    def with_ids(self, image_ids: Sequence[int]) -> AnnotationIndex:
        """The images with these ids."""
        unknown = sorted(set(image_ids) - set(self.image_ids.tolist()))
        if unknown:
            raise UserError(
                f"data.image_ids has {unknown[0]}, which is not an image id of the json: use ids "
                "from its images"
            )
        return self.at(np.flatnonzero(np.isin(self.image_ids, image_ids)))

    def with_categories(
        self, categories: Sequence[Category], where: str | None = None
    ) -> AnnotationIndex:
        """The same images with the labels of the trained categories `table`, matched by name. The
        result's categories have the order of that table and the ids of this json, as ground truth
        and results need them. where: the json, for messages.
        """
        table, labels = match_categories(
            self.categories, categories, where or self.source.where, used=self.used_labels()
        )
        return replace(self, categories=table, labels=labels[self.labels])

    @property
    def listed_categories(self) -> tuple[Category, ...]:
        """The `categories` that the json lists. The others have no ground truth and cannot be
        scored.
        """
        listed = {category.name for category in self.packed.categories}
        return tuple(category for category in self.categories if category.name in listed)

    def used_labels(self) -> set[int]:
        """The labels that occur in the annotations of these images."""
        begins, ends = self.spans.T
        change = np.zeros(len(self.packed.arrays.labels) + 1, np.int64)
        np.add.at(change, begins, 1)
        np.add.at(change, ends, -1)
        inside = np.cumsum(change[:-1]) > 0
        return set(np.unique(self.labels[self.packed.arrays.labels[inside]]).tolist())

    def coco_ground_truth(self) -> dict[str, Any]:
        """A COCO instances dict of these images: original ids, boxes, areas and shapes, annotations
        in the original order, `listed_categories`. An image may have "ignore", the RLE of its void
        region; the segmentation of a box without a mask is []. An annotation has "amodal_area",
        the pixels of the whole object, where the json has its amodal mask.
        """
        images = [
            {"id": int(self.image_ids[i]), "file_name": self.file_names[i], "height": h, "width": w}
            | self._ignored(i)
            for i, (h, w) in enumerate(map(self.size, range(len(self))))
        ]
        for i, image in enumerate(images if self.packed.federated else ()):
            image.update(self._federated(i))
        order = self.packed.arrays.order
        entries = [(int(order[n]), i, n) for i, span in enumerate(self.spans) for n in range(*span)]
        frequencies = self.packed.frequencies
        categories = [
            category._asdict()
            | ({"frequency": frequencies[category.name]} if category.name in frequencies else {})
            for category in self.listed_categories
        ]
        annotations = [self._annotation(i, n) for _, i, n in sorted(entries)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _ignored(self, i: int) -> dict[str, Any]:
        void = self.void_rle(i) if self.ignore_void else None
        return {} if void is None else {"ignore": void | {"counts": void["counts"].decode()}}

    def _federated(self, i: int) -> dict[str, list[int]]:
        """LVIS's category ids of image i, as in its json."""
        arrays, row = self.packed.arrays, int(self.rows[i])
        ids = {}
        for key, spans, labels in (
            ("neg_category_ids", arrays.negative_spans, arrays.negatives),
            ("not_exhaustive_category_ids", arrays.incomplete_spans, arrays.incompletes),
        ):
            own = self.labels[labels[slice(*spans[row].tolist())]]
            ids[key] = [self.categories[label - 1].id for label in own.tolist() if label]
        return ids

    def _annotation(self, i: int, n: int) -> dict[str, Any]:
        shape = self.segmentation(i, n - self.span(i)[0])
        if isinstance(shape, dict):
            shape = {**shape, "counts": shape["counts"].decode()}
        arrays = self.packed.arrays
        whole = float(arrays.amodal_areas[n])
        return {
            "id": int(arrays.ids[n]),
            "image_id": int(self.image_ids[i]),
            "category_id": self.categories[self.labels[arrays.labels[n]] - 1].id,
            "bbox": arrays.boxes[n].tolist(),
            "area": float(arrays.areas[n]),
            "iscrowd": int(arrays.crowd[n]),
            "segmentation": shape
            if isinstance(shape, dict)
            else [part.ravel().tolist() for part in shape],
        } | ({AMODAL_AREA: whole} if whole else {})


def read_index(
    annotations: str | Path,
    images: str | Path,
    on_bad: OnInvalid,
    keep_empty: bool = True,
    *,
    image_ids: Sequence[int] | None = None,
    take: int | None = None,
    how: SubsetOrder = "random",
    seed: int = 0,
    cache: Path | None = None,
    cache_gb: float = 50.0,
    max_pixels: int = MAX_PIXELS,
    bits: int = 0,
    classes: ClassChoice | None = None,
    where: str | None = None,
    ignore_void: bool = True,
) -> AnnotationIndex:
    """Read and check a COCO json and the headers of its image files.

    Args: annotations: the json: a file, a member of COCO's archive, or a URL. images: the folder,
    zip or URL of the image files (see `source.open_images`). on_bad: "error": any fault is a
    UserError with the count and the first case of each kind; "skip": images that are missing,
    empty, unreadable, of another size or outside of the folder are left out, and so are invalid
    annotations; `.faults` of the result lists them. Corrected entries are in `.changes` in both
    modes. keep_empty: keep images without annotations. image_ids: use only these images. take, how,
    seed: the size and order of a subset, see `AnnotationIndex.subset`; a faulty file is replaced by
    the next one. Files are checked in that order until there are enough, so a small subset of a
    large set is cheap. cache: folder for the packed json and the records of checked files; None:
    the user's cache. cache_gb: limit for cached remote files. max_pixels: limit for an image file.
    bits: the depth of samples of more than 8 bits; 0: by each file.
    classes: the classes to use, and their names; None: all, unchanged. where: what the user gave,
    for messages; None: `annotations`. ignore_void: whether void regions have no mask loss and no
    metric.

    Raises: UserError: a missing file or folder, not a COCO json, no image, fewer images than
    `take`, faults with "error", none of `classes`.
    """
    if on_bad not in ("error", "skip"):
        raise UserError(f"data.on_bad={on_bad} is unknown: use error or skip")
    cache = cache or default_cache()
    where = where or str(annotations)
    file = open_annotations(str(annotations), cache, cache_gb)
    source = open_images(str(images), cache, cache_gb)
    packed = open_json(*file, cache, _measure(source) if source.local else None)
    if classes is not None:
        packed = choose_classes(packed, classes, where)
    source = with_renamed_files(packed, source)
    index, count = select_images(full_index(packed, source), image_ids, keep_empty, take, how, seed)
    rows, bad = readable_files(packed, source, index.rows, count, cache, max_pixels)
    # if the image is left out, skip the faults of its annotations: a wrong size makes them look
    # wrong
    gone = {fault.image for fault in bad}
    faults = [fault for fault in packed.faults if fault.image not in gone] + bad
    if faults and on_bad == "error":
        raise UserError(
            f"{where} has {len(faults)} fault{'s' * (len(faults) > 1)}: "
            f"{'; '.join(describe(faults))}. "
            "Fix them, or leave out the faulty images and annotations with data.on_bad=skip"
        )
    if not len(rows) or (take is not None and len(rows) < take):
        message = f" ({'; '.join(describe(faults))})" if faults else ""
        raise UserError(
            f"{where} has {len(rows)} usable images, but {take or 1} are needed{message}"
        )
    rows = np.sort(rows)
    changes = (*packed.changes, *renamed(packed, source, rows))
    return replace(
        index,
        rows=rows,
        faults=tuple(faults),
        changes=changes,
        max_pixels=max_pixels,
        bits=bits,
        ignore_void=ignore_void,
    )


def _measure(source: Source) -> Measure:
    """A function from file name to image size, for a folder or a zip; it resolves names from other
    operating systems.
    """
    source = RenamedFiles(source.folder) if isinstance(source, Folder) else source
    return lambda name: image_size(source, name)


def select_images(
    index: AnnotationIndex,
    image_ids: Sequence[int] | None,
    keep_empty: bool,
    take: int | None,
    how: SubsetOrder,
    seed: int,
) -> tuple[AnnotationIndex, int]:
    """The candidate images in the order in which a subset selects them, and its size. Arguments:
    see `read_index`.
    """
    if image_ids is not None:
        index = index.with_ids(image_ids)
    if not keep_empty:
        index = index.at(np.flatnonzero(index.spans[:, 1] > index.spans[:, 0]))
    count = len(index) if take is None else take
    if count > len(index) or count < (take is not None):
        raise UserError(
            f"{take} images were requested, but {index.source.where} has {len(index)}: request "
            "fewer"
        )
    return index.at(index.subset_order(how, seed)), count


def full_index(packed: Packed, source: Source) -> AnnotationIndex:
    """All images of a json, unchecked."""
    return AnnotationIndex(
        source=source,
        packed=packed,
        rows=np.arange(len(packed.arrays.image_ids)),
        categories=packed.categories,
        labels=np.arange(len(packed.categories) + 1),
    )
