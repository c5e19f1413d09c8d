"""`maskrcnn-lit predict` on videos from end to end, its progress, and Ctrl-C."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from local_server import Server
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_commands import VAL_IMAGES, coco_data, environment, ground_truth, run_command
from videos import break_frames, write_video

from maskrcnn_lit.evaluation.coco.json_lines import read_json_lines
from maskrcnn_lit.launch import predict as launch_predict
from maskrcnn_lit.storage.video import VideoInput, read_video

pytest_plugins = ("tiny_commands", "local_server")


def predict(trained: Path, source: object, out: Path, *more: str, code: int = 0) -> None:
    words = (f"run={trained}", f"source={source}", f"run_dir={out}", "score_threshold=0", *more)
    run_command("predict", *words, "max_detections=3", code=code)


def frames_of(path: Path) -> list:
    return list(read_video(VideoInput("a", str(path))))


@pytest.mark.long
def test_a_video_with_a_broken_frame(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    path, out = break_frames(write_video(tmp_path / "clip.avi", 8), 5), tmp_path / "out"
    predict(trained, path, out, "track=mask_iou", "batch_size=3")
    drawn = frames_of(out / "clip.mp4")
    assert np.allclose([one.time for one in drawn], [0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7], atol=1e-3)
    assert drawn[0].pixels.shape == (48 * 8, 64 * 8, 3)
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4, 6, 7]
    assert [line["image_id"] for line in lines] == [1, 2, 3, 4, 5, 7, 8]
    for line in lines:
        assert len(line["detections"]) == 3
        for found in line["detections"]:
            assert coco_mask.decode(found["segmentation"]).shape == (48, 64)
            assert found["track_id"] >= 1
    printed = capsys.readouterr()
    assert "frame 5 is skipped, it is broken" in printed.err
    assert re.search(r"clip\.avi: 100% \(8 of 8 frames, [\d.]+ frames/s\)", printed.out)
    assert f"clip.avi -> {out}/clip.mp4\n" in printed.out
    assert f"21 detections on 7 frames: {out}/detections.jsonl (" in printed.out


@pytest.mark.long
def test_results_of_a_coco_json_are_scored_alike_from_lines_and_json(
    trained: Path, strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The images keep their huge, shuffled ids."""
    out = tmp_path / "out"
    predict(trained, strange / "annotations" / "instances_val.json", out, "save=false")
    ids = {image["id"] for image in ground_truth(strange)["images"]}
    assert {one["image_id"] for one in read_json_lines(out / "detections.jsonl")} == ids
    metrics = []
    for name in ("detections.json", "detections.jsonl"):
        folder = tmp_path / name
        given = (f"results={out / name}", f"run_dir={folder}", "report=false")
        run_command("evaluate", *coco_data(strange), *given)
        metrics.append(json.loads((folder / "evaluation.json").read_text())["metrics"])
    assert metrics[0] == metrics[1]
    assert 0 <= metrics[0]["val/mask_ap"] <= 1
    assert f"{3 * VAL_IMAGES} detections on {VAL_IMAGES} images" in capsys.readouterr().out


@pytest.mark.long
def test_a_url_of_a_video_and_images_of_one_pixel(
    trained: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture
):
    url, _ = server.offer(write_video(tmp_path / "a.mp4", 2, "mpeg4").read_bytes(), "a.mp4")
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    (tmp_path / "list.txt").write_text(f"{url}\none.png\n")
    predict(trained, tmp_path / "list.txt", tmp_path / "out")
    assert len(frames_of(tmp_path / "out" / "a.mp4")) == 2
    lines = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == [1, 2, 3]
    assert [json.loads(line)["width"] for line in lines] == [64, 64, 1]
    assert Image.open(tmp_path / "out" / "images" / "one.png").mode == "RGB"
    assert "[2/2] one.png: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no video" * 20, "clip.mp4 cannot be opened as a video (Invalid data"),
        (None, "clip.mp4 has no frames that can be decoded"),
    ],
)
def test_a_video_without_frames_leaves_nothing(
    content: bytes | None,
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    path = tmp_path / "clip.mp4"
    if content is None:
        os.replace(break_frames(write_video(tmp_path / "clip.avi", 3), 0, 1, 2), path)
    else:
        path.write_bytes(content)
    predict(trained, path, tmp_path / "out", code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_none_of_which_can_be_read_are_a_mistake(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    predict(trained, tmp_path / "photos", tmp_path / "out", code=2)
    assert "none of the images could be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.process
def test_ctrl_c_leaves_a_video_that_plays(trained: Path, tmp_path: Path):
    path, out = write_video(tmp_path / "clip.mp4", 3000, "mpeg4"), tmp_path / "out"
    words = [f"run={trained}", f"source={path}", f"run_dir={out}", "score_threshold=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_lit", "predict", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines, ends = out / "detections.jsonl", time.monotonic() + 120
    while not (lines.is_file() and lines.read_text().count("\n") > 5):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    done = len(lines.read_text().splitlines())
    message = rf"maskrcnn-lit: interrupted: the results of (\d+) frames are in {out}"
    assert abs(int(re.search(message, said)[1]) - done) <= 1
    assert "Traceback" not in said
    assert 5 < done < 3000
    assert abs(len(frames_of(out / "clip.mp4")) - done) <= 1
    assert len(read_json_lines(lines)) >= done  # every line is whole


def test_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert launch_predict._clock(65.4) == "0:01:05"
    counter = launch_predict.Counter("a.mp4", 100, unit="frames", out=sys.stdout)
    assert launch_predict._left(counter) == ""
    counter.done, counter._began = 20, time.monotonic() - 10
    assert launch_predict._left(counter) == "0:00:40 left"
    counter.total = None
    assert launch_predict._left(counter) == ""


def test_the_depth_of_samples_is_that_of_the_run(trained: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for file in (run / "checkpoints").iterdir():
        saved = torch.load(file, weights_only=False)
        saved["config"]["data"]["bits"] = 12
        torch.save(saved, file)
    samples = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 1000
    Image.fromarray(samples).save(tmp_path / "a.tif")
    drawn = []
    for name in (trained, run):
        out = tmp_path / f"out_{len(drawn)}"
        predict(name, tmp_path / "a.tif", out, "save=true")
        drawn.append(np.median(np.asarray(Image.open(out / "images" / "a.png"))))
    assert drawn[1] < 0.5 * drawn[0]  # by the file its depth is 10 bits
