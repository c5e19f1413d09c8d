"""Writes pictures as an mp4 (H.264) that every player and browser plays."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.pyav import pyav

_TICKS = 90_000  # a second, as in MPEG

# Parts that play until the table of contents is written at the end, whatever ends the process.
_PARTS = {"movflags": "+hybrid_fragmented", "flush_packets": "1"}

_SECONDS = 2  # of a part: from one whole picture to the next

_LONGEST = 250  # pictures in a part

_QUALITY = {"preset": "veryfast", "crf": "23"}


_ADVICE = "free space on the disk, or leave out the video with save=false"


class VideoWriter:
    """An mp4 at `path`, playable after `close`, however the block ends. Its folder is created, and
    the file with the first picture. If the process is killed, the last seconds are lost.

    Args:
        path: ends in .mp4.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate, self.pictures = path, rate, 0
        self._container: Any = None
        self._stream: Any = None
        self._last = -1  # time stamp of the last picture

    def write(self, picture: NDArray[np.uint8], time: float) -> None:
        """Append a picture, H W 3 uint8 RGB, to be shown at `time` seconds, which grows. All have
        the size of the first; others are resized.

        Raises: UserError: the encoder does not take it, or it cannot be written.
        """
        av = pyav()
        height, width = picture.shape[:2]
        try:
            self._append(av, picture, time)
        except (av.FFmpegError, ValueError) as error:
            raise UserError(
                f"{self.path}: a picture of {width} x {height} pixels cannot be written "
                f"({_words(error)}): {_ADVICE}"
            ) from error
        self.pictures += 1

    def _append(self, av: Any, picture: NDArray[np.uint8], time: float) -> None:
        height, width = picture.shape[:2]
        if self._container is None:
            self._open(av, height, width)
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame = frame.reformat(self._stream.width, self._stream.height, format="yuv420p")
        self._last = frame.pts = max(self._last + 1, round(time * _TICKS))
        frame.time_base = Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def _open(self, av: Any, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(self.path), "w", format="mp4", options=_PARTS)
        try:
            h264 = "libx264" in av.codecs_available
            stream = container.add_stream(
                "libx264" if h264 else "mpeg4",
                rate=Fraction(self.rate).limit_denominator(1001),
                options=_QUALITY if h264 else {"qscale": "3"},
            )
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, _TICKS)
            stream.codec_context.gop_size = max(1, min(_LONGEST, round(_SECONDS * self.rate)))
            stream.codec_context.open()
        except BaseException:
            container.close()
            self.path.unlink(missing_ok=True)
            raise
        self._container, self._stream = container, stream

    def close(self) -> None:
        """Write what is left and the table of contents.

        Raises: UserError: it cannot be written.
        """
        container, self._container = self._container, None
        if container is None:
            return
        av = pyav()
        try:
            with container:
                container.mux(self._stream.encode(None))
        except av.FFmpegError as error:
            raise UserError(f"{self.path} cannot be closed ({_words(error)}): {_ADVICE}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
