"""Videos, streams and cameras become numbered frames; what is wrong with them is one sentence."""

import logging
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from local_server import Server
from rtsp_server import camera
from videos import break_frames, number_of, numbered, packets, write_sound, write_video

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage import video
from maskrcnn_lit.storage.video import VideoInput, hide_password, read_video, video_input

pytest_plugins = ("local_server",)


def frames_of(source: str | Path) -> list[video.VideoFrame]:
    named = video_input(str(source))
    assert named is not None
    return list(read_video(named))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mjpeg"), ("a.mkv", "mpeg4")]
)
def test_frames_come_in_order_with_their_times(name: str, codec: str, tmp_path: Path):
    frames = frames_of(write_video(tmp_path / name, 20, codec))
    assert [number_of(frame.pixels) for frame in frames] == list(range(20))
    assert [frame.index for frame in frames] == list(range(20))
    assert np.allclose([frame.time for frame in frames], np.arange(20) / 10, atol=2e-3)
    assert {(frame.pixels.shape, frame.pixels.dtype.name) for frame in frames} == {
        ((48, 64, 3), "uint8")
    }
    assert frames[0].clip == (name, 10.0, 20)
    assert all(frame.clip is frames[0].clip for frame in frames)


def test_broken_frames_are_lines_and_the_others_follow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = break_frames(write_video(tmp_path / "a.avi", 20), 3, 4, 19)
    frames = frames_of(path)
    good = [number for number in range(20) if number not in (3, 4, 19)]
    assert [number_of(frame.pixels) for frame in frames] == good
    assert [frame.index for frame in frames] == good
    lines = [message for message in caplog.messages if "is skipped, it is broken" in message]
    assert [line.split("frame ")[1].split(" ")[0] for line in lines] == ["3", "4", "19"]


def test_many_broken_frames_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    frames = frames_of(break_frames(write_video(tmp_path / "a.avi", 20), *range(1, 19)))
    assert [frame.index for frame in frames] == [0, 19]
    assert len(caplog.messages) == 12
    assert caplog.messages[-1].endswith("18 broken frames in all")


