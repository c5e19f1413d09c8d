import copy
import io
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_file import coco_dict, small_index, write_coco
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as tv

from maskrcnn_lit.data.batch import BLANK_ID, IMAGE_KEYS, Batch, check_batch
from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.collate import Sample, collate
from maskrcnn_lit.data.dataset import BadImageError, CocoDataset, image_batch
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.data.stores.resized_images import ResizedImages
from maskrcnn_lit.data.transforms import Augment, SampledTransform, map_boxes, sample_transform
from maskrcnn_lit.data.warp import Transform
from maskrcnn_lit.storage.images import decode

STRONG = Augment(flip=0.5, scale=(0.5, 1.6), crop=0.6, brightness=0.2, contrast=0.2, saturation=0.2)


def shapes_of(size: ImageSize) -> list[tuple[int, int]] | None:
    return [(size, size)] if isinstance(size, int) else None


def whole_epoch(
    index: AnnotationIndex, augment: Augment | None = STRONG, size: ImageSize = 64
) -> list[Batch]:
    dataset = CocoDataset(index=index, image_size=size, augment=augment, mask_size=28, seed=3)
    samples = [dataset[(2, i)] for i in range(len(dataset))]
    return [collate(samples[k : k + 3], shapes_of(size)) for k in range(0, len(samples), 3)]


def relabelled(
    content: dict[str, Any], how: str, shuffle: random.Random
) -> tuple[dict[str, Any], dict[str, dict]]:
    """The same data under other ids, in another order; and the maps from new ids to old."""
    content, maps = copy.deepcopy(content), {}
    for kind in ("images", "annotations", "categories"):
        old = [entry["id"] for entry in content[kind]]
        new = {
            "from 0": list(range(len(old))),
            "gaps": [7 * k + 3 for k in range(len(old))],
            "huge": [2**62 + 11 * k for k in range(len(old))],
            "negative": [-k for k in range(len(old))],
            "shuffled": shuffle.sample(old, len(old)),
        }[how]
        maps[kind] = dict(zip(old, new, strict=True))
        for entry in content[kind]:
            entry["id"] = maps[kind][entry["id"]]
        shuffle.shuffle(content[kind])
    for annotation in content["annotations"]:
        annotation["image_id"] = maps["images"][annotation["image_id"]]
        annotation["category_id"] = maps["categories"][annotation["category_id"]]
    return content, {kind: {new: old for old, new in ids.items()} for kind, ids in maps.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Batch]]:
    folder = tmp_path_factory.mktemp("plain")
    annotations, images = write_coco(folder, coco_dict())
    return images, whole_epoch(read_index(annotations, images, "error"))


