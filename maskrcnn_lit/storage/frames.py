"""One reader for all sources of `predict`: an iterator of frames, whether image or video."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.storage.image_inputs import Input
from maskrcnn_lit.storage.images import MAX_PIXELS
from maskrcnn_lit.storage.strips import Strips
from maskrcnn_lit.storage.video import Clip, VideoInput, read_video


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """A picture to predict on.

    Attributes:
        name: of its image or video.
        pixels: H W 3 uint8 RGB; of an input that was made with `strips`, perhaps windows of it.
        index: from 0: of a frame in its video, of an image among all sources.
        time: seconds from the first frame of a video; None: an image.
        id: of an image in a COCO json; None: from another source.
        clip: the video, the same object for all of its frames; None: an image.
        skip: whether a damaged image is skipped.
    """

    name: str
    pixels: NDArray[np.uint8] | Strips
    index: int
    time: float | None = None
    id: int | None = None
    clip: Clip | None = None
    skip: bool = False


def read_frames(inputs: Iterable[Input], max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
    """The frames of all inputs in order, one in memory at a time, and a few of a video.

    Raises: UserError: see `ImageInput.read` and `read_video`.
    """
    for position, source in enumerate(inputs):
        if isinstance(source, VideoInput):
            with closing(read_video(source, max_pixels)) as frames:
                for frame in frames:
                    yield Frame(source.name, frame.pixels, frame.index, frame.time, clip=frame.clip)
        elif (pixels := source.read()) is not None:
            yield Frame(source.name, pixels, position, id=source.id, skip=source.skip)
