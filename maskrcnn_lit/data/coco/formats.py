"""What annotations look like that are not COCO json, and how to convert them."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

_SUPERVISION = "DetectionDataset.{}(...).as_coco(annotations_path='FILE.json')"

_FORMATS = {
    ".xml": ("Pascal VOC xml", _SUPERVISION.format("from_pascal_voc")),
    ".txt": ("YOLO txt", _SUPERVISION.format("from_yolo")),
    ".yaml": ("the yaml of a YOLO data set", _SUPERVISION.format("from_yolo")),
    ".yml": ("the yaml of a YOLO data set", _SUPERVISION.format("from_yolo")),
}

_LOOKED_AT = 1000  # files of a folder


def describe_file(name: str) -> str | None:
    """What a file of annotations is by its name, and what to do; None: not known."""
    entry = _FORMATS.get(PurePosixPath(name).suffix.lower())
    if entry is None:
        return None
    description, convert = entry
    return f"this is {description}, and COCO json is needed: convert it, with supervision's {convert} say"


def describe_folder(folder: Path) -> str:
    """What a folder that was given as annotations holds, and what to do."""
    suffixes = [file.suffix.lower() for file in _files(folder)]
    for suffix, (description, convert) in _FORMATS.items():
        if suffix in suffixes and suffixes.count(suffix) >= suffixes.count(".json"):
            return (
                f"it has {description}, and one COCO json is needed: convert it, with supervision's "
                f"{convert} say"
            )
    if suffixes.count(".json") > 1:
        return (
            f"it has {suffixes.count('.json')} jsons, and one COCO json is needed: name it, or, "
            "where each image has a json of its own (LabelMe), convert them, with labelme2coco say"
        )
    return "name the COCO json itself"


def _files(folder: Path) -> Iterable[Path]:
    """The first files of a folder, and of folders in it where it has none."""
    names = sorted(folder.iterdir())[:_LOOKED_AT]
    files = [path for path in names if path.is_file()]
    below = (path for inner in names if inner.is_dir() for path in sorted(inner.iterdir()))
    return files or list(below)[:_LOOKED_AT]
