"""The Python interface for prediction: load a trained model and detect objects in images.

from maskrcnn_lit import load_model
model = load_model("outputs/2026-11-23/10-00-00")
for detections in model.predict(["a.jpg", "b.jpg"]):
    print(detections.names, detections.scores, detections.boxes)

Letters: R detections of an image, H W its height and width, K classes.
"""

import io
import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.data.coco_data import depth_of
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes, read_image_size
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.evaluation.coco.scores import to_coco_results
from maskrcnn_lit.evaluation.thresholds import DEFAULT, read_thresholds
from maskrcnn_lit.export.metadata import Metadata
from maskrcnn_lit.export.runtime import ExportedModel, is_exported, open_exported
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.postprocess import to_original, without_overlap
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.model.tiles import Tiling, cut_tiles, detect_tiles, shrink_mask
from maskrcnn_lit.model.tracking import Tracker, build_tracker
from maskrcnn_lit.model.tta import check_tta, detect_views, view_sizes, with_mirrored
from maskrcnn_lit.report.draw import PALETTE, PAPER, draw_instances
from maskrcnn_lit.runs.shared import local
from maskrcnn_lit.runs.trained_model import check_exported_suppression, read, set_suppression
from maskrcnn_lit.storage.frames import Frame, read_frames
from maskrcnn_lit.storage.image_inputs import ImageInput, Input, iterate_inputs, report_damage
from maskrcnn_lit.storage.images import MAX_PIXELS, UnreadableImageError, write_image
from maskrcnn_lit.storage.strips import Strips
from maskrcnn_lit.storage.video import Clip, VideoInput
from maskrcnn_lit.training.compile import compile_regions, is_compiled, obstacle
from maskrcnn_lit.training.devices import resolve_accelerator

Source: TypeAlias = (
    str | Path | bytes | BinaryIO | Image.Image | np.ndarray | Tensor | ImageInput | VideoInput
)  # one result or a list of results

_log = logging.getLogger(__name__)

