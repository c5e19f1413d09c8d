"""Copy-paste from the json to the batch: determinism, stores, slots, crowd and void."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_file import coco_dict, small_index, void_dict, write_coco
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from maskrcnn_lit.data.batch import check_batch
from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.collate import Sample, collate
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.dataset import CocoDataset
from maskrcnn_lit.data.samplers import BLANK
from maskrcnn_lit.data.stores.cutouts import Cutouts
from maskrcnn_lit.data.stores.resized_images import ResizedImages
from maskrcnn_lit.data.transforms import Augment, CopyPaste
from maskrcnn_lit.data.warp import QuarterTurns

PASTE = CopyPaste(p=0.7, occlude=0.5)
AUGMENT = Augment(flip=0.5, scale=(0.6, 1.0), copy_paste=PASTE)


def equal(a: Sample, b: Sample) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def dataset(index: AnnotationIndex, tmp_path: Path, **options: Any) -> CocoDataset:
    options = {"image_size": 64, "augment": AUGMENT, "mask_size": 28, "seed": 3} | options
    return CocoDataset(index=index, cache=tmp_path, **options)


def test_a_sample_depends_on_seed_epoch_and_position_alone(tmp_path: Path):
    index = small_index(tmp_path, 6)
    first, second = dataset(index, tmp_path), dataset(index, tmp_path / "other")
    keys = [(epoch, i) for epoch in range(3) for i in range(6)]
    samples = {key: first[key] for key in keys}
    assert all(equal(second[key], samples[key]) for key in reversed(keys))
    sources = [first.paste_source(key) for key in keys]
    assert sources == [second.paste_source(key) for key in reversed(keys)][::-1]
    assert len(set(sources)) > 3
    assert sources != [dataset(index, tmp_path, seed=4).paste_source(key) for key in keys]
    assert first.paste_source((0, BLANK)) is None


def test_images_without_pasted_objects_are_as_they_were(tmp_path: Path):
    index = small_index(tmp_path, 6)
    with_paste = dataset(index, tmp_path)
    plain = dataset(index, tmp_path, augment=AUGMENT._replace(copy_paste=CopyPaste()))
    changed = 0
    for key in [(epoch, i) for epoch in range(3) for i in range(6)]:
        a, b = with_paste[key], plain[key]
        assert a["images"].shape == b["images"].shape
        assert a["seeds"] == b["seeds"]
        changed += not equal(a, b)
        assert with_paste.paste_source(key) is not None or equal(a, b)
    assert changed > 6


@pytest.mark.process
def test_loader_processes_give_the_same_batches(tmp_path: Path):
    index = small_index(tmp_path, 6)
    data = dataset(index, tmp_path)
    batches = [[(epoch, i), (epoch, i + 1)] for epoch in range(2) for i in (0, 2, 4)]
    loader = DataLoader(data, batch_sampler=batches, num_workers=2, collate_fn=collate)
    for keys, batch in zip(batches, loader, strict=True):
        assert equal(batch, collate([data[key] for key in keys]))


@pytest.mark.parametrize("size", [64, (64, 100), 200])
def test_objects_are_the_same_with_every_store(tmp_path: Path, size: Any):
    """Pixels of stored resized images differ a little; see test_dataset.py."""
    index = small_index(tmp_path, 6)
    bare = dataset(index, tmp_path, image_size=size)
    stored = dataset(
        index, tmp_path, image_size=size, cutouts=Cutouts(index, size, tmp_path / "cutouts")
    )
    both = dataset(
        index,
        tmp_path,
        image_size=size,
        cutouts=Cutouts(index, size, tmp_path / "cutouts"),
        resized=ResizedImages(index, size, tmp_path),
    )
    for _ in range(2):
        for key in [(epoch, i) for epoch in range(2) for i in range(6)]:
            sample, other = bare[key], both[key]
            assert equal(sample, stored[key])
            assert all(torch.equal(sample[k], other[k]) for k in sample.keys() - {"images"})


def test_batches_hold_the_contract_and_need_no_more_slots(tmp_path: Path):
    index = small_index(tmp_path, 8)
    options = CopyPaste(p=1.0, occlude=0.5, objects=50)
    for size in (8, 16):
        data = dataset(index, tmp_path, augment=AUGMENT._replace(copy_paste=options), slots=size)
        most = 0
        for epoch in range(6):
            batch = collate([data[(epoch, i)] for i in range(8)], [(64, 64)], size)
            check_batch(batch, 3)
            assert batch["boxes"].shape[1] == size
            most = max(most, int((batch["valid"] | batch["crowd"]).sum(1).max()))
        assert 5 < most <= size


def test_crowd_regions_and_boxes_without_masks_are_not_pasted(tmp_path: Path):
    content = coco_dict()
    for annotation in content["annotations"]:
        if annotation["image_id"] == 6:
            annotation["segmentation"] = (
                [] if not annotation["iscrowd"] else annotation["segmentation"]
            )
    annotations, images = write_coco(tmp_path, content)
    index = read_index(annotations, images, "error", cache=tmp_path / "cache")
    options = CopyPaste(p=1.0, occlude=0.0, objects=8, visible=0.0)
    data = dataset(index, tmp_path, augment=Augment(copy_paste=options))
    sources = {data.paste_source((epoch, 0)) for epoch in range(60)}
    assert sources == {1, 2, 3, 4}
    for epoch in range(20):
        assert not data[(epoch, 0)]["crowd"].any()  # the image without objects
        assert data[(epoch, 0)]["masked"].all()


def test_an_unreadable_source_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    index = small_index(tmp_path, 6)
    options = CopyPaste(p=1.0)
    augment = AUGMENT._replace(copy_paste=options)
    data = dataset(index, tmp_path, augment=augment, on_bad="skip")
    plain = dataset(index, tmp_path, augment=AUGMENT._replace(copy_paste=CopyPaste()))
    key = next((e, 0) for e in range(99) if data.paste_source((e, 0)) == 4)
    assert not equal(data[key], plain[key])
    Path(index.where(4)).write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        assert equal(data[key], plain[key])
    assert "04.jpg cannot be decoded" in caplog.text


def colored(folder: Path) -> AnnotationIndex:
    """Images of black with squares, each of a color of its own: the value of red is its label."""
    (folder / "images").mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": k, "name": f"c{k:02}"} for k in range(1, 21)]
    rng = np.random.default_rng(0)
    for n in range(5):
        pixels = np.zeros((96, 96, 3), np.uint8)
        content["images"].append({"id": n, "file_name": f"{n}.png", "height": 96, "width": 96})
        for k, (left, top) in enumerate(((0, 0), (48, 0), (0, 48), (48, 48))):
            side = int(rng.integers(16, 40))
            x, y = left + 4, top + 3
            label = 4 * n + k + 1
            pixels[y : y + side, x : x + side] = 12 * label
            outline = [x, y, x + side, y, x + side, y + side, x, y + side]
            content["annotations"].append(
                {"id": label, "image_id": n, "category_id": label, "iscrowd": 0}
                | {"bbox": [x, y, side, side], "area": side**2, "segmentation": [outline]}
            )
        Image.fromarray(pixels).save(folder / "images" / f"{n}.png")
    (folder / "all.json").write_text(json.dumps(content))
    return read_index(folder / "all.json", folder / "images", "error", cache=folder / "cache")


def painted(sample: Sample, n: int, side: int) -> NDArray[np.bool_]:
    box, crop = sample["mask_boxes"][n].numpy(), sample["masks"][n].numpy()
    centers = np.stack(np.meshgrid(*[np.arange(side) + 0.5] * 2), -1)
    cells = np.floor((centers - box[:2]) / (box[2:] - box[:2]) * len(crop)).astype(int)
    inside = ((cells >= 0) & (cells < len(crop))).all(-1)
    x, y = np.where(inside[..., None], cells, 0).transpose(2, 0, 1)
    return (crop[y, x] > 0) & inside


@pytest.mark.parametrize("turned", [False, True])
def test_the_masks_of_a_label_are_the_pixels_of_its_color(tmp_path: Path, turned: bool):
    options = CopyPaste(p=1.0, occlude=0.7, visible=0.0)
    turns = (QuarterTurns(1.0),) if turned else ()
    augment = Augment(flip=0.5, copy_paste=options, transforms=turns)
    data = dataset(colored(tmp_path), tmp_path, image_size=96, augment=augment, mask_size=112)
    labels, tight = 0, 0
    for key in [(epoch, i) for epoch in range(4) for i in range(5)]:
        sample = data[key]
        check_batch(collate([sample], [(96, 96)]), 20)
        red = sample["images"][0].numpy().astype(int)
        for label in set(sample["labels"].tolist()):
            own = np.flatnonzero(sample["labels"].numpy() == label)
            mask = np.any([painted(sample, n, 96) for n in own], axis=0)
            same = np.abs(red - 12 * label) < 6
            if same.sum() < 60:
                continue
            labels += 1
            assert (mask & same).sum() / (mask | same).sum() > 0.97
            if len(own) == 1:
                ys, xs = np.nonzero(same)
                box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                assert np.abs(sample["boxes"][own[0]].numpy() - box).max() <= 1.01
                tight += 1
    assert labels > 80
    assert tight > 60


def test_void_pixels_under_a_pasted_object_are_not_void(tmp_path: Path):
    content = void_dict()
    annotations, images = write_coco(tmp_path, content)
    index = read_index(annotations, images, "error", cache=tmp_path / "cache")
    options = CopyPaste(p=1.0, occlude=0.0, objects=8)
    data = dataset(index, tmp_path, augment=Augment(copy_paste=options))
    plain = dataset(index, tmp_path, augment=Augment())
    fewer = 0
    for key in [(epoch, i) for epoch in range(5) for i in range(6)]:
        sample, before = data[key], plain[key]
        check_batch(collate([sample], [(64, 64)]), 3)
        changed = (sample["images"] != before["images"]).any(0)
        assert not (sample["void"][changed] > 0).any()
        assert bool((sample["void"] <= before["void"]).all())
        fewer += int(before["void"].sum() > sample["void"].sum())
    assert fewer > 3


def test_the_datamodule_says_where_cutouts_are(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    annotations, images = write_coco(tmp_path, coco_dict())
    part = {"images": images, "annotations": annotations}
    with caplog.at_level(logging.INFO):
        data = CocoDataModule(
            name="own",
            train=part,
            val=part,
            image_size=64,
            augment={"copy_paste": {"p": 0.5}},
            cache_dir=tmp_path / "cache",
            workers=0,
        )
        data.setup("fit")
        batches = list(data.train_dataloader())
    assert len(batches) == 3
    assert f"pixels of objects are cached in {tmp_path}/cache/cutouts" in caplog.text
    assert data.val_dataset.paste_source((0, 3)) is None
