"""Nuclei in four spellings: the same pixels and objects give the same batches and losses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import make_model
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.coco.reading import Reader
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.datasets.mask_folder import MaskFolder
from maskrcnn_lit.data.datasets.shape_annotation import annotate
from maskrcnn_lit.data.datasets.writers import write_coco, write_mask_folder, write_yolo
from maskrcnn_lit.data.datasets.yolo_seg import YoloSeg

pytestmark = [pytest.mark.data, pytest.mark.long]

IMAGES = 12


@pytest.fixture(scope="module")
def spellings(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of nuclei without holes in a mask or a shared pixel, so that every form holds them."""
    root = tmp_path_factory.mktemp("spellings")
    nuclei = test_data / "nuclei"
    index = read_index(
        nuclei / "annotations" / "instances_val.json", nuclei / "val", "error", cache=root / "cache"
    )
    whole = [i for i in range(len(index)) if not index.size(i)[0] > 400]
    lossless = [
        i for i in whole if not write_yolo(index.at(np.array([i])), root / "try", "", False).losses
    ]
    plain = [i for i in lossless if labels_of(index, i) is not None][:IMAGES]
    assert len(plain) == IMAGES
    some = index.at(np.array(plain))
    for form, write in (("coco", write_coco), ("masks", write_mask_folder), ("yolo", write_yolo)):
        assert write(some, root / form, "", True).losses == []
    for i in range(len(some)):
        name = Path(some.file_name(i))
        for folder in ("images", "masks"):
            (root / "labels" / folder).mkdir(parents=True, exist_ok=True)
        (root / "labels" / "images" / name).write_bytes(some.read(i))
        labels = labels_of(some, i)
        assert labels is not None
        Image.fromarray(labels).save(root / "labels" / "masks" / f"{name.stem}.tif")
    write_polygons(root)
    return root


def write_polygons(root: Path) -> None:
    """The COCO json with polygons in place of RLE: a mask is sampled otherwise than an outline."""
    content = json.loads((root / "coco" / "instances.json").read_text())
    for entry in content["annotations"]:
        rle = entry["segmentation"]
        mask = coco_mask.decode({**rle, "counts": rle["counts"].encode()}) > 0
        entry |= annotate(mask, crowd=False)
        assert isinstance(entry["segmentation"], list)
    (root / "coco" / "polygons.json").write_text(json.dumps(content))


def labels_of(index: AnnotationIndex, i: int) -> np.ndarray | None:
    """The label image of image i, 16 bits; None if two masks share a pixel."""
    labels = np.zeros(index.size(i), np.uint16)
    for j in range(len(index.annotations(i)["ids"])):
        mask = coco_mask.decode(index.rle(i, j)) > 0
        if labels[mask].any():
            return None
        labels[mask] = j + 1
    return labels


def batches(root: Path, form: str) -> list[Batch]:
    """The training batches of one epoch, augmented."""
    readers: dict[str, Reader] = {
        "masks": MaskFolder(),
        "labels": MaskFolder(class_name="nucleus"),
        "yolo": YoloSeg(),
    }
    one = {} if form in readers else {"annotations": f"{form}.json", "images": "images"}
    data = CocoDataModule(
        name=form,
        root=root / (form if form in readers else "coco"),
        reader=readers.get(form),
        val_share=0.25,
        cache_dir=root / "cache",
        image_size=128,
        workers=0,
        augment={"flip": 0.5, "scale": [0.8, 1.2], "crop": 0.8},
        mask_size=28,
        seed=3,
        **one,
    )
    data.setup("fit")
    assert [category.name for category in data.categories] == ["nucleus"]
    assert data.train_index is not None
    assert data.train_index.changes == ()
    return list(data.train_dataloader())


@pytest.mark.parametrize(
    ("json_file", "form"), [("instances", "masks"), ("instances", "labels"), ("polygons", "yolo")]
)
def test_the_same_content_gives_the_same_batches_and_losses(
    json_file: str, form: str, spellings: Path
):
    own, other = batches(spellings, json_file), batches(spellings, form)
    assert len(own) == len(other) == 5
    for a, b in zip(own, other, strict=True):
        for key in a.keys() - {"image_ids"}:
            assert torch.equal(a[key], b[key]), key
    assert losses(own[0]) == losses(other[0])


def losses(batch: Batch) -> list[float]:
    """The losses of one training step, and the length of its gradient."""
    torch.manual_seed(0)
    model = make_model(1).train()
    parts = model(batch).losses
    sum(parts.values()).backward()
    gradients = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
    return [*(float(loss) for loss in parts.values()), float(torch.stack(gradients).norm())]