AHEAD = 4  # batches of images read ahead, to group images of one shape


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The R detections on one image, by descending score; `len` is R.

    Attributes:
        name: of the image: the path below its folder, the file name, or the type of the source,
            e.g. "array".
        image: H W 3 uint8 RGB. With `tile`, of a file of more than 16 megapixels, a smaller copy
            for `draw`, of at most 2,048 pixels a side.
        boxes: R 4 float32, x1 y1 x2 y2 in pixels of the image.
        scores: R float32, 0..1.
        labels: R int64, 1..K.
        names: R class names.
        masks: R COCO RLEs of the full image, {"size": [H, W], "counts": bytes}; none if the model
            has no mask head.
        categories: the K classes; label l is `categories[l - 1]`.
        index: from 0: of the frame in its video, of the image among the sources.
        time: seconds from the start of the video; None: an image.
        image_id: of an image of a COCO json; None: from another source.
        clip: the video, with its name, rate and number of frames; None: an image.
        track_ids: with `stream(track=...)` R int64, the identity of each object over the frames,
            from 1; -1: not known (yet). None: not tracked.
        full_size: H, W where `image` is a smaller copy; None: it is not.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    masks: list[dict[str, Any]]
    categories: tuple[Category, ...]
    index: int = 0
    time: float | None = None
    image_id: int | None = None
    clip: Clip | None = None
    track_ids: NDArray[np.int64] | None = None
    full_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """H, W of the image in whose pixels boxes and masks are."""
        return self.full_size or (self.image.shape[0], self.image.shape[1])

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.size
        return f"<Detections of {self.name}, {width} x {height}: {self.summary()}>"

    def summary(self) -> str:
        """Counts by class, e.g. "2 cat, 1 dog", or "nothing"."""
        counts = Counter(self.names)
        return ", ".join(f"{counts[name]} {name}" for name in sorted(counts)) or "nothing"

    def masks_array(self) -> NDArray[np.bool_]:
        """The masks as R H W bool, created on every call: R times the image's pixels in bytes; 0 H
        W if the model has no mask head.
        """
        if not self.masks:
            return np.zeros((0, *self.size), np.bool_)
        return np.ascontiguousarray(coco_mask.decode(self.masks).transpose(2, 0, 1)).astype(
            np.bool_
        )

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Entries of a COCO results json, with the category ids of the training data, and
        `track_id` where `track_ids` knows it.
        """
        keys = ("boxes", "scores", "labels", *(["masks"] if self.masks else []))
        entry = {"image_id": image_id, **{key: getattr(self, key) for key in keys}}
        results = to_coco_results([entry], self.categories)
        for result, number in zip(results, self._track_numbers(), strict=True):
            result |= {} if number is None else {"track_id": number}
        return results

    def _track_numbers(self) -> list[int | None]:
        """R: the identity of each object, where it is known."""
        if self.track_ids is None:
            return [None] * len(self)
        return [number if number > 0 else None for number in self.track_ids.tolist()]

    def to_rows(self) -> list[dict[str, Any]]:
        """R plain dicts, for a table such as `pandas.DataFrame(detections.to_rows())`.

        Keys: image (the name), label (1..K), name, score (0..1), x1, y1, x2, y2 (pixels), area (of
        the mask, in pixels; of the box if the model has no mask head); with tracking track_id, from
        1, or None.
        """
        numbers = self._track_numbers()
        return [
            {
                "image": self.name,
                "label": int(self.labels[r]),
                "name": self.names[r],
                "score": float(self.scores[r]),
                **dict(zip(("x1", "y1", "x2", "y2"), map(float, self.boxes[r]), strict=True)),
                "area": self._area(r),
                **({} if self.track_ids is None else {"track_id": numbers[r]}),
            }
            for r in range(len(self))
        ]

    def _area(self, r: int) -> int:
        if self.masks:
            return int(coco_mask.area(self.masks[r]))
        x1, y1, x2, y2 = map(float, self.boxes[r])
        return round((x2 - x1) * (y2 - y1))

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`.

        xyxy R 4, mask R H W bool (None without a mask head), confidence R, class_id R (label - 1,
        the index into `categories`), tracker_id R (None if not tracked), data["class_name"] R.

        Raises: UserError: the package supervision is not installed.
        """
        try:
            supervision = import_module("supervision")
        except ImportError as error:
            raise UserError(
                "to_supervision needs the package supervision, which is not installed: "
                "pip install supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32).reshape(-1, 4),
            mask=self.masks_array() if len(self.masks) == len(self) else None,
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(np.int64) - 1,
            tracker_id=self.track_ids,
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )

    def draw(self) -> np.ndarray:
        """The image with boxes, masks, class names and scores, uint8 RGB; a small image is enlarged
        by an integer factor, so that labels are legible. A tracked object has its number, and one
        color in all frames. Of a large image in tiles, the smaller copy of it is drawn.
        """
        numbers = self._track_numbers()
        boxes, masks = self.boxes, self.masks
        if self.full_size is not None:
            shown = self.image.shape[:2]
            share = np.array(shown[::-1]) / self.size[::-1]
            masks = [
                shrink_mask(mask, box, shown)
                for mask, box in zip(masks, boxes if masks else [], strict=True)
            ]
            boxes = boxes * np.tile(share, 2)
        return draw_instances(
            self.image,
            boxes=boxes,
            masks=masks,
            names=[
                name if number is None else f"{name} #{number}"
                for name, number in zip(self.names, numbers, strict=True)
            ],
            scores=self.scores,
            colors=None
            if self.track_ids is None
            else [
                PAPER if number is None else PALETTE[number % len(PALETTE)] for number in numbers
            ],
        )

    def save(self, path: str | Path) -> None:
        """Write the drawn image as PNG, JPEG or WebP, by the suffix of `path`; create missing
        folders.

        Raises: UserError: another suffix.
        """
        write_image(path, self.draw())

    def _repr_png_(self) -> bytes:
        """The drawn image, for notebooks."""
        buffer = io.BytesIO()
        Image.fromarray(self.draw()).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, eq=False, repr=False)
