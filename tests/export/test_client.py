"""client.py alone, in a process that has no torch, gives what the Predictor gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import HEIGHT, WIDTH, lively
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.export import client
from maskrcnn_lit.model.paste_masks import masks_to_rle
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.storage.images import decode

pytest_plugins = ("exported",)

WITHOUT = ("torch", "torchvision", "maskrcnn_lit", "pycocotools", "lightning")
ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {without}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not set({without}) & set(sys.modules)
"""


def test_it_has_under_80_lines_and_imports_nothing_of_ours():
    text = Path(client.__file__).read_text()
    assert len(text.splitlines()) < 80
    assert not [line for line in text.splitlines() if "import" in line and "maskrcnn" in line]


def test_its_masks_are_those_of_the_package():
    torch.manual_seed(0)
    masks = torch.nn.functional.avg_pool2d(torch.rand(40, 30, 30), 3, 1) * 1.0
    corner = torch.rand(40, 2) * 40
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * 30 + 0.5], 1).clamp(max=60)
    boxes[0], boxes[1] = torch.tensor([0.0, 0, 60, 50]), torch.tensor([0.0, 0, 0, 0])
    boxes[:, 3] = boxes[:, 3].clamp(max=50)
    expected = coco_mask.decode(masks_to_rle(masks, boxes, 50, 60))
    ours = [
        client.rle(mask, box, 50, 60)
        for mask, box in zip(masks.numpy(), boxes.numpy().astype(float), strict=True)
    ]
    found = coco_mask.decode([{**r, "counts": r["counts"].encode()} for r in ours])
    assert expected.sum() > 1000
    assert (found != expected).sum() <= 2  # rounding at 0.5


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_process_without_torch_detects_the_same(
    format: str, exported_files: dict[str, Path], tmp_path: Path
):
    pixels = np.random.default_rng(0).integers(0, 256, (2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    code = ALONE.format(without=WITHOUT)
    words = [client.__file__, str(exported_files[format]), "a.png"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    batch = image_batch([pixels], [1], (HEIGHT, WIDTH))
    with torch.no_grad():
        found = to_original(lively().infer(batch["images"], batch["image_sizes"], True), batch)[0]
    assert len(results) == len(found["scores"]) > 20
    # Pillow's resize rounds otherwise in a few pixels, so scores are near and not equal.
    best = sorted(zip(found["scores"].tolist(), found["labels"].tolist(), strict=True))[-1]
    assert results[0]["score"] == pytest.approx(best[0], abs=0.02)
    assert results[0]["category_id"] == (7, 9, 11)[best[1] - 1]
    assert all(r["segmentation"]["size"] == [2 * HEIGHT, 2 * WIDTH] for r in results)
    areas = coco_mask.area([r["segmentation"] for r in results])
    assert (areas > 0).mean() > 0.3


def _pictures(folder: Path) -> dict[str, Path]:
    """The same gray picture in four files."""
    gray = np.random.default_rng(0).integers(0, 256, (2 * HEIGHT, 2 * WIDTH), np.uint8)
    gray[0, 0] = 255  # the largest value says how many bits there are
    upright, turned = Image.fromarray(gray), Image.fromarray(np.rot90(gray).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    files = {name: folder / name for name in ("8.png", "turned.png", "turned.tif", "12.tif")}
    upright.save(files["8.png"])
    turned.save(files["turned.png"], exif=exif)
    turned.save(files["turned.tif"], exif=exif)
    Image.fromarray(gray.astype(np.uint16) << 4).save(files["12.tif"])
    return files


def test_turned_pictures_and_those_of_more_than_8_bits_are_read_as_the_package_reads_them(
    tmp_path: Path,
):
    fed = []

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        fed.append(feed["images"][0])
        box = np.array([[1.0, 2, 3, 4]], np.float32)
        return [np.stack([value]) for value in (box, np.ones(1), np.ones(1, int), np.ones(1, bool))]

    about = {"image_size": [HEIGHT, WIDTH], "size": [HEIGHT, WIDTH], "batch_size": 1}
    about |= {"classes": [[7, "cell"]], "bits": 0}
    files = _pictures(tmp_path)
    results = [list(client.detect(about, run, str(file), 1)) for file in files.values()]
    package = [decode(file.read_bytes())[0] for file in files.values()]
    assert all(np.array_equal(pixels, package[0]) for pixels in package)
    assert all(np.array_equal(pixels, fed[0]) for pixels in fed)
    assert fed[0].std() > 10
    result = {"image_id": 1, "category_id": 7, "bbox": [2, 4, 4, 4], "score": 1.0}
    assert results == [[result]] * 4
    list(client.detect(about | {"bits": 14}, run, str(files["12.tif"]), 1))
    assert np.abs(fed[-1].astype(int) - fed[0] / 4).max() < 2  # cut off before the resize
