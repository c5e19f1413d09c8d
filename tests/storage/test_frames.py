from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import number_of, numbered, write_video

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.frames import read_frames
from maskrcnn_lit.storage.image_inputs import ImageInput, list_inputs


def test_images_and_videos_are_one_iterator_of_frames(tmp_path: Path):
    path = write_video(tmp_path / "a.avi", 3)
    Image.fromarray(numbered(7)).save(tmp_path / "b.png")
    inputs = [
        *list_inputs([path, tmp_path / "b.png"]),
        ImageInput("broken", lambda: None),
        ImageInput("c", lambda: numbered(9), id=70),
    ]
    frames = list(read_frames(inputs))
    assert [(frame.name, frame.index, frame.id) for frame in frames] == [
        *(("a.avi", index, None) for index in range(3)),
        ("b.png", 1, None),
        ("c", 3, 70),
    ]
    assert [number_of(frame.pixels) for frame in frames] == [0, 1, 2, 7, 9]
    assert np.allclose([frame.time for frame in frames[:3]], [0, 0.1, 0.2])
    assert frames[0].clip is frames[2].clip
    assert [(frame.time, frame.clip) for frame in frames[3:]] == [(None, None)] * 2


def test_frames_are_read_one_by_one(tmp_path: Path):
    def missing() -> None:
        raise UserError("it is missing")

    frames = read_frames([ImageInput("a", lambda: numbered(1)), ImageInput("b", missing)])
    assert next(frames).name == "a"
    with pytest.raises(UserError, match="it is missing"):
        next(frames)
    with pytest.raises(UserError, match="max_pixels=10"):
        list(read_frames(list_inputs(write_video(tmp_path / "a.avi", 3)), max_pixels=10))