@given(
    st.sampled_from(["from 0", "gaps", "huge", "negative", "shuffled"]),
    st.randoms(use_true_random=False),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_id_changes_a_batch(
    plain: tuple[Path, list[Batch]], tmp_path: Path, how: str, shuffle: random.Random
):
    content, old = relabelled(coco_dict(), how, shuffle)
    file = tmp_path / "relabelled.json"
    file.write_text(json.dumps(content))
    index = read_index(file, plain[0], "error")
    for batch, expected in zip(whole_epoch(index), plain[1], strict=True):
        assert batch.keys() == expected.keys()
        for key in batch.keys() - {"image_ids"}:
            assert torch.equal(batch[key], expected[key]), key
        assert [old["images"][number] for number in batch["image_ids"].tolist()] == expected[
            "image_ids"
        ].tolist()
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert [names[category.id] for category in index.categories] == [
        category.name for category in index.categories
    ]


def test_a_sample_depends_on_seed_epoch_and_position_alone(tmp_path: Path):
    index = small_index(tmp_path)
    dataset = CocoDataset(index=index, image_size=64, augment=STRONG, seed=3)
    again = CocoDataset(index=index, image_size=64, augment=STRONG, seed=3)
    _ = again[(0, 1)], torch.rand(7), np.random.default_rng()
    assert all(
        torch.equal(a, b)
        for a, b in zip(dataset[(5, 4)].values(), again[(5, 4)].values(), strict=True)
    )
    for other in (
        dataset[(6, 4)],
        CocoDataset(index=index, image_size=64, augment=STRONG, seed=4)[(5, 4)],
    ):
        assert other["images"].shape != dataset[(5, 4)]["images"].shape or not torch.equal(
            other["images"], dataset[(5, 4)]["images"]
        )
    still = CocoDataset(index=index, image_size=64)
    assert torch.equal(still[(0, 4)]["images"], still[(9, 4)]["images"])


def put_back(crop: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """H W bool: the crop drawn over its box, each pixel asking for what lies at its center."""
    side = len(crop)
    rows = (
        np.floor((np.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * side)
        .astype(int)
        .clip(-1, side)
        + 1
    )
    columns = (
        np.floor((np.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * side)
        .astype(int)
        .clip(-1, side)
        + 1
    )
    return np.pad(crop, 1)[rows][:, columns].astype(bool)


def compare(
    index: AnnotationIndex, i: int, sample: Sample, view: SampledTransform
) -> tuple[list[float], list[float], float]:
    """Of each object of the sample, put back on the file's image: IoU with pycocotools' mask in the
    window, and the distance of the box from that mask's tight one, in pixels of the file. And the
    least area that was left out.
    """
    height, width = index.size(i)
    y, x, tall, wide = view.window
    back = np.linalg.inv(np.vstack([view.matrix, [0, 0, 1]]))[:2]
    annotations = index.annotations(i)
    mask_boxes, boxes = (
        map_boxes(sample[key].double().numpy(), back) for key in ("mask_boxes", "boxes")
    )
    ious, distances, seen = [], [], set()
    truths = []
    for j in range(len(annotations["ids"])):
        shape = index.segmentation(i, j)
        if isinstance(shape, list):
            flat = [part.ravel().tolist() for part in shape]
            shape = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))
        truth = np.zeros((height, width), bool)
        truth[y : y + tall, x : x + wide] = coco_mask.decode(shape)[y : y + tall, x : x + wide]
        truths.append(truth)
    for k, box in enumerate(mask_boxes):
        j = int(np.abs(annotations["boxes"] - box).sum(1).argmin())
        seen.add(j)
        assert annotations["labels"][j] == sample["labels"][k]
        assert annotations["crowd"][j] == sample["crowd"][k]
        crop = sample["masks"][k].numpy()
        drawn = put_back(crop[:, ::-1] if view.flip else crop, box, height, width)
        drawn[:y], drawn[y + tall :], drawn[:, :x], drawn[:, x + wide :] = (
            False,
            False,
            False,
            False,
        )
        if truths[j].sum() > 32**2:
            ious.append((drawn & truths[j]).sum() / (drawn | truths[j]).sum())
            rows, columns = np.flatnonzero(truths[j].any(1)), np.flatnonzero(truths[j].any(0))
            tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            distances.append(np.abs(tight - boxes[k]).max())
    lost = max((int(truth.sum()) for j, truth in enumerate(truths) if j not in seen), default=0)
    return ious, distances, lost


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "augment", "iou", "distance"),
    [((800, 1333), None, 0.98, 2.5), (256, None, 0.98, 2.5), (256, STRONG, 0.978, 5)],
)
def test_coco_comes_back_from_a_batch(
    test_data: Path, size: ImageSize, augment: Augment | None, iou: float, distance: float
):
    """Masks: mean IoU and the 99th percentile of the boxes' distance, over objects of more than 32
    x 32 pixels.
    """
    index = read_index(
        test_data / "coco_mini/annotations/instances_val2017.json",
        test_data / "coco_mini/val2017",
        "error",
    )
    dataset = CocoDataset(index=index, image_size=size, augment=augment, seed=1)
    ious, distances = [], []
    for i in range(0, len(index), 2):
        sample = dataset[(0, i)]
        check_batch(collate([sample], shapes_of(size)), 80)
        view = sample_transform(*index.size(i), size, augment, np.random.default_rng((1, 0, i)))
        found = compare(index, i, sample, view)
        assert found[2] * view.matrix[1, 1] ** 2 < 16, "an object of more than a few pixels is lost"
        ious, distances = ious + found[0], distances + found[1]
    assert len(ious) > 200
    assert np.mean(ious) > iou
    assert min(ious) > 0.75
    assert np.median(distances) < 0.6
    assert np.percentile(distances, 99) < distance


@pytest.mark.parametrize("augment", [None, STRONG])
def test_nuclei_come_back_exactly(test_data: Path, augment: Augment | None):
    """RLE masks under 112 pixels a side lose nothing."""
    index = read_index(
        test_data / "nuclei/annotations/instances_val.json",
        test_data / "nuclei/val",
        "error",
        take=12,
        seed=1,
    )
    dataset = CocoDataset(index=index, image_size=256, augment=augment)
    for i in range(len(index)):
        view = sample_transform(*index.size(i), 256, augment, np.random.default_rng((0, 0, i)))
        ious, distances, _ = compare(index, i, dataset[(0, i)], view)
        assert min(ious, default=1) > 0.999
        assert max(distances, default=0) < (0.01 if augment is None else 2)


