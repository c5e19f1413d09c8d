"""A COCO json as flat arrays: what the loader's processes share, and what is scored against.

`read_index` is the way in. Images stand in the order of their file names, categories in that of their names, the
annotations of an image in that of their boxes: no id has a say, so that any renumbering of a json trains alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.data.categories import Category, match_categories
from maskrcnn_lit.data.coco_json import (
    Fault,
    describe,
    load_json,
    read_annotations,
    read_categories,
    read_images,
)
from maskrcnn_lit.data.image import file_fault, safe_path
from maskrcnn_lit.data.packed import Annotations, Floats, Ints, Names, pack
from maskrcnn_lit.data.rasterise import Outline, compress_runs
from maskrcnn_lit.errors import UserError

OnBad = Literal["error", "skip"]
How = Literal["first", "random"]


@dataclass(frozen=True, kw_only=True)
class AnnotationIndex:
    """I images and their annotations. Label l (1..K) is `categories[l - 1]`, whose id is the one in this json."""

    folder: Path
    categories: tuple[Category, ...]
    image_ids: Ints  # I, as in the json
    heights: Ints  # I
    widths: Ints  # I
    file_names: Names
    spans: Ints  # I 2: begin, end in the annotations
    store: Annotations
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def size(self, i: int) -> tuple[int, int]:
        """Height, width of image i by the json."""
        return int(self.heights[i]), int(self.widths[i])

    def path(self, i: int) -> Path:
        """The file of image i, inside the folder."""
        if (path := safe_path(self.folder, self.file_names[i])) is None:
            raise UserError(f"file name {self.file_names[i]!r} leaves {self.folder}: data.on_bad=skip drops it")
        return path

    def annotations(self, i: int) -> dict[str, NDArray[Any]]:
        """Of image i, with R annotations: boxes (R 4 float64, x1 y1 x2 y2 clipped to the image), labels (R, 1..K),
        crowd (R bool), areas (R float64), ids (R)."""
        part, (height, width) = slice(*self.spans[i]), self.size(i)
        boxes = self.store.boxes[part].copy()
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, [width, height, width, height])
        store = self.store
        fields = {"labels": store.labels, "crowd": store.crowd, "areas": store.areas, "ids": store.ids}
        return {"boxes": boxes, **{name: values[part] for name, values in fields.items()}}

    def outline(self, i: int, j: int) -> Outline:
        """Annotation j of image i: its polygons as flat x y x y ... arrays, or the run lengths of its RLE."""
        n, store = int(self.spans[i, 0]) + j, self.store
        begin, end = store.run_spans[n]
        if end > begin:
            return store.runs[begin:end]
        return [store.coordinates[a:b] for a, b in store.coordinate_spans[slice(*store.part_spans[n])]]

    def segmentation(self, i: int, j: int) -> list[Floats] | dict[str, Any]:
        """Annotation j of image i: polygons (P 2 float64 each) or a compressed RLE, {"size", "counts": bytes}."""
        outline = self.outline(i, j)
        if isinstance(outline, np.ndarray):
            return compress_runs(outline, self.size(i))
        return [part.reshape(-1, 2) for part in outline]

    def take(self, positions: Ints) -> AnnotationIndex:
        """The images at `positions`, in that order."""
        return replace(
            self,
            image_ids=self.image_ids[positions],
            heights=self.heights[positions],
            widths=self.widths[positions],
            file_names=Names(self.file_names.text, self.file_names.spans[positions]),
            spans=self.spans[positions],
        )

    def preference(self, how: How, seed: int) -> Ints:
        """All positions in the order in which a subset takes them."""
        if how not in ("first", "random"):
            raise UserError(f"data.subset={how} is unknown: use first or random")
        count = len(self)
        return np.random.default_rng((seed, 0)).permutation(count) if how == "random" else np.arange(count)

    def subset(self, n: int, how: How = "random", seed: int = 0) -> AnnotationIndex:
        """`n` of the images: the first by file name, or random ones, of which a smaller `n` of that seed is a part."""
        if not 1 <= n <= len(self):
            raise UserError(f"{n} images were asked for of the {len(self)} in {self.folder}: ask for 1 to {len(self)}")
        return self.take(np.sort(self.preference(how, seed)[:n]))

    def only(self, image_ids: Sequence[int]) -> AnnotationIndex:
        """The images with these ids."""
        unknown = sorted(set(image_ids) - set(self.image_ids.tolist()))
        if unknown:
            raise UserError(f"data.image_ids has {unknown[0]}, which is no image of the json: take ids from its images")
        return self.take(np.flatnonzero(np.isin(self.image_ids, image_ids)))

    def with_categories(self, categories: Sequence[Category]) -> AnnotationIndex:
        """The same images with labels by the names of the given table (that of training). The result's categories are
        in the order of that table with the ids of this json, as its ground truth and its results need them."""
        table, labels = match_categories(self.categories, categories, str(self.folder))
        store = self.store._replace(labels=labels[self.store.labels])
        return replace(self, categories=table, store=store)

    def coco_ground_truth(self) -> dict[str, Any]:
        """A COCO instances dict of these images: original ids, boxes, areas, shapes; annotations in their old order."""
        images = [
            {"id": int(self.image_ids[i]), "file_name": self.file_names[i], "height": h, "width": w}
            for i, (h, w) in enumerate(map(self.size, range(len(self))))
        ]
        found = [(int(self.store.order[n]), i, n) for i, span in enumerate(self.spans) for n in range(*span)]
        categories = [category._asdict() for category in self.categories]
        annotations = [self._annotation(i, n) for _, i, n in sorted(found)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _annotation(self, i: int, n: int) -> dict[str, Any]:
        shape = self.segmentation(i, n - int(self.spans[i, 0]))
        if isinstance(shape, dict):
            shape = {**shape, "counts": shape["counts"].decode()}
        return {
            "id": int(self.store.ids[n]),
            "image_id": int(self.image_ids[i]),
            "category_id": self.categories[self.store.labels[n] - 1].id,
            "bbox": self.store.boxes[n].tolist(),
            "area": float(self.store.areas[n]),
            "iscrowd": int(self.store.crowd[n]),
            "segmentation": shape if isinstance(shape, dict) else [part.ravel().tolist() for part in shape],
        }


def read_index(
    annotations: Path,
    images: Path,
    on_bad: OnBad,
    keep_empty: bool = True,
    *,
    image_ids: Sequence[int] | None = None,
    take: int | None = None,
    how: How = "random",
    seed: int = 0,
) -> AnnotationIndex:
    """Read and check a COCO json and the headers of its image files.

    Args:
        annotations: the json.
        images: folder that its file names start from.
        on_bad: "error": any fault is a UserError that counts them by kind and names the first of each; "skip": an image
            that is missing, empty, no image, of another size or outside of the folder is left out, and so is an
            annotation that is faulty in itself; `.faults` of the result tells them.
        keep_empty: keep images without annotations.
        image_ids: these images only.
        take, how, seed: only so many images, see `AnnotationIndex.subset`; a faulty file is replaced by the next one.
            Files are looked at in that order until there are enough, so a small part of a large set costs little.

    Raises:
        UserError: no such file or folder, not a COCO json, no image, fewer images than `take`, faults with "error".
    """
    if on_bad not in ("error", "skip"):
        raise UserError(f"data.on_bad={on_bad} is unknown: use error or skip")
    content = load_json(annotations)
    if not images.is_dir():
        raise UserError(f"there is no image folder {images}: check the path in data.*.images")
    faults: list[Fault] = []
    categories = read_categories(content["categories"], annotations)
    entries = read_images(content["images"], faults)
    columns = read_annotations(content["annotations"], entries, categories, faults)
    index = AnnotationIndex(folder=images, categories=categories, **pack(entries, columns))
    if image_ids is not None:
        index = index.only(image_ids)
    if not keep_empty:
        index = index.take(np.flatnonzero(index.spans[:, 1] > index.spans[:, 0]))
    count = len(index) if take is None else take
    if count > len(index) or count < (take is not None):
        raise UserError(f"{take} images were asked for of the {len(index)} in {annotations}: ask for fewer")
    positions = _sound_files(index, index.preference(how, seed), count, faults)
    if faults and on_bad == "error":
        raise UserError(
            f"{annotations} has {len(faults)} fault{'s' * (len(faults) > 1)}: {'; '.join(describe(faults))}. "
            "Mend them, or leave the faulty images and annotations out with data.on_bad=skip"
        )
    if not len(positions) or (take is not None and len(positions) < take):
        told = f" ({'; '.join(describe(faults))})" if faults else ""
        raise UserError(f"usable images in {annotations}: {len(positions)}, needed: {take or 1}{told}")
    return replace(index.take(np.sort(positions)), faults=tuple(faults))


def _sound_files(index: AnnotationIndex, order: Ints, wanted: int, faults: list[Fault]) -> Ints:
    """The first `wanted` positions in `order` whose file is sound, and the faults of those before that are not."""

    def check(i: int) -> Fault | None:
        name = index.file_names[i]
        path = safe_path(index.folder, name)
        if path is None:
            return Fault("file name outside of the folder", name, None, f"never read, it leaves {index.folder.name}/")
        found = file_fault(path, *index.size(i))
        return Fault(found[0], name, None, found[1]) if found else None

    sound: list[int] = []
    bad: dict[str, Fault] = {}
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:  # mostly waiting for the disk
        while len(sound) < wanted and len(order):
            part, order = np.split(order, [wanted - len(sound)])
            for i, fault in zip(part, pool.map(check, part), strict=True):
                if fault is None:
                    sound.append(int(i))
                else:
                    bad[fault.image] = fault
    # of an image that goes as a whole the annotations are no news: with the size wrong they are bound to look wrong
    faults[:] = [fault for fault in faults if fault.image not in bad] + list(bad.values())
    return np.array(sound, np.int64)
