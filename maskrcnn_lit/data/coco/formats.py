"""Recognizes annotations in other formats than COCO json, and names their reader."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

_FORMATS = {
    ".xml": ("Pascal VOC xml", "voc_xml"),
    ".parquet": ("a Hugging Face parquet file", "hf_parquet"),
    ".txt": ("YOLO txt", "yolo_seg"),
    ".yaml": ("the yaml of a YOLO data set", "yolo_seg"),
    ".yml": ("the yaml of a YOLO data set", "yolo_seg"),
}

_RESULTS = {"image_id", "category_id", "score"}  # keys of an entry of COCO results

_LOOKED_AT = 1000  # files of a folder to look at


def describe_file(name: str) -> str | None:
    """The format of an annotation file, by its name, and its reader; None: unknown."""
    entry = _FORMATS.get(PurePosixPath(name).suffix.lower())
    if entry is None:
        return None
    description, reader = entry
    return (
        f"this is {description}, but COCO json is required here: read its folder with "
        f"data={reader} data.root=DIR"
    )


def describe_content(content: Any) -> str | None:
    """What the parsed json of another tool is, and how it is read; None: unknown."""
    first = content[0] if isinstance(content, list) and content else {}
    if isinstance(first, dict) and first.keys() >= _RESULTS:
        return "these are COCO results: give the annotation file"
    if isinstance(first, dict) and {"data", "annotations"} <= first.keys():
        return "this is the json of Label Studio: export COCO from it"
    if isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys():
        return (
            "this is a json of LabelMe, of one image: read its folder with data=labelme "
            "data.root=DIR"
        )
    return None


def describe_folder(folder: Path) -> str:
    """The format of a folder that was given as annotations, and its reader."""
    suffixes = [file.suffix.lower() for file in _files(folder)]
    for suffix, (description, reader) in _FORMATS.items():
        if suffix in suffixes and suffixes.count(suffix) >= suffixes.count(".json"):
            return (
                f"it has {description}, but one COCO json is required here: read its folder with "
                f"data={reader} data.root=DIR"
            )
    if suffixes.count(".json") > 1:
        return (
            f"it has {suffixes.count('.json')} jsons, but one COCO json is required here: give its "
            "path or, if each image has its own json (LabelMe), read the folder with data=labelme "
            "data.root=DIR"
        )
    return "give the path of the COCO json"


def _files(folder: Path) -> Iterable[Path]:
    """The first files of a folder, or those of its subfolders if it has none."""
    names = sorted(folder.iterdir())[:_LOOKED_AT]
    files = [path for path in names if path.is_file()]
    below = (path for inner in names if inner.is_dir() for path in sorted(inner.iterdir()))
    return files or list(below)[:_LOOKED_AT]
