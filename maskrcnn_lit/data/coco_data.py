"""The two parts of COCO data: where they lie, and their annotations, read and checked.

Without Lightning, so that `compare` over many runs starts quickly; datamodule.py loads batches.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from maskrcnn_lit.data.coco.categories import UNUSED, Category, some
from maskrcnn_lit.data.coco.classes import (
    check_names,
    describe_choice,
    read_choice,
    source_names,
)
from maskrcnn_lit.data.coco.faults import describe
from maskrcnn_lit.data.coco.index import AnnotationIndex, OnInvalid, SubsetOrder, read_index
from maskrcnn_lit.data.coco.learnable import describe_partial
from maskrcnn_lit.data.coco.reading import (
    ALL,
    AnyReader,
    OneJson,
    PictureReader,
    Reader,
    folder_of,
    located,
)
from maskrcnn_lit.data.coco.split import Split
from maskrcnn_lit.errors import (
    UserError,
    check_choice,
    check_flag,
    check_text,
    check_whole,
    check_within,
    plural,
)
from maskrcnn_lit.storage.files import default_cache
from maskrcnn_lit.storage.images import MAX_PIXELS
from maskrcnn_lit.storage.sources import join

PARTS = ("train", "val")

_log = logging.getLogger(__name__)


class CocoData:
    """Training and validation images of any COCO data, and their annotations.

    The arguments, all of which conf/data/coco_json.yaml has, are those of `CocoDataModule`, which
    documents them. After `setup`: `categories`, `train_index` and `val_index`, see there.

    Raises:
        UserError: values of the wrong kind or range.
    """

    def __init__(
        self,
        *,
        name: str,
        train: Mapping[str, str | Path | None] | None = None,
        val: Mapping[str, str | Path | None] | None = None,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        reader: AnyReader | None = None,
        val_share: float | None = None,
        group_by: str | None = None,
        split_seed: int = 0,
        root: str | Path | None = None,
        classes: Sequence[Any] | Mapping[str, str | None] | None = None,
        image_ids: Sequence[int] | None = None,
        train_images: int | None = None,
        val_images: int | None = None,
        subset: SubsetOrder = "random",
        on_bad: OnInvalid = "error",
        keep_empty: bool = True,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        cache_gb: float = 50.0,
        max_pixels: int = MAX_PIXELS,
        bits: int | str = "auto",
        ignore_void: bool = True,
        prepare: Callable[..., None] | None = None,
        download: bool | None = None,
        mirror: str | None = None,
    ) -> None:
        _check_numbers(seed, image_ids, cache_gb)
        check_choice(get_args(SubsetOrder), data__subset=subset)
        check_choice(get_args(OnInvalid), data__on_bad=on_bad)
        check_flag(data__keep_empty=keep_empty, data__ignore_void=ignore_void)
        if download is not None:
            check_flag(data__download=download)
        if not isinstance(name, str):
            raise UserError(f"data.name={name} must be text: the name of the data set in reports")
        check_text(data__mirror=mirror)
        if prepare is not None and not callable(prepare):
            raise UserError(f"data.prepare={prepare} must be null or a _partial_ with a _target_")
        self._fetching = {} if download is None else {"download": download, "mirror": mirror}
        self.name: str = name  # LightningDataModule declares an optional name
        self.seed, self.subset, self.prepare = seed, subset, prepare
        check_text(data__group_by=group_by)
        self.root = root
        self.reader = _reader(reader, annotations, images, root, val_share)
        self.split = None if val_share is None else Split(val_share, group_by, split_seed)
        self._paths = (
            {part: _paths(part, paths, root) for part, paths in (("train", train), ("val", val))}
            if self.reader is None
            else {}
        )
        self.classes = read_choice(classes)
        self.image_ids = image_ids
        self._counts = {"train": train_images, "val": val_images}
        for part, count in self._counts.items():
            if count is not None:
                check_whole(1, **{f"data__{part}_images": count})
        self.on_bad, self.keep_empty = on_bad, keep_empty
        check_whole(1, data__max_pixels=max_pixels)
        self.max_pixels, self.ignore_void = max_pixels, ignore_void
        self.bits = depth_of(bits)
        self.cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
        self.cache_gb = cache_gb
        self.categories: tuple[Category, ...] = ()  # set by setup
        self._trained = False  # whether they come from a trained model
        self.train_index: AnnotationIndex | None = None
        self.val_index: AnnotationIndex | None = None

    def use_categories(self, categories: Sequence[Category]) -> None:
        """Use the labels of this table (that of a trained model), not of the training json; call it
        before `setup`.
        """
        self.categories, self._trained = tuple(categories), True

    @property
    def has_void(self) -> bool:
        """Whether a part that was read has void regions, which training and metrics ignore."""
        indices = (self.train_index, self.val_index)
        return any(index is not None and index.has_void for index in indices)

    @property
    def parts(self) -> list[str]:
        """The parts that the data have: "train" for data that are not divided."""
        if self.reader is None or self.split is not None:
            return list(PARTS)
        if isinstance(self.reader, OneJson):
            return ["train"]
        return list(self.reader.parts(folder_of(self.root))) or ["train"]

    def paths(self, part: str) -> tuple[str, str]:
        """The paths of the json of "train" or "val" and of its image folder. Data in another form
        are read first, see `reading.located`. Data that are not divided are either part.

        Raises:
            UserError: the data do not have this part, or cannot be read.
        """
        if self.reader is None:
            return self._paths[part]
        if isinstance(self.reader, OneJson) and self.split is None:
            return self.reader.annotations, self.reader.images
        root = Path() if isinstance(self.reader, OneJson) else folder_of(self.root)
        if self.split is None:
            has = self.reader.parts(root)
            if has and part not in has:
                raise UserError(
                    f"{root} has no part '{part}': give one beside {some(has)}, or divide the "
                    "images with data.val_share=0.2"
                )
            name = part if has else ALL
        else:
            name = ALL
        there = located(self.reader, root, name, self.cache, self.split, self.cache_gb)
        one = there[name if self.split is None else part]
        return str(one.annotations), str(one.images)

    def _check_divided(self) -> None:
        """Raise UserError if training and validation would be the same images."""
        if self.reader is not None and self.split is None and self.parts == ["train"]:
            where = self.root if not isinstance(self.reader, OneJson) else self.reader.annotations
            raise UserError(
                f"{where} has no validation part: divide its images with data.val_share=0.2, or "
                "give validation images of their own"
            )

    def prepare_data(self) -> None:
        if self.prepare is not None:
            self.prepare(**self._fetching)

    def setup(self, stage: str | None = None) -> None:
        """Read the jsons that are not read yet: both for "fit" or None, else only the validation
        json.
        """
        if stage in ("fit", None) and self.train_index is None:
            self._check_divided()
            self.train_index = self._read("train")
            if self.val_index is None:
                self.val_index = self._read("val")
                self.check_classes()
                self.announce(*self._leaks())
        if self.val_index is None:
            self.val_index = self._read("val")
            self._check_trained_classes()

    def setup_part(self, part: str) -> None:
        """Read only "train" or "val", when the other part is not given."""
        if part == "val":
            self.setup("validate")
            self.check_classes()
        elif self.train_index is None:
            self.train_index = self._read("train")
            self.check_classes()

    def check_classes(self) -> None:
        """Raise UserError for a name in data.classes that is in none of the jsons read."""
        indices = (self.train_index, self.val_index)
        check_names(self.classes, [index.packed for index in indices if index is not None])

    def _check_trained_classes(self) -> None:
        """As `check_classes`; names that the trained model has are allowed, too."""
        if self.classes is None or not self._trained or self.val_index is None:
            return
        allowed = {None, *(category.name for category in self.categories)}
        unknown = self.classes.unknown(source_names(self.val_index.packed))
        if any(self.classes.name_of(name) not in allowed for name in unknown):
            self.check_classes()

    def _leaks(self) -> list[str]:
        """A warning about validation images that are also training images, unless selected by
        id.
        """
        train, val = self.train_index, self.val_index
        if train is None or val is None or self.image_ids is not None:
            return []
        seen = {train.where(i) for i in range(len(train))}
        shared = sum(val.where(i) in seen for i in range(len(val)))
        if not shared:
            return []
        return [
            f"warning: {shared} of {len(val)} validation images are training images too, so the "
            "scores do not show how the model does on new images: give others with data.val.images "
            "and data.val.annotations"
        ]

    def _read(self, part: str) -> AnnotationIndex:
        annotations, images = self.paths(part)
        count = self._counts[part]
        where = self.where(part)
        index = read_index(
            annotations,
            images,
            self.on_bad,
            self.keep_empty,
            image_ids=self.image_ids,
            take=count,
            how=self.subset,
            seed=self.seed,
            cache=self.cache,
            cache_gb=self.cache_gb,
            max_pixels=self.max_pixels,
            bits=self.bits,
            classes=self.classes,
            where=where,
            ignore_void=self.ignore_void,
        )
        self.categories = self.categories or index.categories
        listed = {category.name for category in index.categories}
        index = index.with_categories(self.categories, where)
        known = {category.name for category in self.categories}
        absent = [n for n in known - listed if not n.startswith(UNUSED)]
        objects = int((index.spans[:, 1] - index.spans[:, 0]).sum())
        self.announce(
            f"{part}: {plural(len(index), 'image')}, {plural(objects, 'object')}, "
            f"{plural(len(index.categories), 'category', 'categories')} ({where})"
        )
        self.announce(*(f"{part}: {line}" for line in describe_choice(index.packed)))
        if absent:
            self.announce(f"{part}: the classes {some(absent)} have no objects and are not scored")
        if listed - known:
            self.announce(
                f"{part}: the classes {some(listed - known)} are left out: they have no objects"
            )
        if index.faults:
            self.announce(
                "\n  ".join(
                    [
                        f"{part}: {len(index.faults)} faulty entries left out (data.on_bad=skip):",
                        *describe(index.faults),
                    ]
                )
            )
        self.announce(*describe_changes(part, index))
        self.announce(*(f"{part}: {line}" for line in describe_partial(index)))
        return index

    def where(self, part: str) -> str:
        """What the user gave for this part, for messages."""
        if self.reader is None:
            return self._paths[part][0]
        given = self.reader.annotations if isinstance(self.reader, OneJson) else self.root
        return f"{given}, its part '{part}'" if self.split is not None else str(given)

    def subset_ids(self) -> dict[str, list[int]]:
        """The ids of the images in use, for each part."""
        indices = {"train": self.train_index, "val": self.val_index}
        return {
            part: index.image_ids.tolist() for part, index in indices.items() if index is not None
        }

    def announce(self, *lines: str) -> None:
        for line in lines:
            _log.info(line)


def _check_numbers(seed: Any, image_ids: Any, cache_gb: Any) -> None:
    check_whole(0, 2**63 - 1, data__seed=seed)
    check_within(0, 1e6, data__cache_gb=cache_gb)
    if image_ids is None:
        return
    if not isinstance(image_ids, (list, tuple)) or not image_ids:
        raise UserError(f"data.image_ids={image_ids} must be null or a list of image ids")
    for image_id in image_ids:
        check_whole(-(2**62), 2**62, data__image_ids=image_id)


def depth_of(bits: Any) -> int:
    """`data.bits` as a number; 0: auto."""
    if bits == "auto":
        return 0
    check_whole(8, 32, data__bits=bits)
    return int(bits)


def describe_changes(part: str, index: AnnotationIndex) -> list[str]:
    """Lines about corrected entries."""
    if not index.changes:
        return []
    return [
        f"{part}: {len(index.changes)} entries were corrected:",
        *(f"  {line}" for line in describe(index.changes, names=1)),
    ]


def _reader(
    reader: Any, annotations: Any, images: Any, root: str | Path | None, val_share: Any
) -> AnyReader | None:
    """What reads the data, if they are not one json for each part."""
    if val_share is not None:
        check_within(0.001, 0.999, data__val_share=val_share)
    if not isinstance(root, (str, Path, NoneType)):
        raise UserError(f"data.root={root} must be null, a folder or a URL")
    if reader is None:
        return _one_json(annotations, images, root, val_share)
    if annotations is not None or images is not None:
        raise UserError("data.annotations and data.images are of data=coco_json: leave them out")
    if not isinstance(reader, (Reader, PictureReader)):
        raise UserError(f"data.reader={reader} must be null or a reader with a _target_")
    return reader


def _one_json(
    annotations: Any, images: Any, root: str | Path | None, val_share: float | None
) -> OneJson | None:
    """The reader of a single json, if one is given."""
    if annotations is None and images is None:
        if val_share is not None:
            raise UserError(
                "data.val_share divides one json: give it with data.annotations=FILE "
                "data.images=DIR, in place of data.train and data.val"
            )
        return None
    for name, value in {"annotations": annotations, "images": images}.items():
        if not isinstance(value, (str, Path)) or not value:
            raise UserError(
                f"data.{name} is missing: give both data.annotations=FILE and data.images=DIR"
            )
    file = join(root, str(annotations))
    if val_share is not None and not Path(file).is_file():
        raise UserError(
            f"data.annotations={file} must be a file on this machine, to be divided by "
            "data.val_share: check the path"
        )
    return OneJson(file, join(root, str(images)))


def _paths(part: str, paths: Any, root: str | Path | None) -> tuple[str, str]:
    """The paths of the json and of the image folder."""
    if not isinstance(paths, Mapping):
        raise UserError(f"data.{part}={paths} must have images and annotations")
    for key, description in (
        ("annotations", "a COCO json"),
        ("images", "the folder of its images"),
    ):
        if not paths.get(key):
            raise UserError(f"data.{part}.{key} is missing: give {description}")
        if not isinstance(paths[key], (str, Path)):
            raise UserError(f"data.{part}.{key}={paths[key]} must be {description}")
    return join(root, str(paths["annotations"])), join(root, str(paths["images"]))
