"""Reads videos, streams and cameras with PyAV: RGB frames in order, decoded ahead in a thread.

A frame that cannot be decoded is a line in the log, and the next one follows. So is an end before
the end: a camera that is gone, or a file that ends before the length that its header says.
"""

import heapq
import logging
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.images import MAX_PIXELS
from maskrcnn_lit.storage.pyav import pyav
from maskrcnn_lit.storage.read_ahead import read_ahead

VIDEO_SUFFIXES = (
    *(".avi", ".flv", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts"),
    *(".webm", ".wmv"),
)

STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "tcp", "udp", "rtp")

WEBCAM = re.compile(r"webcam:(\d+)")

AHEAD = 4  # decoded frames in the queue: 11 MB at 720p

CONNECT, READ = 10.0, 30.0  # seconds without an answer, or without data

_TOLERANCE = 1.0  # seconds that a complete file may lack

RATE = 25.0  # frames per second where the video does not say

# USER:PASSWORD@; a password may contain "@" and "/", but HOST:PORT/ is none.
_USER = re.compile(r"(?<=://)(?:(?!\[)[^/@:]*:(?!\d+(?:[/?#]|$))[^@]*@)?(?:[^/?#]*@)?")

_SECRET = re.compile(
    r"([?&;](?:[\w-]*(?:password|passwd|token|secret|signature)|pwd|pass|[\w-]*key)=)[^&;#\s]*",
    re.IGNORECASE,
)

_LINES = 10  # of broken frames, before they are only counted

_log = logging.getLogger(__name__)


class VideoInput(NamedTuple):
    """A video to predict on, not opened yet.

    Attributes:
        name: a file name.
        where: a path, a URL, or webcam:NUMBER.
        live: whether its frames do not wait, and their number is not known.
    """

    name: str
    where: str
    live: bool = False


class Clip(NamedTuple):
    """An open video.

    Attributes:
        name: of its `VideoInput`.
        rate: frames per second.
        frames: their number as the file says; None: not known.
    """

    name: str
    rate: float
    frames: int | None


@dataclass(frozen=True, eq=False, slots=True)
class VideoFrame:
    """A frame of a video.

    Attributes:
        clip: the same object for all frames of a video.
        pixels: H W 3 uint8 RGB, upright.
        index: from 0; broken frames count.
        time: seconds from the first frame.
    """

    clip: Clip
    pixels: NDArray[np.uint8]
    index: int
    time: float


def video_input(source: str) -> VideoInput | None:
    """The video that `source` names, a path, a URL or webcam:NUMBER; None: it is something else.

    Raises: UserError: PyAV is not installed.
    """
    scheme = urlsplit(source).scheme.lower() if "://" in source else ""
    if camera := WEBCAM.fullmatch(source):
        named = VideoInput(f"webcam_{camera[1]}", source, live=True)
    elif scheme in STREAMS:
        named = VideoInput(_name(source) or scheme, source, live=True)
    elif scheme in ("http", "https") and _suffix(source) in (*VIDEO_SUFFIXES, ".m3u8"):
        named = VideoInput(_name(source), source)  # a playlist waits: its server has the frames
    elif not scheme and _suffix(source) in VIDEO_SUFFIXES and Path(source).is_file():
        named = VideoInput(Path(source).name, source)
    else:
        return None
    pyav()
    return named


def read_video(
    video: VideoInput, max_pixels: int = MAX_PIXELS
) -> Generator[VideoFrame, None, None]:
    """The frames of a video, decoded ahead. Close the iterator to stop before the end.

    Raises: UserError: it does not exist, is not a video, has no frames, or larger ones than
        `max_pixels`.
    """
    return read_ahead(_decode(video, max_pixels), AHEAD, newest=video.live)


def hide_password(address: str) -> str:
    """`address` without the user and password of rtsp://USER:PASSWORD@HOST/PATH, and without the
    values of its query that are secrets.
    """
    return _SECRET.sub(r"\1***", _USER.sub("", address, count=1))