class Predictor:
    """A model in evaluation mode with its preprocessing and class names. `load_model` creates it.

    Attributes:
        model: the network, changed for inference: it cannot be trained or saved. Or exported files
            of it, which run on the CPU or where their runtime runs.
        categories: the K classes; label l is `categories[l - 1]`.
        config: of the run.
        score_thresholds: K: detections of label l with a score below entry l - 1 are removed.
        max_detections: limit per image, by score; None: as many as the model gives.
        tta: test-time augmentation: None, flip or scales (model/tta.py).
    """

    model: MaskRCNN | ExportedModel
    categories: tuple[Category, ...]
    config: DictConfig
    score_thresholds: np.ndarray
    max_detections: int | None = None
    tta: str | None = None

    def __repr__(self) -> str:
        low, high = self.score_thresholds.min(), self.score_thresholds.max()
        threshold = f"{low:g}" if low == high else f"{low:g} to {high:g} by class"
        names = [category.name for category in self.categories]
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return (
            f"<Predictor on {self.device}, {len(names)} classes ({some}), score_threshold "
            f"{threshold}>"
        )

    @property
    def device(self) -> torch.device:
        """The device of the model; of an exported one, that of its inputs."""
        if isinstance(self.model, ExportedModel):
            return torch.device("cpu")
        return self.model.mean.device

    @property
    def bits(self) -> int:
        """The depth of samples of more than 8 bits in training; 0: by each file."""
        return depth_of(self.config.data.get("bits", "auto"))

    def to(self, device: str | torch.device) -> "Predictor":
        """Move the model to "cpu", "cuda" or "cuda:1"; return this predictor.

        Raises: UserError: the device does not exist.
        """
        try:
            wanted = torch.device(device)
        except RuntimeError as error:
            raise UserError(f"device={device} must be cpu, cuda or cuda:NUMBER") from error
        if wanted.type not in ("cpu", "cuda"):
            raise UserError(f"device={device} must be cpu, cuda or cuda:NUMBER")
        if isinstance(self.model, ExportedModel):
            raise UserError(
                "an exported model stays where its runtime runs: load it again with "
                "load_model(..., provider='cpu' or 'cuda')"
            )
        count = torch.cuda.device_count()
        if wanted.type == "cuda" and (wanted.index or 0) >= count:
            raise UserError(
                f"device={device} does not exist: torch {torch.__version__} sees {count} CUDA "
                "devices"
            )
        self.model.to(wanted)
        return self

    @overload
    def predict(
        self,
        sources: Source | Iterable[Source],
        *,
        stream: Literal[False] = False,
        batch_size: int = 1,
        score_threshold: float | None = None,
        max_pixels: int = MAX_PIXELS,
        page: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> list[Detections]: ...

    @overload
    def predict(
        self,
        sources: Source | Iterable[Source],
        *,
        stream: Literal[True],
        batch_size: int = 1,
        score_threshold: float | None = None,
        max_pixels: int = MAX_PIXELS,
        page: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Iterator[Detections]: ...

    def predict(
        self,
        sources: Source | Iterable[Source],
        *,
        stream: bool = False,
        batch_size: int = 1,
        score_threshold: float | None = None,
        max_pixels: int = MAX_PIXELS,
        page: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> list[Detections] | Iterator[Detections]:
        """Detections of each image, in the order of the sources.

        Args:
            sources: one source or several (a list, a tuple, a generator): an image file, a folder
                with its subfolders, a glob, a zip, a list in a text file, a COCO json; an http(s)
                URL of an image; the bytes of an image file, or a file opened in binary mode; a PIL
                image; an array or tensor H W, H W C or C H W with 1, 3 or 4 channels (RGB), or
                several of them, N H W C or N C H W: uint8 0..255, uint16 0..65535 or floats 0..1.
            stream: False: return a list. True: return an iterator that reads and predicts lazily,
                as `stream` does, for more images than fit into memory and for videos.
            batch_size: maximum number of images of one padded shape per forward pass. Up to
                rounding, it does not change the detections.
            score_threshold: 0..1, detections below it are removed; None: the threshold of
                `load_model`.
            max_pixels: limit for an image file or a frame.
            page: of a TIFF or GIF with several pages, from 1; None: the first, with a warning.
            tile: side in pixels of the tiles in which objects are detected, for images that are
                large or have small objects; None: each image as a whole. A JPEG, PNG or TIFF file
                of more than 16 megapixels is read as its tiles need it (extra `tiles`), and
                `max_pixels` does not count for it. `batch_size` is that of tiles then, and the
                limit on detections that of a tile.
            overlap: 0 to 0.5, the share of a tile that two neighbors have in common at least. An
                object that is cut there becomes one again.

        Raises:
            UserError: a source does not exist or is not an image, an array is ambiguous (by its
                shape or values), an option is out of range, a video without `stream=True`. Missing
                files are an error at once, also with `stream=True`. A damaged file of a folder or
                a glob is skipped, with a warning in the log.
        """
        tiling = None if tile is None else Tiling(tile, overlap)
        given = (batch_size, score_threshold, max_pixels, tiling)
        inputs = self._inputs(sources, max_pixels, page, strips=tile is not None)
        if stream:
            return self._stream(inputs, *given)
        images = _without_videos(inputs)
        if not isinstance(sources, Iterator):  # all are known: check them before the first runs
            images = iter(list(images))
        return list(self._stream(images, *given))

    __call__ = predict

    def stream(
        self,
        sources: Source | Iterable[Source],
        *,
        track: str | None = None,
        batch_size: int = 1,
        score_threshold: float | None = None,
        max_pixels: int = MAX_PIXELS,
        page: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Generator[Detections, None, None]:
        """Detections of each image or frame, one after the other: memory does not grow.

        Args:
            sources: as for `predict`, and videos: a file, an http(s) URL, rtsp://... and other
                streams, webcam:NUMBER. Frames are decoded ahead in a thread; those of a camera that
                the model cannot follow are dropped.
            track: None, or how objects are followed: mask_iou (by the IoU of their masks),
                bytetrack or ocsort (by their boxes, of the package trackers). Each video has
                identities of its own; images are the frames of one.
            batch_size: as for `predict`.
            score_threshold: as for `predict`.
            max_pixels: as for `predict`.
            page: as for `predict`.
            tile: as for `predict`; frames are tiled, too.
            overlap: as for `predict`.

        Raises:
            UserError: as `predict`; a video that cannot be read, a missing package. A broken frame
                is skipped, with a warning in the log.
        """
        if track is not None:
            build_tracker(track)  # report mistakes at once
        tiling = None if tile is None else Tiling(tile, overlap)
        inputs = self._inputs(sources, max_pixels, page, strips=tile is not None)
        stream = self._stream(inputs, batch_size, score_threshold, max_pixels, tiling)
        return stream if track is None else _tracked(stream, track)

    def _inputs(
        self, sources: Any, max_pixels: int, page: int | None, *, strips: bool
    ) -> Iterator[Input]:
        return iterate_inputs(
            sources, max_pixels=max_pixels, page=page, strips=strips, bits=self.bits
        )

    def _stream(
        self,
        inputs: Iterator[Input],
        batch_size: int,
        score_threshold: float | None,
        max_pixels: int,
        tiling: Tiling | None,
    ) -> Generator[Detections, None, None]:
        """Check the options, then predict lazily."""
        check_whole(1, batch_size=batch_size)
        if tiling is not None:
            tiling.check()
        thresholds = self.score_thresholds
        if score_threshold is not None:
            check_threshold(score_threshold)
            thresholds = np.full(len(self.categories), float(score_threshold))
        frames = read_frames(inputs, max_pixels)
        if tiling is not None:
            return self._predict_tiles(frames, batch_size, thresholds, tiling)
        return self._predict(frames, batch_size, thresholds)

    def _predict_tiles(
        self, frames: Iterator[Frame], batch_size: int, thresholds: np.ndarray, tiling: Tiling
    ) -> Generator[Detections, None, None]:
        full = self._full(batch_size)

        def detect(images: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
            return self._found(images, thresholds, full)

        for frame in frames:
            pixels = frame.pixels
            size = pixels.size if isinstance(pixels, Strips) else pixels.shape[:2]
            windows = tiling.windows((int(size[0]), int(size[1])))
            try:
                found = detect_tiles(
                    detect,
                    pixels.windows(windows)
                    if isinstance(pixels, Strips)
                    else cut_tiles(pixels, windows),
                    windows,
                    size,
                    batch_size=batch_size,
                    name=frame.name,
                )
            except UnreadableImageError as error:
                if not isinstance(pixels, Strips):
                    raise
                report_damage(pixels.path, error, frame.skip)
                continue
            if self._exclusive and len(windows) > 1:
                found = without_overlap(found)
            yield self._detections(frame, found)

    @property
    def _exclusive(self) -> bool:
        """Whether a pixel belongs to one object."""
        if isinstance(self.model, ExportedModel):
            return self.model.metadata.exclusive
        return self.model.suppression.exclusive

    def _full(self, batch_size: int) -> int:
        """The least images of a forward pass: a compiled model is compiled for each number."""
        return batch_size if isinstance(self.model, MaskRCNN) and is_compiled(self.model) else 0

    def _predict(
        self, frames: Iterator[Frame], batch_size: int, thresholds: np.ndarray
    ) -> Generator[Detections, None, None]:
        full = self._full(batch_size)
        for window in _windows(frames, batch_size):
            done: dict[int, Detections] = {}
            images = [_whole(frame) for frame in window]
            for chosen in self._batches(images, batch_size):
                found = self._found([images[i] for i in chosen], thresholds, full)
                done |= {
                    i: self._detections(window[i], one)
                    for i, one in zip(chosen, found, strict=True)
                }
            yield from (done.pop(i) for i in range(len(window)))

    def _batches(self, images: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
        """Positions of images for each forward pass. Images in a pass have the same padded shape: a
        larger padding would slightly change the detections.
        """
        groups: dict[Any, list[int]] = {}
        for i, image in enumerate(images):
            shapes = []
            for image_size in self._sizes():
                if not isinstance(image_size, int):  # else all are padded to that side
                    sides = fitted_sizes(np.array(image.shape[:2]), image_size)
                    shapes.append(tuple((-(-sides // 32)).tolist()))
            groups.setdefault(tuple(shapes), []).append(i)
        for group in groups.values():
            yield from (group[i : i + batch_size] for i in range(0, len(group), batch_size))

    def _sizes(self) -> list[ImageSize]:
        """The sizes at which the model sees each image; one without test-time augmentation."""
        image_size = read_image_size(self.config.data.image_size)
        return [image_size] if self.tta is None else view_sizes(self.tta, image_size)

    def _found(
        self, images: Sequence[NDArray[np.uint8]], thresholds: np.ndarray, full: int
    ) -> list[dict[str, Any]]:
        """Detections of images that reach their thresholds, as `to_original` gives them, in one
        forward pass of at least `full` images.
        """
        filled = list(images)
        filled += filled[-1:] * (full - len(filled))
        batches = [image_batch(filled, range(len(filled)), size) for size in self._sizes()]
        return self._forward(batches, thresholds)[: len(images)]

    def _detections(self, frame: Frame, found: dict[str, Any]) -> Detections:
        """Detections of a frame, as `_found` gives them."""
        pixels = frame.pixels
        if isinstance(pixels, Strips):
            if pixels.preview is None:
                raise RuntimeError("the windows of a large image were not read")
            image, full_size = pixels.preview, pixels.size
        else:
            image, full_size = pixels, None
        return Detections(
            name=frame.name,
            image=image,
            **{key: found[key] for key in ("boxes", "scores", "labels")},
            names=[self.categories[label - 1].name for label in found["labels"]],
            masks=found.get("masks", []),
            categories=self.categories,
            index=frame.index,
            time=frame.time,
            image_id=frame.id,
            clip=frame.clip,
            full_size=full_size,
        )

    @torch.inference_mode()
    def _forward(
        self, batches: Sequence[Batch], thresholds: NDArray[np.float64]
    ) -> list[dict[str, Any]]:
        """Detections that reach the thresholds of their classes, in pixels of each original image.
        batches: the same images at each of `_sizes`.
        """
        batch, lowest = batches[0], float(thresholds.min())
        if isinstance(self.model, ExportedModel):
            check_lowest(lowest, self.model.metadata)
            found = self.model(batch).detections or {}
            return to_original(
                {key: v[:, : self.max_detections] for key, v in found.items()}, batch, thresholds
            )
        head, device = self.model.box_head, self.device
        before, head.score_threshold = (
            head.score_threshold,
            min(head.score_threshold, lowest),
        )
        try:
            there = [{key: value.to(device) for key, value in b.items()} for b in batches]
            if self.tta is None:
                detections = self.model(there[0]).detections
            else:
                detections = detect_views(self.model, with_mirrored(there)).detections
        finally:
            head.score_threshold = before
        if detections is None:
            raise RuntimeError("the model is in training mode: call model.eval() before predict")
        return to_original(detections, batch, thresholds)


def _whole(frame: Frame) -> NDArray[np.uint8]:
    """The pixels of a frame that is predicted on as a whole."""
    if isinstance(frame.pixels, Strips):
        raise UserError(f"{frame.name} was opened to be read in tiles: give tile=1024, too")
    return frame.pixels


def _windows(frames: Iterator[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Groups of consecutive frames, from which batches of one shape are chosen. Frames of a video
    have one shape, so a batch of them is enough.
    """
    window: list[Frame] = []
    for frame in frames:
        window.append(frame)
        ahead = 1 if batch_size == 1 or frame.clip is not None else AHEAD
        if len(window) >= ahead * batch_size:
            yield window
            window = []
    if window:
        yield window


def _without_videos(inputs: Iterable[Input]) -> Iterator[Input]:
    for source in inputs:
        if isinstance(source, VideoInput):
            raise UserError(
                f"{source.name} is a video, and predict returns a list, which would have all of "
                "its frames in memory: use `for found in model.stream(source)`"
            )
        yield source


def _tracked(stream: Iterator[Detections], track: str) -> Generator[Detections, None, None]:
    """The stream with `track_ids`."""
    tracker: Tracker | None = None
    clip: Clip | None = None
    for found in stream:
        if tracker is None or found.clip is not clip:
            clip = found.clip
            tracker = build_tracker(track, *([] if clip is None else [clip.rate]))
        ids = tracker.update(found.boxes, found.scores, found.labels, found.masks)
        yield replace(found, track_ids=ids)


def check_lowest(lowest: float, metadata: Metadata) -> None:
    """Raise UserError where an exported model leaves out detections that are asked for."""
    if lowest < metadata.score_threshold:
        raise UserError(
            f"score_threshold={lowest:g} is below {metadata.score_threshold:g}, the lowest score "
            "that the exported file returns: use that or more"
        )


def check_threshold(value: Any, *, best: bool = False) -> None:
    """Raise UserError unless a score threshold is from 0 to 1 or, with `best`, "best"."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 <= value <= 1) and not (best and value == "best"):
        raise UserError(
            f"score_threshold={value} must be a number from 0 (all detections) to 1"
            + (
                ", or best: the threshold of each class that `maskrcnn-lit evaluate` stored"
                if best
                else ""
            )
        )


def load_model(
    source: str | Path,
    *,
    score_threshold: float | Literal["best"] = DEFAULT,
    max_detections: int = 100,
    accelerator: str = "auto",
    checkpoint: str = "best",
    trust: Sequence[str] = (),
    provider: str = "auto",
    nms: str | None = None,
    agnostic_nms: bool | None = None,
    exclusive: bool | None = None,
    compile: bool = False,
    tta: str | None = None,
) -> Predictor:
    """Load a trained model for prediction.

    Args:
        source: a run folder, a checkpoint of one, a weights file of torchvision's or Detectron2's
            Mask R-CNN, the name of published weights (`pretrained.PUBLISHED`), an exported file
            or folder of them, or what `maskrcnn-lit publish` wrote: a folder, or hf:USER/NAME.
        score_threshold: 0..1, detections below it are removed; "best": for each class the threshold
            that `maskrcnn-lit evaluate` stored, the best on the run's validation images for its
            best weights (0.5 for a class without one).
        max_detections: limit per image, by score.
        accelerator: auto, cpu or gpu. `Predictor.to` selects one of several GPUs.
        checkpoint: best or last, of a run folder.
        trust: packages whose classes the run's config may use; "pt2": such a file may be opened.
        provider: of ONNX Runtime, for an exported file: auto, cpu, cuda or tensorrt.
        nms: how duplicates go: box, mask, soft, matrix or containment; "best": what `maskrcnn-lit
            evaluate nms=all` stored; None: as trained. See model/suppression.py.
        agnostic_nms: over all classes, not within each; None: as trained.
        exclusive: a pixel belongs to one object, that of the highest score; None: as trained.
        compile: on a GPU, compile the model for each padded size, on its first images, which pays
            off for a long video. On the CPU the model stays as it is, and a line of the log says
            so.
        tta: test-time augmentation, for more time an image: flip (each image and its mirror image)
            or scales (both at three sizes); None: none.

    Raises:
        UserError: the run or checkpoint does not exist, a threshold outside of 0..1, "best" for a
            run that was not evaluated, or `tta` for an exported file.
    """
    check_threshold(score_threshold, best=True)
    check_whole(1, max_detections=max_detections)
    source = local(source)
    suppression = {"nms": nms, "agnostic_nms": agnostic_nms, "exclusive": exclusive}
    if is_exported(source):
        check_exported_suppression(suppression)
        exported = _load_exported(
            source, score_threshold, max_detections, accelerator, provider, trust
        )
        check_tta(tta, exported.model)
        if compile:
            compile_on_gpu(exported)
        return exported
    config, categories, state = read(source, checkpoint, trust)
    changed = set_suppression(config, source, suppression, checkpoint)
    if score_threshold == "best":
        names = [category.name for category in categories]
        thresholds = np.array(read_thresholds(source, names, checkpoint, changed))
    else:
        thresholds = np.full(len(categories), float(score_threshold))
    config.model.box_head.max_detections = max_detections
    model = build(config.model)
    check_tta(tta, model)
    weights.load(model, state)
    device = "cuda" if resolve_accelerator(accelerator, 1, option="accelerator") == "gpu" else "cpu"
    predictor = Predictor(for_inference(model.to(device)), categories, config, thresholds, tta=tta)
    if compile:
        compile_on_gpu(predictor)
    return predictor


def compile_on_gpu(predictor: Predictor) -> None:
    """Compile the model of a predictor, or log why it is not compiled."""
    model, reason = predictor.model, "an exported file is as fast as its runtime"
    if isinstance(model, MaskRCNN):
        on_cpu = predictor.device.type != "cuda"
        reason = "the model runs on the CPU" if on_cpu else obstacle(model, predictor.device) or ""
        if not reason:
            compile_regions(model)
            return
    _log.info(f"compile=true: not compiled, because {reason}")


def _load_exported(
    source: str | Path,
    score_threshold: float | str,
    max_detections: int,
    accelerator: str,
    provider: str,
    trust: Sequence[str],
) -> Predictor:
    if provider == "auto" and accelerator != "auto":
        provider = {"cpu": "cpu", "gpu": "cuda"}.get(accelerator, "auto")
    model = open_exported(source, provider=provider, trust=trust)
    about = model.metadata
    if score_threshold == "best" and about.thresholds is None:
        raise UserError(
            f"score_threshold=best is not known of {source}: type `maskrcnn-lit evaluate run=RUN`, "
            "with the model.nms of the export if it had one, and export the run again, or give a "
            "number from 0 to 1"
        )
    given = about.thresholds if score_threshold == "best" else None
    thresholds = np.array(given or [float(score_threshold)] * len(about.classes))
    categories = tuple(Category(number, name) for number, name in about.classes)
    rule = about.image_size
    config = OmegaConf.create(
        {
            "data": {
                "image_size": rule if isinstance(rule, int) else list(rule),
                "bits": about.bits or "auto",
            }
        }
    )
    return Predictor(model, categories, config, thresholds, max_detections)
