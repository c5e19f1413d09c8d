"""`maskrcnn-lit data show` from end to end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_commands import coco_data, run_command
from voc_files import write_voc

from maskrcnn_lit.cli import data_show
from maskrcnn_lit.cli.data_show import LONGEST, as_seen
from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.report.draw import STRIPES
from maskrcnn_lit.report.panels import ground_truth_from_batch

pytest_plugins = ("tiny_commands",)


def show(*arguments: object, code: int = 0) -> None:
    run_command("data", "show", *arguments, code=code)


def picture(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.long
def test_a_grid_of_training_samples_is_written(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    data = (*coco_data(shapes), "data.image_size=64")
    show(*data, f"out={tmp_path}/a.png", "count=4")
    drawn = picture(tmp_path / "a.png")
    assert drawn.shape[0] > 800
    assert drawn.shape[1] > 800  # 2 x 2 pictures of about 512 pixels
    said = f"4 train images in epoch 0, as the model gets them: {tmp_path}/a.png\n"
    assert capsys.readouterr().out.endswith(said)
    show(*data, f"out={tmp_path}/b.png", "count=4")
    assert np.array_equal(picture(tmp_path / "b.png"), drawn)
    show(*data, f"out={tmp_path}/c.png", "count=4", "epoch=1")
    other = picture(tmp_path / "c.png")
    assert other.shape != drawn.shape or not np.array_equal(other, drawn)


def test_count_is_at_most_what_there_is(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    show(*coco_data(shapes), "data.image_size=64", f"out={tmp_path}/a.png", "part=val", "count=50")
    assert "3 val images as in evaluation, as the model gets them" in capsys.readouterr().out


def test_it_draws_what_the_loader_gives(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same images in each epoch, flipped and scaled as the loader does, with its boxes and
    crowd regions.
    """
    seen: list[tuple[np.ndarray, list[str]]] = []
    real = data_show.draw_instances

    def noted(
        image: np.ndarray, *, boxes: np.ndarray, masks: list[np.ndarray], names: list[str]
    ) -> np.ndarray:
        seen.append((image, names))
        for box, mask in zip(boxes, masks, strict=True):  # box and mask lie together on the image
            y, x = np.nonzero(mask)
            assert np.abs(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) - box).max() <= 3
        return real(image, boxes=boxes, masks=masks, names=names)

    monkeypatch.setattr(data_show, "draw_instances", noted)
    options = [
        *coco_data(shapes),
        "data.image_size=64",
        "augment.flip=1.0",
        "augment.scale=[0.8,0.9]",
    ]
    show(*options, f"out={tmp_path}/a.png", "epoch=3", "count=8")
    config = compose("data show", options)
    data = build(config.data)
    data.setup("fit")
    for (image, names), position in zip(seen, range(8), strict=True):  # all of them, in their order
        sample = data.train_dataset[3, position]
        assert np.array_equal(image, sample["images"].permute(1, 2, 0).numpy())
        labels = [data.categories[label - 1].name for label in sample["labels"].tolist()]
        crowd = sample["crowd"].tolist()
        assert names == [
            name + " (crowd)" * is_crowd for name, is_crowd in zip(labels, crowd, strict=True)
        ]


@pytest.mark.parametrize(("ignore", "hatched"), [("true", True), ("false", False)])
def test_void_pixels_are_hatched(tmp_path: Path, ignore: str, hatched: bool):
    """Those of the image are all of one color, so stripes are what differs outside of objects."""
    root = write_voc(tmp_path / "voc")
    options = ("data=voc2012", f"data.root={root}", f"data.cache_dir={tmp_path}/cache")
    show(*options, f"data.ignore_void={ignore}", f"out={tmp_path}/a.png", "part=val")
    pixels = picture(tmp_path / "a.png").astype(int)
    stripes = (0.3 * np.array([90, 120, 200]) + 0.7 * np.array(STRIPES)[:, None]).round()
    for stripe in stripes:
        near = abs(pixels - stripe).max(2) <= 6  # JPEG
        assert (near.sum() > 500) == hatched


def test_large_samples_are_shown_smaller():
    batch = {
        "images": torch.zeros(1, 3, 800, 1344, dtype=torch.uint8),
        "image_sizes": torch.tensor([[800, 1280]]),
        "scales": torch.tensor([[9.0, 9.0]]),
        "original_sizes": torch.tensor([[7, 7]]),
        "boxes": torch.tensor([[[100.0, 200, 300, 600]]]),
        "mask_boxes": torch.tensor([[[100.0, 200, 300, 600]]]),
        "masks": torch.ones(1, 1, 28, 28, dtype=torch.uint8),
        "labels": torch.tensor([[1]]),
        "valid": torch.tensor([[False]]),
        "crowd": torch.tensor([[True]]),
    }
    image, target = ground_truth_from_batch(as_seen(batch), 0, ["a"])
    assert image.shape == (400, LONGEST, 3)
    assert target["boxes"].tolist() == [[50, 100, 150, 300]]
    assert target["names"] == ["a (crowd)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["count=0"], "count=0 must be a whole number from 1"),
        (["part=test"], "part=test must be one of train, val"),
        (["epoch=-1"], "epoch=-1 must be a whole number from 0"),
        (
            ["out=a.txt"],
            "a.txt cannot be written: use a file name that ends in .png, .jpg, .jpeg, .webp",
        ),
    ],
)
def test_a_mistake_is_told(
    arguments,
    message,
    shapes: Path,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    show(*coco_data(shapes), "data.image_size=64", *arguments, code=2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_not_given_is_not_told(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    train = [option for option in coco_data(shapes) if not option.startswith("data.val.")]
    show(*train, "data.image_size=64", f"out={tmp_path}/a.png")
    said = capsys.readouterr().out
    assert "train: " in said
    assert "val" not in said.replace(str(shapes), "")
