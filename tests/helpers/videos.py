"""Small videos, whole and damaged, whose frames are numbered by their first pixels."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 10  # gray levels between two frames


def numbered(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """H W 3 uint8: a gray level that counts to 24, beside noise."""
    picture = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture[:16, :16] = number % 25 * STEP
    return picture


def number_of(pixels: np.ndarray) -> int:
    return round(float(pixels[4:12, 4:12].mean()) / STEP)


def write_video(path: Path, frames: int, codec: str = "mjpeg", rate: int = 10) -> Path:
    """A video of numbered frames; `codec` mjpeg has one whole picture a packet."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def packets(path: Path) -> list[tuple[int, int]]:
    """Position and length in the file of the data of each packet."""
    content, found = path.read_bytes(), []
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                found.append((content.index(bytes(packet)), packet.size))
    return found


def break_frames(path: Path, *frames: int) -> Path:
    """Overwrite the packets of these frames with zeros."""
    places, content = packets(path), bytearray(path.read_bytes())
    for number in frames:
        begin, length = places[number]
        content[begin : begin + length] = bytes(length)
    path.write_bytes(content)
    return path


def write_sound(path: Path) -> Path:
    """A file with sound alone."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        for number in range(8):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
