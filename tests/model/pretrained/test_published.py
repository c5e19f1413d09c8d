import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from repository import REPOSITORY
from torchvision.models import ResNet18_Weights, get_model_weights
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained import published
from maskrcnn_lit.model.pretrained.published import (
    PUBLISHED,
    WITHOUT_EPSILON,
    coco_categories,
    published_backbone,
)


def test_what_is_published_and_where():
    zoo = "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation"
    vitdet = "https://dl.fbaipublicfiles.com/detectron2/ViTDet/COCO/mask_rcnn_vitdet"
    assert {name: file.url for name, file in PUBLISHED.items()} == {
        "torchvision_v1": "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "torchvision_v2": "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        "detectron2_r50_1x": f"{zoo}/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504.pkl",
        "detectron2_r50_3x": f"{zoo}/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
        "detectron2_r101_3x": f"{zoo}/mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72.pkl",
        "vitdet_b": f"{vitdet}_b/f325346929/model_final_61ccd1.pkl",
        "vitdet_l": f"{vitdet}_l/f325599698/model_final_6146ed.pkl",
        "vitdet_h": f"{vitdet}_h/f329145471/model_final_7224f1.pkl",
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_name_of_a_file_tells_its_hash(name: str):
    url, digest, algorithm = PUBLISHED[name]
    assert re.fullmatch(r"[0-9a-f]{6,}", digest)
    assert re.search(rf"[-_]{digest}\.(pth|pkl)$", url)
    assert algorithm == ("md5" if name.startswith(("detectron2", "vitdet")) else "sha256")
    assert re.fullmatch(r"\w+", name), "a name is no path"


def test_one_file_was_trained_without_an_epsilon():
    assert WITHOUT_EPSILON == "bf2d0c1e"


def test_classes_of_coco_by_all_of_its_ids():
    table = coco_categories(90)
    assert [category.id for category in table] == list(range(1, 91))
    unused = [category for category in table if category.name.startswith("N/A")]
    assert [category.id for category in unused] == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert len({category.name for category in table}) == 90, "a name stands for one class"
    names = {category.id: category.name for category in table}
    assert [names[i] for i in (1, 2, 13, 18, 44, 67, 90)] == [
        "person",
        "bicycle",
        "stop sign",
        "dog",
        "bottle",
        "dining table",
        "toothbrush",
    ]
    theirs = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert all(names[i] == name for i, name in enumerate(theirs) if i and name != "N/A")


def test_classes_of_coco_that_are_in_use(test_data: Path):
    table = coco_categories(80)
    assert len(table) == 80
    assert [c.id for c in table] == sorted(c.id for c in table)
    content = json.loads(
        (test_data / "coco_mini" / "annotations" / "instances_val2017.json").read_text()
    )
    assert {(c.id, c.name) for c in table} == {(c["id"], c["name"]) for c in content["categories"]}


def test_classes_of_another_number_have_no_names():
    assert [tuple(category) for category in coco_categories(3)] == [
        (1, "class 1"),
        (2, "class 2"),
        (3, "class 3"),
    ]
    assert [len(coco_categories(rows)) for rows in (0, 1, 79, 81, 91)] == [0, 1, 79, 81, 91]


def test_imagenet_means_the_first_weights_of_a_backbone():
    """Those that the published detectors began with."""
    first = {
        "resnet50": "0676ba61",
        "resnet18": "f37072fd",
        "resnet101": "63fe2227",
        "mobilenet_v3_large": "8738ca79",
    }
    for name, digest in first.items():
        expected = (f"https://download.pytorch.org/models/{name}-{digest}.pth", digest, "sha256")
        assert published_backbone(name, "imagenet").file == expected
        assert published_backbone(name, "imagenet") == published_backbone(name, "IMAGENET1K_V1")
    assert published_backbone("resnet50", "IMAGENET1K_V2").file.digest == "11ad3fa6"


def test_the_pixels_that_a_backbone_was_trained_with_are_told():
    assert published_backbone("resnet18", "imagenet")[1:] == (
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
    )
    assert published_backbone("efficientnet_v2_l", "imagenet")[1:] == (
        [0.5, 0.5, 0.5],
        [0.5, 0.5, 0.5],
    )


@pytest.mark.parametrize(
    "file",
    sorted(
        file
        for file in (REPOSITORY / "conf" / "backbone").glob("*.yaml")
        if "TimmBackbone" not in file.read_text()
    ),
    ids=lambda file: file.stem,
)
def test_each_backbone_of_conf_has_weights_with_a_hash(file: Path):
    found = re.search(r"^name: (\w+)", file.read_text(), re.MULTILINE)
    if found is None:  # the name is that of the yaml it builds on
        return
    url, digest, algorithm = published_backbone(found[1], "imagenet").file
    assert url.startswith("https://download.pytorch.org/models/")
    assert url.endswith(f"-{digest}.pth")
    assert len(digest) >= 8
    assert algorithm == "sha256"


def test_a_name_that_a_backbone_has_not_is_told_with_those_that_it_has():
    names = ", ".join(member.name for member in get_model_weights("resnet50"))
    with pytest.raises(
        UserError,
        match=f"backbone.weights=IMAGENET1K_V3 is neither a file nor one of .*none, {names}",
    ):
        published_backbone("resnet50", "IMAGENET1K_V3")
    with pytest.raises(
        UserError, match=r"is neither a file nor one of imagenet, none, IMAGENET1K_V1$"
    ):
        published_backbone("resnet18", "IMAGENET1K_V2")


def test_a_backbone_without_weights_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(published, "get_model_weights", lambda name: [])
    with pytest.raises(
        UserError,
        match=r"torchvision has no weights for mnasnet.*use backbone\.weights=none or a file",
    ):
        published_backbone("mnasnet0_75", "imagenet")


def test_a_url_without_a_hash_is_told(monkeypatch: pytest.MonkeyPatch):
    url, transforms = "https://somewhere/resnet18.pth", ResNet18_Weights.IMAGENET1K_V1.transforms
    members = [SimpleNamespace(name="IMAGENET1K_V1", url=url, transforms=transforms)]
    monkeypatch.setattr(published, "get_model_weights", lambda name: members)
    with pytest.raises(
        UserError,
        match=r"somewhere/resnet18\.pth has no hash in its name: download the file yourself",
    ):
        published_backbone("resnet18", "imagenet")
