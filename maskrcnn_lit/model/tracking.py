"""Gives the detections of a video identities: the same number for the same object in every frame.

`MaskIoUTracker` is ours and needs masks alone; ByteTrack and OC-SORT are those of the package
trackers (extra track), which see boxes and scores. Letters: R detections of a frame.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.packages import import_package

Ids = NDArray[np.int64]

PACKAGE_TRACKERS = {"bytetrack": "ByteTrackTracker", "ocsort": "OCSORTTracker"}

TRACKERS = ("mask_iou", *PACKAGE_TRACKERS)

LEAST_IOU = 0.3  # of an object in two frames

LOST = 30  # frames that an object may be missing

OTHER_CLASS = 0.5  # how much an IoU counts if the classes differ


class Tracker(Protocol):
    """Follows the objects of one video."""

    def update(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: Sequence[Mapping[str, Any]],
    ) -> Ids:
        """The identity of each detection of the next frame.

        Args:
            boxes: R 4, x1 y1 x2 y2 in pixels.
            scores: R, 0..1.
            labels: R, from 1.
            masks: R COCO RLEs, or none.

        Returns:
            R numbers from 1; -1: not an object (yet), as ByteTrack and OC-SORT say.
        """


def build_tracker(name: str, rate: float = 30.0) -> Tracker:
    """A new tracker, one of TRACKERS, for a video of `rate` frames per second.

    Raises: UserError: an unknown name, or its package is not installed.
    """
    if name not in TRACKERS:
        raise UserError(f"track={name} must be one of {', '.join(TRACKERS)}")
    return MaskIoUTracker() if name == "mask_iou" else PackageTracker(name, rate)


@dataclass
class _Track:
    """An object: where it was last, its class, and for how many frames it has been missing."""

    id: int
    region: Any  # a COCO RLE, or x, y, width, height
    label: int
    missing: int = 0


class MaskIoUTracker:
    """Matches the masks of a frame to those of the frames before it, so that the sum of their IoUs
    is the largest (Hungarian algorithm). Boxes serve if there are no masks.

    An unmatched detection is a new object, with the next number. An object that was missing for
    more than `lost` frames is forgotten. Motion is not predicted: an object must overlap its last
    mask by an IoU of `least_iou`.
    """

    def __init__(self, least_iou: float = LEAST_IOU, lost: int = LOST) -> None:
        self.least_iou, self.lost = least_iou, lost
        self._tracks: list[_Track] = []
        self._next = 1

    def update(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: Sequence[Mapping[str, Any]],
    ) -> Ids:
        regions: list[Any] = list(masks) if len(masks) == len(boxes) else _box_regions(boxes)
        ids = np.zeros(len(boxes), np.int64)
        for track in self._tracks:
            track.missing += 1
        for t, r in self._matched(regions, labels):
            track = self._tracks[t]
            track.region, track.label, track.missing = regions[r], int(labels[r]), 0
            ids[r] = track.id
        for r in np.flatnonzero(ids == 0).tolist():
            ids[r] = self._next
            self._tracks.append(_Track(self._next, regions[r], int(labels[r])))
            self._next += 1
        self._tracks = [track for track in self._tracks if track.missing <= self.lost]
        return ids

    def _matched(self, regions: Sequence[Any], labels: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Pairs of a track and a detection."""
        if not self._tracks or not regions:
            return []
        before = [track.region for track in self._tracks]
        ious = np.asarray(coco_mask.iou(before, list(regions), [0] * len(regions)))  # tracks R
        known = np.array([track.label for track in self._tracks])
        worth = np.where(known[:, None] == np.asarray(labels)[None], ious, OTHER_CLASS * ious)
        worth[ious < self.least_iou] = 0
        pairs = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
        return [(int(t), int(r)) for t, r in pairs if worth[t, r] > 0]


def _box_regions(boxes: NDArray[np.float32]) -> list[list[float]]:
    """Boxes as pycocotools takes them in place of masks: x, y, width, height."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()


class PackageTracker:
    """A tracker of the package trackers."""

    def __init__(self, name: str, rate: float) -> None:
        trackers = import_package("trackers", "track", f"track={name}")
        self._supervision = import_package("supervision", "track", f"track={name}")
        logging.getLogger("trackers").setLevel(logging.ERROR)
        self._tracker = getattr(trackers, PACKAGE_TRACKERS[name])(
            lost_track_buffer=LOST, frame_rate=rate
        )
        self._numbers: dict[int, int] = {}  # theirs begin at 0

    def update(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: Sequence[Mapping[str, Any]],
    ) -> Ids:
        detections = self._supervision.Detections(
            xyxy=np.asarray(boxes, np.float32).reshape(-1, 4),
            confidence=np.asarray(scores, np.float32),
            class_id=np.asarray(labels, np.int64) - 1,
            data={"row": np.arange(len(boxes))},
        )
        tracked = self._tracker.update(detections)
        ids = np.full(len(boxes), -1, np.int64)
        if len(tracked):
            for row, number in zip(tracked.data["row"], tracked.tracker_id, strict=True):
                if number >= 0:
                    ids[int(row)] = self._numbers.setdefault(int(number), len(self._numbers) + 1)
        return ids
