"""What the certificate measures, on a model in place of an exported file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import HEIGHT, METADATA, WIDTH, batch_of, lively

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.graph import plain_graph
from maskrcnn_lit.export.parity import Parity
from maskrcnn_lit.export.runtime import ExportedModel
from maskrcnn_lit.launch import certificate

pytest_plugins = ("exported",)

NOTHING: dict[str, Any] = {"differences": {}}


def exported(change: float = 0.0) -> ExportedModel:
    """The graph of `lively()` as a file would run it, with scores that are off by `change`."""
    graph = plain_graph(lively())

    def run(images: np.ndarray, sizes: np.ndarray) -> list[torch.Tensor]:
        with torch.no_grad():
            boxes, scores, *rest = graph(torch.from_numpy(images), torch.from_numpy(sizes))
        return [boxes, scores + change * (scores > 0), *rest]

    return ExportedModel([(METADATA, run)])


@pytest.mark.long
def test_parity_is_measured_on_real_blank_and_full_images():
    real = [batch_of([(HEIGHT, WIDTH)]), batch_of([(50, 60)])]
    found = certificate.parity(lively(), exported(), real)
    assert list(found) == ["real", "blank", "full"]
    assert [own.images for own in found.values()] == [2, 1, 1]
    assert found["full"].detections == METADATA.slots  # every slot
    assert all(own.broken() == [] for own in found.values())
    off = certificate.parity(lively(), exported(0.001), real)
    assert all("scores differ by 0.001" in own.broken()[0] for own in off.values())


def test_the_model_is_compared_in_float64():
    """Its own rounding is not the file's."""
    batch = batch_of([(HEIGHT, WIDTH)])
    with torch.no_grad():
        exact = certificate.in_double(lively())(batch)
        rounded = certificate.of_model(lively())(batch)
    assert torch.get_default_dtype() == torch.float32
    assert exact["scores"].dtype == torch.float64
    assert rounded["scores"].dtype == torch.float32
    difference = (exact["scores"] - rounded["scores"]).abs().max()
    assert 0 < difference < 1e-5


def test_a_bound_holds_or_is_broken():
    fine = {"real": Parity()}
    for precision, key, limit in (("f32", "val/box_ap", 0.0005), ("int8", "val/mask_ap", 0.005)):
        for value, holds in ((-0.9 * limit, True), (-1.1 * limit, False), (1.1 * limit, None)):
            ap = {"differences": {key: {"value": value}}}
            row = certificate.bounds(precision, fine, ap)[-1]
            assert (row["name"], row["bound"], row["value"]) == (key, limit, value)
            assert row["holds"] is (precision == "int8" if holds is None else holds)
    assert certificate.bounds("int8", {"real": Parity(unmatched=9)}, NOTHING) == []
    (row,) = certificate.bounds("f32", {"real": Parity(unmatched=9)}, NOTHING)
    assert row == {
        "name": "parity, real",
        "value": "9 detections differ",
        "bound": "equal",
        "holds": False,
    }
    nan = {"differences": {"val/mask_ap": {"value": float("nan")}}}
    assert not certificate.bounds("f32", {}, nan)[0]["holds"]


def test_a_mosaic_shows_all_images():
    images = [np.full((40, 60, 3), 10 * (n + 1), np.uint8) for n in range(3)]
    mosaic = certificate._mosaic(images, (64, 96), 2)
    assert mosaic.shape == (3, 64, 96)
    assert mosaic[0, ::32, ::48].flatten().tolist() == [10, 20, 30, 10]


class Images:
    """A data set of two images without annotations."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {
            "images": torch.full((3, 40, 60), key[1], dtype=torch.uint8),
            "image_sizes": torch.tensor([40, 60]),
            "boxes": torch.zeros(0, 4),
        }

    class index:
        @staticmethod
        def where(i: int) -> str:
            return f"image {i}"


def test_images_come_alone_without_targets_in_the_smallest_size():
    found = list(certificate.batches(Images(), [(96, 96), (64, 64), (32, 32)], None))
    assert [batch["images"].shape for batch in found] == [(1, 3, 64, 64)] * 2
    assert all("boxes" not in batch for batch in found)
    assert len(list(certificate.batches(Images(), [(64, 64)], 1))) == 1
    with pytest.raises(UserError, match=r"image 0 is 40x60 pixels .* sizes=\[32x64\]: add a size"):
        next(certificate.batches(Images(), [(32, 64)], None))


def test_latency_has_each_stage_of_each_detector():
    named = {"exported": certificate.of_exported(exported())}
    images = [np.zeros((50, 70, 3), np.uint8)]
    times = certificate.latency(named, images, (64, 96), count=2)["exported"]
    assert list(times) == ["resize", "model", "masks", "all"]
    assert all(0 < median <= late for median, late in times.values())
    assert times["all"][0] >= times["model"][0]


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_peak_memory_is_that_of_a_process_that_runs_the_file(
    format: str, exported_files: dict[str, Path], tmp_path: Path
):
    image = np.zeros((50, 70, 3), np.uint8)
    peak = certificate.peak_bytes(exported_files[format], image, tmp_path)
    weights = sum(4 * value.numel() for value in lively().parameters())
    assert weights < peak < 4e9
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"does not run in a new process: [\s\S]*does not exist"):
        certificate.peak_bytes(tmp_path / "none.pt2", image, tmp_path)


def test_no_image_is_an_error():
    class Data:
        val_index = None

    with pytest.raises(UserError, match="the validation data has no image"):
        certificate.val_index(Data())


def test_metadata_of_the_helper_is_that_of_the_graph():
    assert replace(METADATA, slots=lively().box_head.max_detections) == METADATA
