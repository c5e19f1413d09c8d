"""Images of a COCO json with their annotations: what the loader's processes share, and what is
scored against.

`read_index` is the way in. Images stand in the order of their file names, categories in that of
their names, the annotations of an image in that of their boxes: no id has a say, so that any
renumbering of a json trains alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.coco.arrays import Floats, Ints, Names, Packed, open_json
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
    """I images and their annotations. Label l (1..K) is `categories[l - 1]`, whose id is the one in
    this json.
    """

    source: Source  # of the image files
    packed: Packed  # the whole json
    rows: Ints  # I: which of its images
    categories: tuple[Category, ...]
    labels: Ints  # 1 + the json's own K: its label -> label here
    faults: tuple[Fault, ...] = ()  # of what is left out
    changes: tuple[Fault, ...] = ()  # what is read otherwise than it is written
    max_pixels: int = MAX_PIXELS  # the most that an image file may have

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def image_ids(self) -> Ints:
        """I, as in the json."""
        return self.packed.arrays.image_ids[self.rows]

    @cached_property
    def sizes(self) -> Ints:
        """I 2: height, width by the json."""
        return np.stack(
            [self.packed.arrays.heights[self.rows], self.packed.arrays.widths[self.rows]], 1
        )

    @cached_property
    def spans(self) -> Ints:
        """I 2: begin, end of each image's annotations among those of the json."""
        return self.packed.arrays.spans[self.rows]

    @property
    def file_names(self) -> Names:
        return Names(self.packed.arrays.name_text, self.packed.arrays.name_spans[self.rows])

    @property
    def urls(self) -> Names:
        """Where each image is on the web by the json (its coco_url), or ""."""
        return Names(self.packed.arrays.url_text, self.packed.arrays.url_spans[self.rows])

    def size(self, i: int) -> tuple[int, int]:
        """Height, width of image i by the json."""
        row, arrays = self.rows[i], self.packed.arrays
        return int(arrays.heights[row]), int(arrays.widths[row])

    def span(self, i: int) -> tuple[int, int]:
        """Begin, end of the annotations of image i. Like `size`, it reads the shared file: a worker
        copies nothing.
        """
        begin, end = self.packed.arrays.spans[self.rows[i]].tolist()
        return begin, end

    def file_name(self, i: int) -> str:
        return self.packed.names[int(self.rows[i])]

    def where(self, i: int) -> str:
        """What messages call the file of image i."""
        return f"{self.source.where}/{self.file_name(i)}"

    def read(self, i: int) -> bytes:
        """The file of image i; OSError if it cannot be read."""
        return self.source.read(self.file_name(i))

    def decode(
        self, i: int, at_least: tuple[float, float] | None = None
    ) -> tuple[NDArray[np.uint8], int]:
        """The pixels of image i, H W 3, and the factor by which they are reduced, see
        `storage.images.decode`. Raises OSError, UnreadableImageError.
        """
        return read_pixels(self.source, self.file_name(i), self.size(i), at_least, self.max_pixels)

    def annotations(self, i: int) -> dict[str, NDArray[Any]]:
        """Of image i, with R annotations: boxes (R 4 float64, x1 y1 x2 y2 clipped to the image),
        labels (R, 1..K), crowd (R bool), areas (R float64), ids (R).
        """
        arrays, part, (height, width) = self.packed.arrays, slice(*self.span(i)), self.size(i)
        boxes = arrays.boxes[part].copy()
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, [width, height, width, height])
        fields = {"crowd": arrays.crowd[part], "areas": arrays.areas[part], "ids": arrays.ids[part]}
        return {"boxes": boxes, "labels": self.labels[arrays.labels[part]], **fields}

    def outline(self, i: int, j: int) -> Outline:
        """Annotation j of image i: its polygons as flat x y x y ... arrays, or the run lengths of
        its RLE.
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
        """The mask of annotation j of image i as a compressed RLE of the whole image."""
        outline, (height, width) = self.outline(i, j), self.size(i)
        if isinstance(outline, np.ndarray):
            return compress_runs(outline, (height, width))
        return polygons_rle(outline, height, width)

    def coco_annotation(self, i: int, j: int) -> tuple[dict[str, Any], int]:
        """Annotation j of image i as an entry of a COCO json, and its place in the list there."""
        n = self.span(i)[0] + j
        return self._annotation(i, n), int(self.packed.arrays.order[n])

    def at(self, positions: Ints) -> AnnotationIndex:
        """The images at `positions`, in that order."""
        return replace(self, rows=self.rows[positions])

    def subset_order(self, how: SubsetOrder, seed: int) -> Ints:
        """All positions in the order in which a subset takes them."""
        if how not in ("first", "random"):
            raise UserError(f"data.subset={how} is unknown: use first or random")
        count = len(self)
        return (
            np.random.default_rng((seed, 0)).permutation(count)
            if how == "random"
            else np.arange(count)
        )

    def subset(self, n: int, how: SubsetOrder = "random", seed: int = 0) -> AnnotationIndex:
        """`n` of the images: the first by file name, or random ones, of which a smaller `n` of that
        seed is a part.
        """
        if not 1 <= n <= len(self):
            raise UserError(
                f"{n} images were asked for of the {len(self)} in {self.source.where}: ask for 1 to {len(self)}"
            )
        return self.at(np.sort(self.subset_order(how, seed)[:n]))

    def with_ids(self, image_ids: Sequence[int]) -> AnnotationIndex:
        """The images with these ids."""
        unknown = sorted(set(image_ids) - set(self.image_ids.tolist()))
        if unknown:
            raise UserError(
                f"data.image_ids has {unknown[0]}, which is not an image of the json: take ids from its images"
            )
        return self.at(np.flatnonzero(np.isin(self.image_ids, image_ids)))

    def with_categories(
        self, categories: Sequence[Category], where: str | None = None
    ) -> AnnotationIndex:
        """The same images with labels by the names of the given table (that of training). The
        result's categories are in the order of that table with the ids of this json, as its ground
        truth and its results need them. where: the json, for messages.
        """
        table, labels = match_categories(
            self.categories, categories, where or self.source.where, used=self.used_labels()
        )
        return replace(self, categories=table, labels=labels[self.labels])

    @property
    def listed_categories(self) -> tuple[Category, ...]:
        """Those of `categories` that the json has: of the others it says nothing, so that nothing
        can be scored.
        """
        listed = {category.name for category in self.packed.categories}
        return tuple(category for category in self.categories if category.name in listed)

    def used_labels(self) -> set[int]:
        """The labels of the annotations of these images."""
        begins, ends = self.spans.T
        change = np.zeros(len(self.packed.arrays.labels) + 1, np.int64)
        np.add.at(change, begins, 1)
        np.add.at(change, ends, -1)
        inside = np.cumsum(change[:-1]) > 0
        return set(np.unique(self.labels[self.packed.arrays.labels[inside]]).tolist())

    def coco_ground_truth(self) -> dict[str, Any]:
        """A COCO instances dict of these images: original ids, boxes, areas, shapes; annotations in
        their old order; `listed_categories`.
        """
        images = [
            {"id": int(self.image_ids[i]), "file_name": self.file_names[i], "height": h, "width": w}
            for i, (h, w) in enumerate(map(self.size, range(len(self))))
        ]
        order = self.packed.arrays.order
        entries = [(int(order[n]), i, n) for i, span in enumerate(self.spans) for n in range(*span)]
        categories = [category._asdict() for category in self.listed_categories]
        annotations = [self._annotation(i, n) for _, i, n in sorted(entries)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _annotation(self, i: int, n: int) -> dict[str, Any]:
        shape = self.segmentation(i, n - self.span(i)[0])
        if isinstance(shape, dict):
            shape = {**shape, "counts": shape["counts"].decode()}
        arrays = self.packed.arrays
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
        }


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
    classes: ClassChoice | None = None,
) -> AnnotationIndex:
    """Read and check a COCO json and the headers of its image files.

    Args: annotations: the json: a file, one in an archive of COCO's, or a URL. images: what its
        file names start from: a folder, a zip or a URL (see `source.open_images`). on_bad: "error":
        any fault is a UserError that counts them by kind and names the first of each; "skip": an
        image that is missing, empty, no image, of another size or outside of the folder is left
        out, and so is an annotation that is faulty in itself; `.faults` of the result lists them.
        What is kept, but read otherwise than it is written, is in `.changes`, with either.
        keep_empty: keep images without annotations. image_ids: these images only. take, how, seed:
        only so many images, see `AnnotationIndex.subset`; a faulty file is replaced by the next
        one. Files are looked at in that order until there are enough, so a small part of a large
        set costs little. cache: where the packed json and what is known of the files are kept;
        None: the user's cache. cache_gb: bound of what is kept of remote files. max_pixels: the
        most that an image file may have. classes: which classes count, and their names; None: all,
        as they are.

    Raises: UserError: no such file or folder, not a COCO json, no image, fewer images than `take`,
        faults with "error", no class of `classes`.
    """
    if on_bad not in ("error", "skip"):
        raise UserError(f"data.on_bad={on_bad} is unknown: use error or skip")
    cache = cache or default_cache()
    file = open_annotations(str(annotations), cache, cache_gb)
    source = open_images(str(images), cache, cache_gb)
    packed = open_json(*file, cache, _measure(source) if source.local else None)
    if classes is not None:
        packed = choose_classes(packed, classes, str(annotations))
    source = with_renamed_files(packed, source)
    index, count = select_images(full_index(packed, source), image_ids, keep_empty, take, how, seed)
    rows, bad = readable_files(packed, source, index.rows, count, cache, max_pixels)
    # of an image that goes as a whole the annotations are no news: with the size wrong they are
    # bound to look wrong
    gone = {fault.image for fault in bad}
    faults = [fault for fault in packed.faults if fault.image not in gone] + bad
    if faults and on_bad == "error":
        raise UserError(
            f"{annotations} has {len(faults)} fault{'s' * (len(faults) > 1)}: {'; '.join(describe(faults))}. "
            "Fix them, or leave the faulty images and annotations out with data.on_bad=skip"
        )
    if not len(rows) or (take is not None and len(rows) < take):
        message = f" ({'; '.join(describe(faults))})" if faults else ""
        raise UserError(
            f"usable images in {annotations}: {len(rows)}, needed: {take or 1}{message}"
        )
    rows = np.sort(rows)
    changes = (*packed.changes, *renamed(packed, source, rows))
    return replace(index, rows=rows, faults=tuple(faults), changes=changes, max_pixels=max_pixels)


def _measure(source: Source) -> Measure:
    """Sizes of the images of a folder or a zip, whatever system their names were written for."""
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
    """The images that may be used, in the order in which a subset takes them, and how many it
    takes. Arguments: see `read_index`.
    """
    if image_ids is not None:
        index = index.with_ids(image_ids)
    if not keep_empty:
        index = index.at(np.flatnonzero(index.spans[:, 1] > index.spans[:, 0]))
    count = len(index) if take is None else take
    if count > len(index) or count < (take is not None):
        raise UserError(
            f"{take} images were asked for of the {len(index)} in {index.source.where}: ask for fewer"
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
