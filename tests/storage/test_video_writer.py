from pathlib import Path

import av
import numpy as np
import pytest
from videos import number_of, numbered

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.video import VideoInput, read_video
from maskrcnn_lit.storage.video_writer import VideoWriter


def test_what_is_written_plays_with_its_times(tmp_path: Path):
    """Of odd sides, and with a frame left out."""
    path, times = tmp_path / "deep" / "a.mp4", [0.0, 0.1, 0.2, 0.5, 0.6]
    with VideoWriter(path, 10) as writer:
        assert not path.exists()
        for number, time in enumerate(times):
            writer.write(numbered(number, 49, 65), time)
    assert writer.pictures == 5
    frames = list(read_video(VideoInput("a", str(path))))
    assert [number_of(frame.pixels) for frame in frames] == [0, 1, 2, 3, 4]
    assert np.allclose([frame.time for frame in frames], times, atol=1e-3)
    assert frames[0].pixels.shape == (50, 66, 3)
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")


def test_an_error_leaves_what_was_written(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 30) as writer:
        for number in range(7):
            writer.write(numbered(number), number / 30)
        raise KeyboardInterrupt
    assert len(list(read_video(VideoInput("a", str(path))))) == 7


def test_times_that_stand_still_and_other_sizes(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 29.97) as writer:
        for number, size in enumerate([(48, 64), (48, 64), (24, 32)]):
            writer.write(numbered(number, *size), 0.0)
    frames = list(read_video(VideoInput("a", str(path))))
    assert [frame.pixels.shape for frame in frames] == [(48, 64, 3)] * 3


def test_nothing_written_is_no_file(tmp_path: Path):
    with VideoWriter(tmp_path / "a.mp4", 30):
        pass
    assert not list(tmp_path.iterdir())


def test_what_the_encoder_does_not_take_is_one_sentence(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with (
        pytest.raises(
            UserError, match=r"a\.mp4: a picture of 20000 x 2 pixels cannot be written \("
        ),
        VideoWriter(path, 10) as writer,
    ):
        writer.write(np.zeros((2, 20000, 3), np.uint8), 0.0)
    assert not path.exists()


def test_a_killed_process_leaves_all_but_the_last_seconds(tmp_path: Path):
    """The bytes on the disk before the end."""
    path, copy = tmp_path / "a.mp4", tmp_path / "copy.mp4"
    with VideoWriter(path, 10) as writer:
        for number in range(150):
            writer.write(numbered(number), number / 10)
        copy.write_bytes(path.read_bytes())
    frames = list(read_video(VideoInput("a", str(copy))))
    assert len(frames) >= 60
    assert [number_of(frame.pixels) for frame in frames] == [n % 25 for n in range(len(frames))]
    assert len(list(read_video(VideoInput("a", str(path))))) == 150
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 150
        container.seek(10_000_000)
        assert 8.0 <= float(next(container.decode(video=0)).time) <= 10.0


def test_a_full_disk_is_one_sentence():
    class Full:
        def __enter__(self) -> None:
            raise av.error.FFmpegError(28, "No space left on device")

        def __exit__(self, *_: object) -> None: ...

    writer = VideoWriter(Path("a.mp4"), 10)
    writer._container = Full()
    with pytest.raises(
        UserError, match=r"a\.mp4 cannot be closed \(No space left on device\): free"
    ):
        writer.close()
