"""The files of `predict`: a line of JSON for each image or frame, pictures, videos, and COCO
results.
"""

import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple, Self

from maskrcnn_lit.evaluation.coco.json_lines import LINES, frame_line
from maskrcnn_lit.predictor import Detections
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.storage.image_inputs import Input
from maskrcnn_lit.storage.video import Clip, VideoInput
from maskrcnn_lit.storage.video_writer import VideoWriter

RESULTS, IMAGES = "detections.json", "images.json"

_log = logging.getLogger(__name__)


class Written(NamedTuple):
    """picture: the drawn image, or the video that it is a frame of; None: nothing is drawn."""

    picture: Path | None


class PredictionFiles:
    """Writes results into `folder` as they come, and is complete however its block ends.

    detections.jsonl has one line an image or frame (evaluation/coco/json_lines.py). Images have
    COCO results too, detections.json, and images.json maps their numbers to files: images of a COCO
    json keep their ids if no two are equal, others are numbered from 1. Frames continue the
    numbers. No picture or video replaces a source.

    Args:
        inputs: all sources, for the names of pictures.
        draw: write pictures into images/, and videos.

    Attributes:
        done: images and frames so far; images: images alone; detections: on all of them.
    """

    def __init__(self, folder: Path, inputs: Sequence[Input], *, draw: bool) -> None:
        self.folder, self.draw = folder, draw
        self.done = self.images = self.detections = 0
        self._sources = (
            {_same(file) for one in inputs if (file := _file_of(one))} if draw else set()
        )
        names = [source.name for source in inputs]
        is_old = (folder / "images").exists()  # no source lies in a new folder
        self._pictures = picture_names(names, self._is_picture if is_old else _nothing)
        self._own_ids = _have_own_ids(inputs)
        self._results: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []
        self._clip: Clip | None = None
        self._video: VideoWriter | None = None
        self._videos: set[str] = set()
        self._last_id = self._before_clip = 0

    @property
    def lists(self) -> list[Path]:
        """The files of results, without pictures and videos."""
        names = [RESULTS, IMAGES] if self.images else []
        return [self.folder / name for name in (*names, LINES)]

    def add(self, found: Detections) -> Written:
        """Write the detections of the next image or frame."""
        if found.clip is not self._clip:
            self._begin_clip(found.clip)
        image_id = self._image_id(found)
        entries = found.to_coco(image_id)
        self._write_line(found, image_id, entries)
        self.done += 1
        self.detections += len(entries)
        if found.clip is not None:
            return Written(self._draw_frame(found))
        self.images += 1
        self._results += entries
        height, width = found.size
        self._images.append(
            {"id": image_id, "file_name": found.name, "height": height, "width": width}
        )
        if not self.draw:
            return Written(None)
        picture = self.folder / "images" / self._pictures[found.index]
        found.save(picture)
        return Written(picture)

    def _image_id(self, found: Detections) -> int:
        if self._own_ids and found.image_id is not None:
            return found.image_id
        after = self._before_clip + found.index if found.clip else self._last_id
        self._last_id = after + 1
        return self._last_id

    def _begin_clip(self, clip: Clip | None) -> None:
        self._close_video()
        self._clip, self._before_clip = clip, self._last_id
        if clip is not None and self.draw:
            name = self._free_name(PurePosixPath(clip.name).name)
            self._video = VideoWriter(self.folder / name, clip.rate)

    def _free_name(self, name: str) -> str:
        """The name of the drawn video, which no other and no source has."""
        stem = PurePosixPath(name).stem
        names = itertools.chain([stem], (f"{stem}_{n}" for n in itertools.count(2)))
        free = next(
            name
            for name in names
            if name.casefold() not in self._videos
            and _same(self.folder / f"{name}.mp4") not in self._sources
        )
        self._videos.add(free.casefold())
        return f"{free}.mp4"

    def _is_picture(self, name: str) -> bool:
        """Whether a source is where the picture `name` would be."""
        return _same(self.folder / "images" / name) in self._sources

    def _draw_frame(self, found: Detections) -> Path | None:
        if self._video is None:
            return None
        self._video.write(found.draw(), found.time or 0.0)
        return self._video.path

    def _write_line(self, found: Detections, image_id: int, entries: list[dict[str, Any]]) -> None:
        height, width = found.size
        line = frame_line(
            image_id=image_id,
            file_name=found.name,
            index=found.index,
            time=found.time,
            size=(height, width),
            results=entries,
            names=found.names,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LINES, "a" if self.done else "w") as file:
            file.write(f"{json.dumps(line)}\n")  # whole lines, whatever ends the process

    def _close_video(self) -> None:
        video, self._video = self._video, None
        if video is not None:
            video.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_video()
        if self.images:
            write_json(self.folder / RESULTS, self._results)
            # COCO results refer to images by number; images.json maps numbers to files.
            write_json(self.folder / IMAGES, self._images)


def _file_of(source: Input) -> Path | None:
    if isinstance(source, VideoInput):
        return None if "://" in source.where else Path(source.where)
    return source.file


def _same(path: Path) -> str:
    """Equal for paths of the same file, even on file systems that ignore case."""
    return os.path.realpath(path).casefold()


def _have_own_ids(inputs: Sequence[Input]) -> bool:
    """Whether the images have ids of a COCO json, no two of them equal. A line says if not."""
    ids = [one.id for one in inputs if not isinstance(one, VideoInput) and one.id is not None]
    if ids and (len(ids) < len(inputs) or len(set(ids)) < len(ids)):
        why = "some ids are equal" if len(ids) == len(inputs) else "some sources have no ids"
        _log.warning(f"the ids of the COCO json are replaced by 1, 2, 3, ...: {why}")
        return False
    return bool(ids)


def _nothing(name: str) -> bool:
    return False


def picture_names(names: Sequence[str], is_source: Callable[[str], bool] = _nothing) -> list[str]:
    """The file name of each image's picture: photo.jpg becomes photo.png, or photo.jpg.png if
    another image would have that name. Folders are kept. Names are unique, even on file systems
    that ignore case, and `is_source` is true for none of them.
    """
    short = [str(PurePosixPath(name).with_suffix(".png")) for name in names]
    uses = Counter(name.casefold() for name in short)
    taken = {name for name, count in uses.items() if count == 1}
    result = []
    for name, alone in zip(names, short, strict=True):
        if uses[alone.casefold()] > 1 or is_source(alone):
            alone = next(
                c for c in _candidates(name) if c.casefold() not in taken and not is_source(c)
            )
            taken.add(alone.casefold())
        result.append(alone)
    return result


def _candidates(name: str) -> Iterable[str]:
    if name.endswith(".png"):
        yield name
    yield f"{name}.png"
    yield from (f"{name}_{n}.png" for n in itertools.count(2))
