"""Memory of images in tiles is that of some rows of them, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from large_images import write_discs

pytest_plugins = ("tiny_commands",)

# Predicts one tile, then the image; writes and draws results; prints the peak above the first.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import torch
from maskrcnn_lit import load_model
from maskrcnn_lit.launch.prediction_files import PredictionFiles
from maskrcnn_lit.storage.image_inputs import list_inputs

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1e3

torch.set_num_threads(1)
run, source, out = sys.argv[1:]
model = load_model(run, score_threshold=0.3, max_detections=10, accelerator="cpu")
model.predict(np.zeros((1024, 1024, 3), np.uint8), tile=1024)[0].draw()
before = peak()
inputs = list_inputs(source, strips=True)
with PredictionFiles(Path(out), inputs, draw=True) as files:
    for found in model.stream(inputs, tile=1024):
        files.add(found)
height, width = found.size
print(peak() - before, height, width, len(found), *found.image.shape[:2])
"""


def growth(trained: Path, folder: Path, name: str, side: int) -> float:
    """MB of peak memory above that of a tile."""
    source = write_discs(folder / name, side)
    words = [str(trained), str(source), str(folder / "out")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    grown, height, width, _, *preview = done.stdout.split()
    assert (int(height), int(width)) == (side, side)
    assert max(map(int, preview)) <= 2048
    assert (folder / "out" / "images" / name).with_suffix(".png").is_file()
    print(name, side, grown, "MB")
    return float(grown)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(  # a JPEG is read from above to below, as a PNG
    "name", [pytest.param("a.jpg", marks=pytest.mark.slow), "a.png", "a.tif"]
)
def test_100_megapixels(trained: Path, tmp_path: Path, name: str):
    assert growth(trained, tmp_path, name, 10_000) < 300


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("name", "side"), [("a.tif", 31_623), ("a.png", 30_000)])
def test_a_gigapixel(trained: Path, tmp_path: Path, name: str, side: int):
    assert growth(trained, tmp_path, name, side) < 2000
