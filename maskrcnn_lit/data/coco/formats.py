"""Recognizes annotations in other formats than COCO json, and suggests a converter."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

_SUPERVISION = "DetectionDataset.{}(...).as_coco(annotations_path='FILE.json')"

_FORMATS = {
    ".xml": ("Pascal VOC xml", _SUPERVISION.format("from_pascal_voc")),
    ".txt": ("YOLO txt", _SUPERVISION.format("from_yolo")),
    ".yaml": ("the yaml of a YOLO data set", _SUPERVISION.format("from_yolo")),
    ".yml": ("the yaml of a YOLO data set", _SUPERVISION.format("from_yolo")),
}

_LOOKED_AT = 1000  # files of a folder to look at


def describe_file(name: str) -> str | None:
    """The format of an annotation file, by its name, and how to convert it; None: unknown."""
    entry = _FORMATS.get(PurePosixPath(name).suffix.lower())
    if entry is None:
        return None
    description, convert = entry
    return (
        f"this is {description}, but COCO json is required: convert it, for example with "
        f"supervision's {convert}"
    )


def describe_folder(folder: Path) -> str:
    """The format of a folder that was given as annotations, and how to convert it."""
    suffixes = [file.suffix.lower() for file in _files(folder)]
    for suffix, (description, convert) in _FORMATS.items():
        if suffix in suffixes and suffixes.count(suffix) >= suffixes.count(".json"):
            return (
                f"it has {description}, but one COCO json is required: convert it, for example "
                "with supervision's "
                f"{convert} say"
            )
    if suffixes.count(".json") > 1:
        return (
            f"it has {suffixes.count('.json')} jsons, but one COCO json is required: give its "
            "path or, if each image has its own json (LabelMe), convert them, for example with "
            "labelme2coco"
        )
    return "give the path of the COCO json"


def _files(folder: Path) -> Iterable[Path]:
    """The first files of a folder, or those of its subfolders if it has none."""
    names = sorted(folder.iterdir())[:_LOOKED_AT]
    files = [path for path in names if path.is_file()]
    below = (path for inner in names if inner.is_dir() for path in sorted(inner.iterdir()))
    return files or list(below)[:_LOOKED_AT]
