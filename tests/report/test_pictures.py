"""Pictures for reports: which ones, read, shrunk."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_sample import HEIGHT, WIDTH, analysis, ground_truth, results

from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.datasets.shapes import write_shapes
from maskrcnn_lit.report.evaluation.worst_images import Picture, draw_worst
from maskrcnn_lit.report.pictures import LONGEST, choose, image_reader


def gray(image_id: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 90, np.uint8)


def draw(**more: Any) -> list[Picture]:
    given = {
        "worst": analysis()["worst"],
        "ground_truth": ground_truth(),
        "results": results(),
        "read_image": gray,
    }
    return list(draw_worst(**(given | more)))


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.jpeg)).convert("RGB"), np.float64)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (2000, 1000), (30, 3000)])
def test_a_picture_has_a_bound(height: int, width: int):
    truth = ground_truth()
    truth["images"] = [image | {"height": height, "width": width} for image in truth["images"]]
    entry = {"image_id": 7, "missed": [70], "false": [], "merged": []}
    (picture,) = draw(
        worst=[entry],
        ground_truth=truth,
        read_image=lambda i: np.zeros((height, width, 3), np.uint8),
    )
    assert (picture.height, picture.width) == pixels(picture).shape[:2]
    assert max(picture.height, picture.width) <= LONGEST
    assert picture.width / picture.height == pytest.approx(width / height, rel=0.2)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> AnnotationIndex:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root=root, train_images=1, val_images=3, size=64, seed=0)
    return read_index(
        root / "annotations" / "instances_val.json", root / "val", "error", cache=root / "cache"
    )


def test_images_are_read_by_their_id(index: AnnotationIndex):
    read = image_reader(index)
    for i, image_id in enumerate(index.image_ids.tolist()):
        found = read(image_id)
        expected = np.asarray(Image.open(io.BytesIO(index.read(i))).convert("RGB"))
        assert found is not None
        assert (found == expected).all()


def test_a_damaged_or_missing_file_is_none(index: AnnotationIndex):
    read = image_reader(index)
    first, second, _ = (Path(index.where(i)) for i in range(3))
    first.write_bytes(b"no image")
    second.unlink()
    assert read(int(index.image_ids[0])) is None
    assert read(int(index.image_ids[1])) is None


def test_which_images(tmp_path: Path):
    ids = [5, 900000000000, 7, -3, 12]
    assert choose(ids, 2, 1) == choose(reversed(ids), 2, 1) <= set(ids)
    assert choose(ids, 9, 1) == set(ids)
    assert len({frozenset(choose(ids, 2, seed)) for seed in range(20)}) > 3
