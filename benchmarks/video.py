"""Masks on a video: ours beside Ultralytics', each in a process of its own.

    python benchmarks/video.py RUN [--frames 600] [--rounds 1]

RUN is a run folder, best of mask_rcnn_edge at 320 pixels, since YOLO11n-seg has that size here. The
video has 1280 x 720 pixels and a disc that moves. A threshold of 0 fills all of the 10 slots of
detections of a frame, which is drawn into a new video. Ours also writes RLE of each frame;
Ultralytics' way has masks as tensors. It runs in two ways: with `stream=True`, and by the default
of `predict`, a list of all results. YOLO11n-seg has random weights, and both run in PyTorch.

A line is printed for each round: for each way, the resident memory after 100 frames and at the end,
in MB, and milliseconds of processor time for a frame, those after the first 100.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from yolo import yolo11n_seg

from maskrcnn_lit import load_model
from maskrcnn_lit.launch.prediction_files import PredictionFiles
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.storage.image_inputs import list_inputs
from maskrcnn_lit.training.devices import device_name

HEIGHT, WIDTH, RADIUS, FIRST, DETECTIONS = 720, 1280, 80, 100, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--only", choices=tuple(WAYS), help="run one way on --video: for the others"
    )
    parser.add_argument("--video", type=Path)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measured(WAYS[given.only], given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        given.video = write_video(Path(folder) / "disc.mp4", given.frames)
        for _ in range(given.rounds):
            ways = {name: in_a_process(name, given) for name in WAYS}
            print(json.dumps(report(given, ways)), flush=True)


def report(given: argparse.Namespace, ways: dict[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": "video",
        "frames": given.frames,
        "ways": ways,
        "device": device_name(torch.device("cpu")),
        "commit": package_commit(),
        "versions": package_versions(),
    }


def write_video(path: Path, frames: int) -> Path:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for n in range(frames):
            frame = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            center = RADIUS + 5 * n % (WIDTH - 2 * RADIUS)
            frame[(y - HEIGHT // 2) ** 2 + (x - center) ** 2 < RADIUS**2] = (230, 60, 60)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return path


def in_a_process(name: str, given: argparse.Namespace) -> dict[str, float]:
    words = [given.run, "--only", name, "--video", given.video]
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(
    run: Callable[[argparse.Namespace, Path], Iterator[int]], given: argparse.Namespace
) -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for frame, found in enumerate(run(given, Path(folder)), start=1):
            assert found == DETECTIONS, found
            if frame == FIRST:
                early, began = resident(), time.process_time()
        seconds = time.process_time() - began
    return {
        "mb_after_100": early,
        "mb_at_the_end": resident(),
        "milliseconds": 1000 * seconds / (frame - FIRST),
    }


def resident() -> float:
    """MB of this process."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1e3


def ours(given: argparse.Namespace, out: Path) -> Iterator[int]:
    model = load_model(given.run, score_threshold=0.0, max_detections=DETECTIONS, accelerator="cpu")
    inputs = list_inputs(str(given.video))
    with PredictionFiles(out / "found", inputs, draw=True) as files:
        for found in model.stream(inputs):
            files.add(found)
            yield len(found)


def streamed(given: argparse.Namespace, out: Path) -> Iterator[int]:
    """Ultralytics, frame by frame."""
    for found in of_ultralytics(given.video, out):
        yield len(found)


def listed(given: argparse.Namespace, out: Path) -> Iterator[int]:
    """Ultralytics' default: without stream=True, predict returns a list of these results."""
    results = []
    for found in of_ultralytics(given.video, out):
        results.append(found)
        yield len(found)


def of_ultralytics(video: Path, out: Path) -> Any:
    return yolo11n_seg().predict(
        str(video),
        stream=True,
        imgsz=320,
        conf=0.0,
        max_det=DETECTIONS,
        save=True,
        project=str(out),
        verbose=False,
    )


WAYS = {"maskrcnn_lit": ours, "ultralytics, stream": streamed, "ultralytics, list": listed}

if __name__ == "__main__":
    main()