def test_a_cut_file_gives_the_frames_before_the_cut(tmp_path: Path):
    path = write_video(tmp_path / "a.avi", 20)
    begin, length = packets(path)[12]
    path.write_bytes(path.read_bytes()[: begin + length // 2])
    indices = [frame.index for frame in frames_of(path)]
    assert indices[:12] == list(range(12))


def test_a_video_without_any_frame_is_one_sentence(tmp_path: Path):
    path = break_frames(write_video(tmp_path / "a.avi", 5), *range(5))
    with pytest.raises(UserError, match=r"a\.avi has no frames that can be decoded: give"):
        frames_of(path)
    with pytest.raises(UserError, match=r"b\.mp4 has no pictures, only audio: give a video"):
        frames_of(write_sound(tmp_path / "b.mp4"))


@pytest.mark.parametrize("content", [b"", b"no video" * 50])
def test_another_file_is_one_sentence(content: bytes, tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4 cannot be opened as a video \(.+\): give another"):
        frames_of(tmp_path / "a.mp4")


def test_frames_above_the_limit_of_pixels_are_refused(tmp_path: Path):
    named = VideoInput("a.avi", str(write_video(tmp_path / "a.avi", 2)))
    with pytest.raises(UserError, match="64 x 48 pixels, more than max_pixels=3000 allows"):
        next(read_video(named, max_pixels=3000))
    assert next(read_video(named, max_pixels=64 * 48)).index == 0


def test_what_names_a_video(tmp_path: Path):
    path = write_video(tmp_path / "a.MP4", 1, "mpeg4")
    assert video_input(str(path)) == ("a.MP4", str(path), False)
    for source, expected in {
        "webcam:0": ("webcam_0", "webcam:0", True),
        "rtsp://me:secret@camera/street": ("street", "rtsp://me:secret@camera/street", True),
        "rtsp://camera": ("rtsp", "rtsp://camera", True),
        "http://a/b/clip.webm?x=1": ("clip.webm", "http://a/b/clip.webm?x=1", False),
        "https://a/live.m3u8": ("live.m3u8", "https://a/live.m3u8", False),
    }.items():
        assert video_input(source) == expected
    for other in ("none.mp4", "a.jpg", "http://a/b.jpg", "webcam:front", "s3://a/b.mp4"):
        assert video_input(other) is None


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        UserError, match=r"needs the package av, .*: pip install 'maskrcnn_lit\[video\]'"
    ):
        video_input("webcam:0")
    assert video_input("a.jpg") is None


def test_a_camera_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video, "_cameras", lambda: [Path("/dev/video7"), Path("/dev/video12")])
    with pytest.raises(
        UserError,
        match=r"source=webcam:99 cannot be opened \(No such file or directory\): connect a camera, "
        r"or use one of those that are here \(webcam:7, webcam:12\)",
    ):
        frames_of("webcam:99")
    monkeypatch.setattr(video, "_cameras", lambda: [])
    with pytest.raises(UserError, match=r"connect a camera$"):
        frames_of("webcam:99")


@pytest.mark.parametrize(
    ("platform", "address", "options"),
    [
        ("linux", "/dev/video2", {"format": "v4l2"}),
        ("darwin", "2", {"format": "avfoundation"}),
        ("win32", "video=2", {"format": "dshow"}),
    ],
)
def test_a_camera_is_opened_as_its_system_does(
    platform: str, address: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    opened: list[tuple[str, dict[str, str]]] = []

    def no_camera(name: str, **given: str) -> None:
        opened.append((name, given))
        raise OSError("busy")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(av, "open", no_camera)
    with pytest.raises(UserError, match=r"webcam:2 cannot be opened \(busy\)"):
        frames_of("webcam:2")
    assert opened == [(address, options)]


def test_a_camera_gives_frames_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    path, really = write_video(tmp_path / "a.avi", 3), av.open
    monkeypatch.setattr(av, "open", lambda name, **given: really(str(path)))
    frames = frames_of("webcam:0")
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert frames[0].clip == ("webcam_0", 10.0, None)
    assert "webcam:0: the stream ended after 3 frames" in caplog.text


def test_a_video_behind_a_url(server: Server, tmp_path: Path):
    url, _ = server.offer(write_video(tmp_path / "a.mp4", 6, "mpeg4").read_bytes(), "a.mp4")
    assert [frame.index for frame in frames_of(url)] == list(range(6))
    with pytest.raises(UserError, match=r"none\.mp4 cannot be opened \(.*404.*\): check the add"):
        frames_of(f"{server.address}/none.mp4")
    url, _ = server.offer(b"<html>" * 100, "page.mp4")
    with pytest.raises(UserError, match=r"page\.mp4 cannot be opened \(Invalid data.*\): check"):
        frames_of(url)


def test_a_stream_that_breaks_off_gives_its_frames(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    url, _ = server.offer(write_video(tmp_path / "a.mkv", 40, "mpeg4").read_bytes(), "a.mkv")
    server.fail("breaks_in_the_body", times=100)
    indices = [frame.index for frame in frames_of(url)]
    assert 0 < len(indices) < 40
    assert indices == list(range(len(indices)))
    assert f"a.mkv ends early, after {len(indices)} frames (" in caplog.text


def test_a_camera_of_the_network_until_it_hangs_up(caplog: pytest.LogCaptureFixture):
    """As fast as it sends: a few frames may be dropped, and the newest stay."""
    caplog.set_level(logging.INFO)
    with camera(20) as address:
        frames = frames_of(address)
    numbers = [number_of(frame.pixels) for frame in frames]
    assert numbers == sorted(numbers)
    assert numbers == [frame.index for frame in frames]
    assert numbers[-1] >= 18  # the parser waits for the begin of another
    assert len(numbers) >= 4
    assert frames[0].clip == ("street", 10.0, None)
    assert "ended after" in caplog.text or "ends early, after" in caplog.text
    assert "secret" not in caplog.text


def test_nobody_at_the_address_is_one_sentence_without_the_password():
    with pytest.raises(UserError, match=r"^source=rtsp://127\.0\.0\.1:9/x cannot be opened \(Conn"):
        frames_of("rtsp://me:secret@127.0.0.1:9/x")
    assert hide_password("rtsp://me:a:b@host/x@y") == "rtsp://host/x@y"
    assert hide_password("/a/b@c.mp4") == "/a/b@c.mp4"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://me:p@ss@host/x", "rtsp://host/x"),
        ("rtsp://me:p/ss@host/x", "rtsp://host/x"),
        ("rtsp://host:554/x@y", "rtsp://host:554/x@y"),
        ("rtsp://me:p?ss@host/x", "rtsp://host/x"),
        ("http://[::1]:80/x@y", "http://[::1]:80/x@y"),
        ("https://me@host/x", "https://host/x"),
        ("https://host/x?a=1&token=abc&b=2", "https://host/x?a=1&token=***&b=2"),
        ("https://host/x?password=abc", "https://host/x?password=***"),
        ("https://host/x?X-Amz-Signature=abc", "https://host/x?X-Amz-Signature=***"),
    ],
)
def test_secrets_of_an_address_are_hidden(address: str, shown: str):
    assert hide_password(address) == shown


@pytest.mark.parametrize("degrees", [0, 90, -90, 180, -180])
def test_a_frame_is_turned_upright(degrees: int):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    frame = SimpleNamespace(to_ndarray=lambda format: pixels, rotation=degrees, side_data={})
    assert np.array_equal(video._upright(frame), np.rot90(pixels, degrees // 90))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), lambda picture: picture),
        ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
        ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
        ((1, 0, 0, -1), lambda picture: picture[::-1]),
        ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda picture: np.rot90(picture, 2).transpose(1, 0, 2)),
    ],
)
def test_a_display_matrix_turns_and_mirrors(
    matrix: tuple[int, ...], expected: Callable[[np.ndarray], np.ndarray], tmp_path: Path
):
    path = write_video(tmp_path / "a.mp4", 1, "mpeg4")
    plain = frames_of(path)[0].pixels
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    begin = content.index(b"tkhd") + 44
    content[begin : begin + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    assert np.array_equal(frames_of(path)[0].pixels, expected(plain))


@pytest.mark.parametrize("early", [True, False])
def test_a_broken_frame_has_its_number_in_the_order_of_the_times(
    early: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """With B-frames, packets come in the order of decoding."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        options = {"x264-params": "bframes=3:b-adapt=0:b-pyramid=0:scenecut=0"}
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(times)
    orders = [sorted(times).index(time) for time in times]
    single = next(n for n in range(9, 20) if (orders[n] < n if early else orders[n] > n))
    whole = [frame.time for frame in frames_of(path)]
    frames = frames_of(break_frames(path, single))
    broken = [int(line.split("frame ")[1].split(" ")[0]) for line in caplog.messages]
    assert broken == [orders[single]]
    assert sorted([*broken, *(frame.index for frame in frames)]) == list(range(20))
    assert [frame.time for frame in frames] == [whole[frame.index] for frame in frames]


def test_times_grow_although_the_clock_starts_again(tmp_path: Path):
    path = write_video(tmp_path / "a.ts", 8, "mpeg2video", rate=25)
    path.write_bytes(path.read_bytes() * 2)
    frames = frames_of(path)
    assert len(frames) >= 15  # the parser may join two at the seam
    assert np.allclose(np.diff([frame.time for frame in frames]), 0.04, atol=1e-3)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mjpeg"), ("a.mkv", "mpeg4")])
def test_a_cut_file_ends_with_a_line(
    name: str, codec: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = write_video(tmp_path / name, 60, codec)
    assert len(frames_of(path)) == 60
    assert caplog.messages == []
    begin, _ = packets(path)[20]
    path.write_bytes(path.read_bytes()[:begin])
    count = len(frames_of(path))
    assert count in (19, 20)
    assert f"{name} ends early, after {count} " in caplog.text


def test_reading_stops_before_the_end(tmp_path: Path):
    frames = read_video(VideoInput("a.avi", str(write_video(tmp_path / "a.avi", 20))))
    assert next(frames).index == 0
    frames.close()
    assert list(frames) == []