@pytest.mark.parametrize(
    ("size", "kept", "mean", "worst"),
    [
        ((800, 1333), False, 0, 0),
        (256, False, 0, 0),
        (128, False, 0.5, 1.0),
        (256, True, 2.2, 4),
        (128, True, 2.6, 5),
    ],
)
def test_pixels_against_a_slow_reference(
    test_data: Path, tmp_path: Path, size: ImageSize, kept: bool, mean: float, worst: float
):
    """Pillow's full decode, then torchvision's antialiased resize, of 255: exact unless the JPEG is
    decoded at a fraction (128 px) or a kept image is resized a second time (a size jitter of 0.8 to
    1 here).
    """
    folder = test_data / "coco_mini"
    index = read_index(
        folder / "annotations/instances_val2017.json", folder / "val2017", "error", take=24
    )
    augment = Augment(flip=0.5, scale=(0.8, 1.0))
    resized = ResizedImages(index, size, tmp_path) if kept else None
    dataset = CocoDataset(
        index=index, image_size=size, augment=augment, seed=1, resized=resized, cache=tmp_path
    )
    differences = []
    for i in range(len(index)):
        view = sample_transform(*index.size(i), size, augment, np.random.default_rng((1, 0, i)))
        whole = tv.pil_to_tensor(Image.open(io.BytesIO(index.read(i))).convert("RGB"))
        expected = tv.resize(whole, list(view.size), antialias=True)
        expected = expected.flip(-1) if view.flip else expected
        for _ in range(2):  # kept images come from the disk the second time
            found = dataset[(0, i)]["images"]
        differences.append(float((found.float() - expected.float()).abs().mean()))
    assert np.mean(differences) <= mean
    assert max(differences) <= worst


def test_objects_out_of_sight_are_dropped(tmp_path: Path):
    index = small_index(tmp_path, 6)
    dataset = CocoDataset(index=index, image_size=64, augment=Augment(crop=0.3))
    counts = [len(dataset[(epoch, 5)]["boxes"]) for epoch in range(30)]
    assert min(counts) < 3
    assert max(counts) <= 5
    for epoch in range(30):
        check_batch(collate([dataset[(epoch, 5)]], [(64, 64)]), 3)


@pytest.fixture(scope="module")
def corrupt(test_data: Path) -> AnnotationIndex:
    folder = test_data / "corrupt"
    return read_index(folder / "annotations/instances_corrupt.json", folder / "images", "skip")


def test_every_sound_image_of_corrupt_loads_and_the_cut_one_counts_for_nothing(
    corrupt: AnnotationIndex, caplog: pytest.LogCaptureFixture
):
    dataset = CocoDataset(index=corrupt, image_size=160, augment=Augment(flip=1.0), on_bad="skip")
    with caplog.at_level(logging.WARNING):
        batch = collate([dataset[(0, i)] for i in range(len(dataset))], [(160, 160)])
    check_batch(batch, 80)
    cut = list(corrupt.file_names).index("truncated.jpg")
    assert (~batch["readable"]).nonzero().tolist() == [[cut]]
    height, width = corrupt.size(cut)
    assert not batch["images"][cut].any()
    assert not batch["valid"][cut].any()
    assert batch["crowd"][cut].tolist() == [True] + [False] * 7
    assert (
        batch["boxes"][cut, 0].tolist()
        == [0, 0, width, height]
        == batch["mask_boxes"][cut, 0].tolist()
    )
    assert batch["masks"][cut, 0].all()
    assert batch["image_ids"][cut] == 2
    assert "truncated.jpg" in caplog.text
    assert len(caplog.records) == 1
    readable = batch["images"][batch["readable"]]
    assert all(image.float().std() > 20 for image in readable)
    assert len(readable) == 17
    faulty = [
        list(corrupt.file_names).index(f"{n}.jpg")
        for n in ("bbox_zero_width", "duplicate_annotation_id")
    ]
    # of two annotations the sound one is left; a repeated id loses none
    assert batch["valid"][faulty].sum(1).tolist() == [1, 2]


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_cut_file_is_an_error_in_one_sentence(corrupt: AnnotationIndex, workers: int):
    dataset = CocoDataset(index=corrupt, image_size=160, on_bad="error")
    position = list(corrupt.file_names).index("truncated.jpg")
    loader = DataLoader(
        dataset, batch_sampler=[[(0, position)]], num_workers=workers, collate_fn=lambda s: s
    )
    with pytest.raises(BadImageError) as caught:
        list(loader)
    message = str(caught.value)
    assert message.startswith(corrupt.where(position))
    assert message.endswith("data.on_bad=skip")
    assert "truncated" in message
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.mark.long
def test_a_file_that_went_away_is_an_error_too(tmp_path: Path):
    index = small_index(tmp_path)
    Path(index.where(2)).unlink()
    with pytest.raises(BadImageError, match=r"02\.jpg cannot be decoded .*No such file"):
        CocoDataset(index=index, image_size=64)[(0, 2)]