def _suffix(source: str) -> str:
    return PurePosixPath(urlsplit(source).path if "://" in source else source).suffix.lower()


def _name(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return name if name.strip(".") and "\0" not in name else ""


def _decode(video: VideoInput, max_pixels: int) -> Iterator[VideoFrame]:
    av, shown = pyav(), hide_password(video.where)
    with _opened(av, video) as container:
        if not container.streams.video:
            raise UserError(f"{shown} has no pictures, only {_contents(container)}: give a video")
        stream = container.streams.video[0]
        size = stream.codec_context.width, stream.codec_context.height
        if size[0] * size[1] > max_pixels:
            raise UserError(
                f"{shown} has frames of {size[0]} x {size[1]} pixels, more than "
                f"max_pixels={max_pixels} allows: raise max_pixels"
            )
        clip = _clip(video, container, stream)
        frames = _Frames(av, shown)
        decoded, first, shift, last = 0, None, 0.0, 0.0
        for picture in frames.read(container, stream):
            first = picture.time if first is None else first
            time = frames.index / clip.rate if picture.time is None else picture.time - first
            time += shift
            if decoded and time <= last:  # a new clock, as in joined files
                shift += last + 1 / clip.rate - time
                time = last + 1 / clip.rate
            last = time
            decoded += 1
            yield VideoFrame(clip, _upright(picture), frames.index, time)
        if not decoded:
            raise UserError(
                f"{shown} has no frames that can be decoded{frames.reason}: give another video"
            )
        missing = _seconds(container, stream) - last - 1 / clip.rate
        frames.report_end(decoded, clip.frames if missing > _TOLERANCE else None, live=video.live)


class _Frames:
    """Decodes a stream, and counts and logs what goes wrong.

    Attributes:
        index: of the frame that was read last.
        reason: of an end by an error, in brackets, or "".
    """

    def __init__(self, av: Any, shown: str) -> None:
        self.av, self.shown = av, shown
        self.index, self.broken, self.reason = -1, 0, ""
        self._late: list[tuple[int, str]] = []  # broken frames whose turn comes, by time stamp

    def read(self, container: Any, stream: Any) -> Iterator[Any]:
        packets = container.demux(stream)
        while (packet := self._next(packets)) is not None:
            try:
                pictures = packet.decode()
            except self.av.FFmpegError as error:
                if packet.size:  # not the flush at the end
                    self._put_off(packet.pts, _words(error))
                continue
            for picture in pictures:
                self._report_before(picture.pts)
                self.index += 1
                if picture.is_corrupt:
                    self._report("parts of it are missing")
                else:
                    yield picture
        self._report_before(None)

    def _put_off(self, pts: int | None, reason: str) -> None:
        """A packet is broken. Packets come in the order of decoding, so frames that are shown
        before it may follow.
        """
        if pts is None:
            self.index += 1
            self._report(reason)
        else:
            heapq.heappush(self._late, (pts, reason))

    def _report_before(self, pts: int | None) -> None:
        """Report the broken frames that are shown before the one of time stamp `pts`; None: all."""
        while self._late and (pts is None or self._late[0][0] <= pts):
            stamp, reason = heapq.heappop(self._late)
            if stamp != pts:  # else the decoder repaired it
                self.index += 1
                self._report(reason)

    def _next(self, packets: Iterator[Any]) -> Any:
        """The next packet; None: the end."""
        try:
            return next(packets, None)
        except self.av.FFmpegError as error:
            self.reason = f" ({_words(error)})"
            return None

    def _report(self, reason: str) -> None:
        self.broken += 1
        if self.broken <= _LINES:
            _log.warning(f"{self.shown}: frame {self.index} is skipped, it is broken ({reason})")
        if self.broken == _LINES:
            _log.warning(f"{self.shown}: further broken frames are only counted")

    def report_end(self, decoded: int, expected: int | None, *, live: bool) -> None:
        """expected: the number of frames that the file should have; None: not known, or near."""
        if self.broken > _LINES:
            _log.warning(f"{self.shown}: {self.broken} broken frames in all")
        if self.reason:
            _log.warning(f"{self.shown} ends early, after {decoded} frames{self.reason}")
        elif expected is not None and self.index + 1 < expected:
            _log.warning(
                f"{self.shown} ends early, after {self.index + 1} of {expected} frames: the file "
                "is not complete"
            )
        elif live:
            _log.info(f"{self.shown}: the stream ended after {decoded} frames")


def _clip(video: VideoInput, container: Any, stream: Any) -> Clip:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    rate = float(rate) if rate else RATE
    frames = stream.frames
    if not frames and container.duration:
        frames = round(container.duration / 1e6 * rate)  # microseconds
    return Clip(video.name, rate, None if video.live or not frames else int(frames))


def _seconds(container: Any, stream: Any) -> float:
    """The length of the video as the file says; 0: it does not say."""
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # FFmpeg corrects the duration of a cut
    if stream.duration:
        return float(stream.duration * stream.time_base)
    stated = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if stated:  # of a Matroska file
        hours, minutes, seconds = map(float, stated.groups())
        return hours * 3600 + minutes * 60 + seconds
    return (container.duration or 0) / 1e6  # microseconds


def _contents(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _upright(picture: Any) -> NDArray[np.uint8]:
    """The pixels, turned and mirrored as the file asks for: a phone was held upright."""
    pixels = picture.to_ndarray(format="rgb24")
    turns = round(getattr(picture, "rotation", 0) / 90)  # counterclockwise
    if _is_mirrored(picture):  # the matrix without the flip is turned by another half
        pixels, turns = pixels[:, ::-1], turns + 2
    return np.ascontiguousarray(np.rot90(pixels, turns % 4))


def _is_mirrored(picture: Any) -> bool:
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    return bool(a * d - b * c < 0)


@contextmanager
def _opened(av: Any, video: VideoInput) -> Iterator[Any]:
    """The open container. UserError: it cannot be opened, with the next step."""
    try:
        container = av.open(_address(video), **_options(video))
    except (OSError, ValueError, av.FFmpegError) as error:
        raise UserError(_unopened(video, error)) from None
    with container:
        yield container


def _address(video: VideoInput) -> str:
    camera = WEBCAM.fullmatch(video.where)
    if camera is None:
        return video.where
    number = int(camera[1])
    named = {"darwin": str(number), "win32": f"video={number}"}
    return named.get(sys.platform, f"/dev/video{number}")


def _options(video: VideoInput) -> dict[str, Any]:
    if WEBCAM.fullmatch(video.where):
        return {"format": {"darwin": "avfoundation", "win32": "dshow"}.get(sys.platform, "v4l2")}
    if "://" not in video.where:
        return {}
    options = {"rtsp_transport": "tcp"} if video.where.lower().startswith("rtsp") else {}
    return {"timeout": (CONNECT, READ), "options": options}


def _unopened(video: VideoInput, error: Exception) -> str:
    shown, reason = hide_password(video.where), _words(error)
    if WEBCAM.fullmatch(video.where):
        cameras = ", ".join(f"webcam:{path.name[5:]}" for path in _cameras())
        others = f", or use one of those that are here ({cameras})" if cameras else ""
        return f"source={shown} cannot be opened ({reason}): connect a camera{others}"
    if "://" in video.where:
        return f"source={shown} cannot be opened ({reason}): check the address"
    return f"{shown} cannot be opened as a video ({reason}): give another file"


def _cameras() -> list[Path]:
    return sorted(path for path in Path("/dev").glob("video*") if path.name[5:].isdigit())


def _words(error: Exception) -> str:
    """An FFmpegError in few words, without the address."""
    return str(getattr(error, "strerror", None) or error).split(":")[0]
