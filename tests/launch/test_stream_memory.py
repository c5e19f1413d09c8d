"""Memory does not grow with the frames of a video, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_commands import environment

pytest_plugins = ("tiny_commands",)

# Reads a video of frames that change, predicts, tracks, draws some, and prints what it holds.
PROGRAM = """
import itertools, sys
from pathlib import Path
import numpy as np
import torch
from maskrcnn_lit import load_model
from maskrcnn_lit.launch.prediction_files import PredictionFiles
from maskrcnn_lit.storage.image_inputs import list_inputs

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

torch.set_num_threads(1)
run, source, out, last, draw = sys.argv[1:]
model = load_model(run, score_threshold=0.0, max_detections=3, accelerator="cpu")
inputs, seen = list_inputs(source), {}
with PredictionFiles(Path(out), inputs, draw=draw == "draw") as files:
    for found in model.stream(inputs, track="mask_iou"):
        files.add(found)
        if found.index + 1 in (100, int(last)):
            seen[found.index + 1] = resident()
print(files.done, len(seen), seen[int(last)] - seen[100])
"""


def write_moving(path: Path, frames: int, height: int, width: int) -> Path:
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from maskrcnn_lit.storage.video_writer import VideoWriter\n"
        "picture = np.zeros((int(sys.argv[3]), int(sys.argv[4]), 3), np.uint8)\n"
        "with VideoWriter(Path(sys.argv[1]), 30) as writer:\n"
        "    for number in range(int(sys.argv[2])):\n"
        "        picture[:] = number % 200\n"
        "        picture[100:200, number % 200 : number % 200 + 100] = 250\n"
        "        writer.write(picture, number / 30)\n"
    )
    words = [str(path), *map(str, (frames, height, width))]
    subprocess.run([sys.executable, "-c", program, *words], env=environment(), check=True)
    return path


def growth(trained: Path, folder: Path, frames: int, height: int, width: int, draw: str) -> float:
    """MB of resident memory from frame 100 to the last."""
    source = write_moving(folder / "clip.mp4", frames, height, width)
    words = [str(trained), str(source), str(folder / "out"), str(frames), draw]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    count, marks, grown = done.stdout.split()
    assert (int(count), int(marks)) == (frames, 2)
    return float(grown)


@pytest.mark.long
@pytest.mark.process
def test_200_frames_that_are_drawn(trained: Path, tmp_path: Path):
    """A hundred pictures take 69 MB."""
    assert growth(trained, tmp_path, 200, 360, 640, "draw") < 30


@pytest.mark.slow
@pytest.mark.process
def test_2000_frames_of_720p(trained: Path, tmp_path: Path):
    assert growth(trained, tmp_path, 2000, 720, 1280, "lines") < 30