@pytest.mark.long
def test_a_batch_for_prediction_is_what_validation_shows(tmp_path: Path):
    index = small_index(tmp_path)
    dataset = CocoDataset(index=index, image_size=96)
    expected = collate([dataset[(0, i)] for i in (1, 4)], [(96, 96)])
    images = [decode(index.read(i))[0] for i in (1, 4)]
    batch = image_batch(images, [2, 5], 96)
    assert set(batch) == set(IMAGE_KEYS)
    assert all(torch.equal(batch[key], expected[key]) for key in batch)
    again = CocoDataset(index=index, image_size=64).at_size([2, 5], 96)
    assert set(again) == set(IMAGE_KEYS)
    assert all(torch.equal(again[key], expected[key]) for key in again)
    blank = dataset.at_size([5, BLANK_ID], (48, 64))
    assert blank["images"][0].any()
    assert not blank["images"][1].any()
    assert blank["image_ids"].tolist() == [5, BLANK_ID]


class Turned(Transform):
    """By up to 40 degrees around the center."""

    def geometry(
        self, generator: np.random.Generator, size: tuple[int, int]
    ) -> NDArray[np.float64]:
        angle = np.deg2rad(generator.uniform(-40, 40))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center = np.array([size[1], size[0]]) / 2
        return np.column_stack([turn, center - turn @ center])


def test_with_transforms_image_boxes_and_masks_turn_together(tmp_path: Path):
    """White squares on black: what is white in the image is the masks, and boxes are tight."""
    (tmp_path / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    for n in range(4):
        pixels = np.zeros((96, 96, 3), np.uint8)
        entry = {"id": n, "file_name": f"{n}.png", "height": 96, "width": 96}
        content["images"].append(entry)
        for k, (x, y, side) in enumerate(((20, 30, 24), (56, 40, 16))):
            pixels[y : y + side, x : x + side] = 255
            outline = [x, y, x + side, y, x + side, y + side, x, y + side]
            content["annotations"].append(
                {"id": 2 * n + k, "image_id": n, "category_id": 1, "iscrowd": 0}
                | {"bbox": [x, y, side, side], "area": side**2, "segmentation": [outline]}
            )
        Image.fromarray(pixels).save(tmp_path / "images" / f"{n}.png")
    (tmp_path / "all.json").write_text(json.dumps(content))
    index = read_index(tmp_path / "all.json", tmp_path / "images", "error")
    augment = Augment(flip=0.5, transforms=(Turned(),))
    dataset = CocoDataset(index=index, image_size=96, augment=augment, seed=1, cache=tmp_path)
    for i in range(4):
        sample = dataset[(0, i)]
        check_batch(collate([sample], [(96, 96)]), 1)
        assert all(torch.equal(value, dataset[(0, i)][key]) for key, value in sample.items())
        white = sample["images"][0] > 127
        painted = torch.zeros_like(white)
        for box, crop in zip(sample["mask_boxes"], sample["masks"], strict=True):
            centers = torch.stack(torch.meshgrid(*[torch.arange(96) + 0.5] * 2, indexing="xy"), -1)
            cells = ((centers - box[:2]) / (box[2:] - box[:2]) * len(crop)).floor().long()
            inside = ((cells >= 0) & (cells < len(crop))).all(-1)
            x, y = cells.clamp(0, len(crop) - 1).unbind(-1)
            painted |= (crop[y, x] > 0) & inside
        assert (white & painted).sum() / (white | painted).sum() > 0.9
        ys, xs = white.nonzero().T
        around = torch.cat([sample["boxes"][:, :2].amin(0), sample["boxes"][:, 2:].amax(0)])
        expected = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert (around - expected).abs().max() < 1.5
    shapes = [dataset[(0, i)]["boxes"] for i in range(4)]
    assert not torch.allclose(shapes[0], shapes[1]), "each image draws for itself"
