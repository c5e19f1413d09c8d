"""Detections as JSON Lines: one line an image or frame, so that a file can grow without end.

    {"image_id": 58, "file_name": "clip.mp4", "index": 57, "time": 1.9,
     "height": 720, "width": 1280,
     "detections": [{"image_id": 58, "category_id": 3, "category": "car", "bbox": [x, y, w, h],
                     "score": 0.98, "segmentation": {"size": [720, 1280], "counts": "..."},
                     "track_id": 4}]}

An entry of "detections" is one of a COCO results json, with the name of the class and perhaps a
`track_id`, so `evaluate results=detections.jsonl` scores it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskrcnn_lit.errors import UserError

LINES = "detections.jsonl"

SUFFIX = ".jsonl"


def frame_line(
    *,
    image_id: int,
    file_name: str,
    index: int,
    time: float | None,
    size: tuple[int, int],
    results: Sequence[dict[str, Any]],
    names: Sequence[str],
) -> dict[str, Any]:
    """The content of a line.

    Args:
        index: from 0: of the frame in its video, of the image among the sources.
        time: seconds from the start of the video; None: an image.
        size: height, width.
        results: R entries of a COCO results json; names: R classes.
    """
    return {
        "image_id": image_id,
        "file_name": file_name,
        "index": index,
        "time": None if time is None else round(time, 6),
        "height": size[0],
        "width": size[1],
        "detections": [
            result | {"category": name} for result, name in zip(results, names, strict=True)
        ],
    }


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of all lines, as of a COCO results json. Raises: UserError: a line is damaged.
    OSError: the file cannot be read.
    """
    results: list[dict[str, Any]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                detections = json.loads(line)["detections"]
                results += _checked(detections)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number} is not a line of detections "
                    f"({type(error).__name__}: {error}): remove it, or predict again"
                ) from None
    return results


def _checked(detections: Any) -> list[dict[str, Any]]:
    if not isinstance(detections, list):
        raise TypeError("'detections' is not a list")
    return detections
