"""The files of `predict`, written as results come."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from videos import numbered

from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.json_lines import read_json_lines
from maskrcnn_lit.launch.prediction_files import PredictionFiles, picture_names
from maskrcnn_lit.predictor import Detections
from maskrcnn_lit.storage.image_inputs import ImageInput
from maskrcnn_lit.storage.video import Clip, VideoInput, read_video

CATEGORIES = (Category(7, "cat"), Category(9, "dog"))


def detections(name: str, index: int, **more: Any) -> Detections:
    """A dog, and a cat of which the tracker knows nothing yet."""
    masks = np.zeros((48, 64, 2), np.uint8, order="F")
    masks[5:15, 5:25] = 1
    return Detections(
        name=name,
        image=numbered(index),
        boxes=np.array([[5, 5, 25, 15]] * 2, np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        labels=np.array([2, 1]),
        names=["dog", "cat"],
        masks=coco_mask.encode(masks),
        categories=CATEGORIES,
        index=index,
        **more,
    )


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]


def frame(clip: Clip, index: int, **more: Any) -> Detections:
    return detections(clip.name, index, clip=clip, time=index / clip.rate, **more)


def image(name: str, image_id: int | None = None) -> ImageInput:
    return ImageInput(name, lambda: None, image_id)


def test_images_have_coco_results_and_lines(tmp_path: Path):
    inputs = [image("a.jpg"), image("broken.jpg"), image("b.jpg")]
    with PredictionFiles(tmp_path / "out", inputs, draw=True) as files:
        assert files.add(detections("a.jpg", 0)).picture == tmp_path / "out/images/a.png"
        assert len(lines_of(tmp_path / "out")) == 1  # written as it comes
        assert files.add(detections("b.jpg", 2)).picture == tmp_path / "out/images/b.png"
    assert (files.done, files.images, files.detections) == (2, 2, 4)
    names = {path.relative_to(tmp_path).as_posix() for path in files.lists}
    assert names == {"out/detections.json", "out/images.json", "out/detections.jsonl"}
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    plain = [
        {key: value for key, value in entry.items() if key != "category"}
        for entry in read_json_lines(tmp_path / "out" / "detections.jsonl")
    ]
    assert results == plain
    assert [entry["category_id"] for entry in results] == [9, 7, 9, 7]
    assert json.loads((tmp_path / "out" / "images.json").read_text()) == [
        {"id": 1, "file_name": "a.jpg", "height": 48, "width": 64},
        {"id": 2, "file_name": "b.jpg", "height": 48, "width": 64},
    ]


def test_images_of_a_coco_json_keep_their_ids(tmp_path: Path):
    with PredictionFiles(tmp_path, [image("a.jpg", 70), image("b.jpg", 5)], draw=False) as files:
        assert files.add(detections("a.jpg", 0, image_id=70)).picture is None
        files.add(detections("b.jpg", 1, image_id=5))
    assert [entry["id"] for entry in json.loads((tmp_path / "images.json").read_text())] == [70, 5]
    with PredictionFiles(tmp_path, [image("a.jpg", 70), image("b.jpg")], draw=False) as files:
        files.add(detections("a.jpg", 0, image_id=70))
        files.add(detections("b.jpg", 1))
    assert [line["image_id"] for line in lines_of(tmp_path)] == [1, 2]  # ids of two kinds


def test_a_video_is_drawn_and_listed_by_frame(tmp_path: Path):
    clip = Clip("street.avi", 10.0, 4)
    ids = np.array([3, -1])
    with PredictionFiles(tmp_path, [VideoInput("street.avi", "x")], draw=True) as files:
        for index in (0, 1, 3):  # one was broken
            written = files.add(frame(clip, index, track_ids=ids))
    assert written.picture == tmp_path / "street.mp4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections.jsonl", "street.mp4"]
    assert files.lists == [tmp_path / "detections.jsonl"]
    frames = list(read_video(VideoInput("a", str(tmp_path / "street.mp4"))))
    assert np.allclose([one.time for one in frames], [0, 0.1, 0.3], atol=1e-3)
    lines = lines_of(tmp_path)
    keys = ("image_id", "file_name", "index", "time", "height", "width")
    assert [lines[2][key] for key in keys] == [4, "street.avi", 3, 0.3, 48, 64]
    first, second = lines[2]["detections"]
    assert first["track_id"] == 3
    assert "track_id" not in second
    assert {first["image_id"], second["image_id"]} == {4}
    assert [first["category"], second["category"]] == ["dog", "cat"]


def test_several_videos_and_images_have_numbers_and_names_of_their_own(tmp_path: Path):
    clips = [Clip("a.avi", 10.0, 2), Clip("a.avi", 10.0, 2)]
    inputs = [VideoInput("a.avi", "x"), image("b.jpg"), VideoInput("a.avi", "y")]
    with PredictionFiles(tmp_path, inputs, draw=True) as files:
        for index in range(2):
            files.add(frame(clips[0], index))
        files.add(detections("b.jpg", 1))
        for index in range(2):
            files.add(frame(clips[1], index))
    assert [line["image_id"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5]
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"a.mp4", "a_2.mp4"}
    assert [entry["id"] for entry in json.loads((tmp_path / "images.json").read_text())] == [3]
    for path in tmp_path.glob("*.mp4"):
        assert len(list(read_video(VideoInput("a", str(path))))) == 2


def test_ctrl_c_leaves_complete_files(tmp_path: Path):
    clip = Clip("a.avi", 10.0, 20)
    inputs = [image("b.jpg"), VideoInput("a.avi", "x")]
    with pytest.raises(KeyboardInterrupt), PredictionFiles(tmp_path, inputs, draw=True) as files:
        files.add(detections("b.jpg", 0))
        for index in range(3):
            files.add(frame(clip, index))
        raise KeyboardInterrupt
    assert len(list(read_video(VideoInput("a", str(tmp_path / "a.mp4"))))) == 3
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 2
    assert len(lines_of(tmp_path)) == 4


def test_no_output_replaces_a_source(tmp_path: Path):
    """The folder of the results is the folder of the sources."""
    (tmp_path / "images").mkdir()
    clip_path, picture = tmp_path / "clip.mp4", tmp_path / "images" / "a.png"
    clip_path.write_bytes(b"clip")
    picture.write_bytes(b"picture")
    inputs = [
        VideoInput("clip.mp4", str(clip_path)),
        ImageInput("a.png", lambda: None, file=picture),
        image("a.jpg"),
    ]
    with PredictionFiles(tmp_path, inputs, draw=True) as files:
        drawn = [
            files.add(frame(Clip("clip.mp4", 10.0, 1), 0)),
            files.add(detections("a.png", 1)),
            files.add(detections("a.jpg", 2)),
        ]
    names = ["clip_2.mp4", "images/a.png.png", "images/a.jpg.png"]
    assert [one.picture for one in drawn] == [tmp_path / name for name in names]
    assert all(path.is_file() for one in drawn if (path := one.picture))
    assert (clip_path.read_bytes(), picture.read_bytes()) == (b"clip", b"picture")


def test_an_error_leaves_the_results_until_then(tmp_path: Path):
    with pytest.raises(UserError), PredictionFiles(tmp_path, [image("b.jpg")], draw=False) as files:
        files.add(detections("b.jpg", 0))
        raise UserError("the next one is damaged")
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 2
    assert len(json.loads((tmp_path / "images.json").read_text())) == 1


def test_equal_ids_are_replaced_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with PredictionFiles(tmp_path, [image("a.jpg", 1), image("b.jpg", 1)], draw=False) as files:
        files.add(detections("a.jpg", 0, image_id=1))
        files.add(detections("b.jpg", 1, image_id=1))
    assert [entry["id"] for entry in json.loads((tmp_path / "images.json").read_text())] == [1, 2]
    assert "replaced by 1, 2, 3, ...: some ids are equal" in caplog.text


def test_nothing_added_is_no_file(tmp_path: Path):
    with PredictionFiles(tmp_path / "out", [image("b.jpg")], draw=True):
        pass
    assert not (tmp_path / "out").exists()


def test_a_new_start_replaces_old_lines(tmp_path: Path):
    for _ in range(2):
        with PredictionFiles(tmp_path, [image("b.jpg")], draw=False) as files:
            files.add(detections("b.jpg", 0))
        assert len(lines_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["a.jpg", "b.PNG", "c"], ["a.png", "b.png", "c.png"]),
        (["a.jpg", "a.png", "x/a.jpg"], ["a.jpg.png", "a.png", "x/a.png"]),
        (["a.jpg", "A.bmp"], ["a.jpg.png", "A.bmp.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg_2.png", "a.png", "a.jpg.png"]),
        (["a.b.jpg", "a.c.jpg"], ["a.b.png", "a.c.png"]),
        (["a.jpg", "a.jpg"], ["a.jpg.png", "a.jpg_2.png"]),
    ],
)
def test_every_picture_has_a_name_of_its_own(names: list[str], pictures: list[str]):
    assert picture_names(names) == pictures
