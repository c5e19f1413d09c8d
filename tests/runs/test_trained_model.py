"""Weights of others: torchvision's and Detectron2's files, names that are downloaded, run folders
of our own.
"""

import argparse
import functools
import hashlib
import io
import itertools
import math
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from detectron2_names import constants, published_shapes
from local_server import Server
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_commands import (
    RESNET,
    SCHEDULE,
    checkpoint,
    coco_data,
    ground_truth,
    result,
    run_command,
    save_ground_truth,
)
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.ops import FrozenBatchNorm2d
from torchvision_names import as_first_published
from vitdet_names import Size, vitdet_shapes

from maskrcnn_lit import load_model
from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.config.stored import load_run_config
from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.best_suppression import write_suppression
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.model.pretrained import published
from maskrcnn_lit.model.pretrained.packages import package_weights
from maskrcnn_lit.model.pretrained.published import Published, coco_categories
from maskrcnn_lit.model.suppression import Suppression
from maskrcnn_lit.predictor import Detections
from maskrcnn_lit.runs import trained_model as pretrained
from maskrcnn_lit.runs.trained_model import (
    PUBLISHED,
    check_exported_suppression,
    read,
    set_suppression,
    start,
    suppression_of,
)
from maskrcnn_lit.training.checkpoint_files import load_plain, save_plain

pytest_plugins = ("tiny_commands", "local_server")

State = dict[str, Tensor]
SHORT, LONG = 150, 230  # of the images for the comparison: padding to 160 x 256, and no resizing


def hollow(shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights of the right shapes that take no room in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def hollow_of(model: Any, **options: Any) -> State:
    with torch.device("meta"):
        state = model(weights=None, weights_backbone=None, **options).state_dict()
    return hollow({name: tuple(value.shape) for name, value in state.items()})


@pytest.fixture(scope="module")
def v1_names() -> State:
    return as_first_published(hollow_of(maskrcnn_resnet50_fpn))


# Torchvision: the same detections


def pictures(folder: Path, count: int) -> list[np.ndarray]:
    """Real images H W 3, wide ones and high ones."""
    files = sorted((folder / "coco_mini" / "val2017").glob("*.jpg"))[:count]
    sizes = [(LONG, SHORT), (SHORT, LONG)] * count
    return [
        np.array(Image.open(f).convert("RGB").resize(size))
        for f, size in zip(files, sizes, strict=False)
    ]


def as_theirs(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1) / 255


@torch.no_grad()
def tuned(theirs: nn.Module, picture: np.ndarray) -> nn.Module:
    """Random weights as they are after training, as far as numbers go: each norm has the statistics
    of the picture and a scale of its own, small at the end of a residual, and the heads tell
    regions and classes apart. Without that a network of this depth makes of the last bit of float32
    a hundred times as much.
    """
    for name, norm in theirs.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train()
            norm.momentum = None
            norm.weight.uniform_(0.5, 1.5).mul_(0.2 if name.endswith("bn3") else 1)
            norm.bias.uniform_(-0.1, 0.1)
    heads = theirs.roi_heads
    deviations = {
        theirs.rpn.head.cls_logits: 2,
        theirs.rpn.head.bbox_pred: 0.3,
        heads.box_predictor.cls_score: 2.5,
        heads.box_predictor.bbox_pred: 1,
        heads.mask_predictor.mask_fcn_logits: 2,
    }

    def scale(layer: Any, _: Any, values: Tensor) -> Tensor | None:
        if layer not in deviations:
            return None
        factor = deviations.pop(layer) / values.std()
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)
        return values * factor

    hooks = [layer.register_forward_hook(scale) for layer in list(deviations)]
    theirs([as_theirs(picture)])
    for hook in hooks:
        hook.remove()
    return theirs.eval()


def agree(ours: Detections, theirs: dict[str, Tensor]) -> tuple[float, float, float]:
    """Assert the same detections; returns the largest differences of a box, a score, a mask (1 -
    IoU, of which the rounding of one pixel is taken off: some masks have 80).
    """
    boxes, scores, labels = (theirs[key].numpy() for key in ("boxes", "scores", "labels"))
    ids = np.array([entry["category_id"] for entry in ours.to_coco()])
    assert len(ours.boxes) == len(boxes)
    apart = np.abs(ours.boxes[:, None] - boxes[None]).max(axis=2)
    apart[ids[:, None] != labels[None]] = np.inf
    partner = apart.argmin(axis=1)  # scores that are equal but for the last bit change places
    assert sorted(partner) == list(range(len(boxes)))
    pasted = (theirs["masks"][partner, 0] > 0.5).numpy().astype(np.uint8)
    masks = [coco_mask.encode(np.asfortranarray(mask)) for mask in pasted]
    assert sum(map(coco_mask.area, masks)) > 0
    apart_masks = []
    for mine, other in zip(ours.masks, masks, strict=True):
        union = coco_mask.area(coco_mask.merge([mine, other]))
        differ = union - coco_mask.area(coco_mask.merge([mine, other], intersect=True))
        apart_masks.append(max(0, int(differ) - 1) / max(1, int(union)))
    return apart.min(axis=1).max(), np.abs(ours.scores - scores[partner]).max(), max(apart_masks)


@pytest.mark.long
@pytest.mark.parametrize(("version", "images", "proposals"), [("v1", 2, 1000), ("v2", 1, 200)])
def test_torchvision_files_give_torchvision_s_detections(
    version: str, images: int, proposals: int, test_data: Path, tmp_path: Path
):
    make = {"v1": maskrcnn_resnet50_fpn, "v2": maskrcnn_resnet50_fpn_v2}[version]
    options = {"min_size": SHORT, "max_size": LONG, "box_detections_per_img": 30}
    theirs = make(
        weights=None, weights_backbone=None, rpn_post_nms_top_n_test=proposals, **options
    ).eval()
    several = pictures(test_data, images)
    tuned(theirs, several[0])
    state = theirs.state_dict()
    if version == "v1":
        state = as_first_published(state)
        theirs.load_state_dict(dict(state))  # they are names that torchvision still reads
    torch.save(state, tmp_path / "weights.pth")
    model = load_model(
        tmp_path / "weights.pth", score_threshold=0.05, max_detections=30, accelerator="cpu"
    )
    (tmp_path / "weights.pth").unlink()  # 180 MB
    model.config.data.image_size = [SHORT, LONG]
    model.model.rpn.post_nms = {"test": proposals}
    assert len(model.categories) == 90
    assert model.model.box_head.num_classes == 90
    for picture, found in zip(several, model.predict(several), strict=True):
        with torch.no_grad():
            (expected,) = theirs([as_theirs(picture)])
        box, score, mask = agree(found, expected)
        print(f"{version}: boxes {box:.1e} px, scores {score:.1e}, masks 1 - IoU {mask:.1e}")
        assert len(found.boxes) >= 20
        assert len(set(found.names)) >= 2
        assert box <= 0.01
        assert score <= 1e-4
        assert mask <= 0.01


# What a file is


@pytest.mark.long
@pytest.mark.parametrize("version", ["v1", "v1 of today", "v2"])
def test_torchvision_files_are_told_by_their_names(version: str, v1_names: State, tmp_path: Path):
    states = {
        "v1": lambda: v1_names,
        "v1 of today": lambda: hollow_of(maskrcnn_resnet50_fpn),
        "v2": lambda: hollow_of(maskrcnn_resnet50_fpn_v2),
    }
    torch.save(states[version](), tmp_path / "weights.pth")
    config, categories, state = read(tmp_path / "weights.pth")
    assert config.backbone.name == config.model.backbone.name == "resnet50"
    assert config.model.num_classes == 90
    assert (config.model.rpn.depth, config.model.box_head.convs) == (
        (2, 4) if version == "v2" else (1, 0)
    )
    assert config.model.anchors.measured_strides
    assert config.backbone.norm_eps is None
    assert categories == coco_categories(90)
    with torch.device("meta"):
        weights.load(build(config.model), {name: value.to("meta") for name, value in state.items()})


@pytest.mark.long
@pytest.mark.parametrize(("depth", "blocks"), [(18, None), (34, None), (101, 23), (152, 36)])
def test_torchvision_files_of_other_resnets(depth: int, blocks: int | None, tmp_path: Path):
    from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    with torch.device("meta"):
        backbone = resnet_fpn_backbone(backbone_name=f"resnet{depth}", weights=None)
        state = TheirMaskRCNN(backbone, num_classes=3).state_dict()
    torch.save(
        hollow({name: tuple(value.shape) for name, value in state.items()}),
        tmp_path / "weights.pth",
    )
    config, categories, _ = read(tmp_path / "weights.pth")
    assert config.backbone.name == f"resnet{depth}"
    assert [category.name for category in categories] == ["class 1", "class 2"]


@pytest.mark.long
def test_what_torchvision_s_training_script_saves(v1_names: State, tmp_path: Path):
    arguments = argparse.Namespace(
        data_path="/data/coco", model="maskrcnn_resnet50_fpn", lr=0.02, lr_steps=[16, 22]
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.02, momentum=0.9)
    saved = {"model": v1_names, "optimizer": optimizer.state_dict(), "args": arguments, "epoch": 25}
    torch.save(saved, tmp_path / "model_25.pth")
    assert read(tmp_path / "model_25.pth").config.model.anchors.measured_strides
    torch.save(
        v1_names, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )  # as torch saved before 1.6
    assert read(tmp_path / "old.pth").state.keys() == read(tmp_path / "model_25.pth").state.keys()


def detectron2_pickle(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A file of the model zoo: arrays at protocol 2. Returns its arrays."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=2)
    return arrays


@pytest.mark.long
def test_a_pickle_of_detectron2(tmp_path: Path):
    arrays = detectron2_pickle(
        tmp_path / "model_final_f10217.pkl", published_shapes() | constants()
    )
    config, categories, state = read(tmp_path / "model_final_f10217.pkl")
    (tmp_path / "model_final_f10217.pkl").unlink()  # 180 MB
    assert config.backbone.name == "resnet50"
    assert config.backbone.stride_in_1x1
    assert config.model.roi_align.aligned
    assert config.model.roi_align.points == 0
    assert not config.model.anchors.round_corners
    assert not config.model.anchors.measured_strides
    assert categories == coco_categories(80)
    expected = weights.from_detectron2(
        {k: torch.from_numpy(v) for k, v in arrays.items()}, std=config.model.std
    )
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    model = build(config.model)
    weights.load(model, state)
    fc1 = (
        model.box_head.fcs[0]
        .weight.detach()
        .unflatten(1, (7, 7, 256))
        .permute(0, 3, 1, 2)
        .flatten(1)
    )
    assert np.array_equal(fc1.numpy(), arrays["roi_heads.box_head.fc1.weight"])


@pytest.mark.long
@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("classes", [80, 2])
def test_a_file_of_detectron2_s_training(depth: int, classes: int, tmp_path: Path):
    content = {
        "model": hollow(published_shapes(depth, classes)),
        "optimizer": {},
        "iteration": 269999,
    }
    torch.save(content, tmp_path / "model_final.pth")
    config, categories, state = read(tmp_path / "model_final.pth")
    assert config.backbone.name == f"resnet{depth}"
    assert config.backbone.stride_in_1x1
    assert config.model.num_classes == len(categories) == classes
    with torch.device("meta"):
        weights.load(build(config.model), {name: value.to("meta") for name, value in state.items()})


@pytest.mark.long
def test_a_file_of_detectron2_s_cascade(tmp_path: Path):
    torch.save({"model": hollow(published_shapes(50, 2, cascade=True))}, tmp_path / "model.pth")
    config, categories, state = read(tmp_path / "model.pth")
    assert list(config.model.box_head.cascade) == [0.5, 0.6, 0.7]
    assert config.model.num_classes == len(categories) == 2
    with torch.device("meta"):
        weights.load(build(config.model), {name: value.to("meta") for name, value in state.items()})


@pytest.mark.long
@pytest.mark.parametrize(("name", "width", "depth"), [("base", 768, 12), ("large", 1024, 24)])
def test_a_file_of_vitdet(name: str, width: int, depth: int, tmp_path: Path):
    size = Size(width=width, depth=depth, heads=width // 64)
    torch.save({"model": hollow(vitdet_shapes(size))}, tmp_path / "model.pth")
    config, categories, state = read(tmp_path / "model.pth")
    assert config.backbone.name == f"samvit_{name}_patch16"
    assert config.data.image_size == 1024
    assert config.model.num_classes == len(categories) == 80
    assert config.backbone.square == 1024
    assert config.backbone.norm_eps == 1e-6
    with torch.device("meta"):
        weights.load(build(config.model), {name: value.to("meta") for name, value in state.items()})


@pytest.mark.long
def test_the_norms_of_one_file_have_no_epsilon(
    v1_names: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.save(v1_names, tmp_path / "published.pth")
    torch.save({"model": v1_names}, tmp_path / "other.pth")
    digest = hashlib.sha256((tmp_path / "published.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, "WITHOUT_EPSILON", digest[:8])
    for file, option, value in (("published.pth", 0.0, 0.0), ("other.pth", None, 1e-5)):
        config = read(tmp_path / file).config
        assert config.backbone.norm_eps == option
        norms = [m for m in build(config.backbone).modules() if isinstance(m, FrozenBatchNorm2d)]
        assert len(norms) == 53
        assert {norm.eps for norm in norms} == {value}


@pytest.mark.long
@pytest.mark.parametrize("whose", ["torchvision", "torchvision v2", "detectron2", "its cascade"])
def test_region_features_of_another_size(whose: str, tmp_path: Path):
    first, later = {
        "torchvision": ("roi_heads.box_head.fc6", ()),
        "torchvision v2": ("roi_heads.box_head.5", ()),
        "detectron2": ("roi_heads.box_head.fc1", ()),
        "its cascade": ("roi_heads.box_head.0.fc1", ("1.fc1", "2.fc1")),
    }[whose]
    if whose.startswith("torchvision"):
        v2 = whose.endswith("v2")
        state = hollow_of(maskrcnn_resnet50_fpn_v2 if v2 else maskrcnn_resnet50_fpn, num_classes=3)
    else:
        state = hollow(published_shapes(classes=2, cascade=whose == "its cascade"))
    weight = torch.randn(256 * 8**2).expand(1024, -1)
    names = [first, *(f"roi_heads.box_head.{name}" for name in later)]
    torch.save(state | {f"{name}.weight": weight for name in names}, tmp_path / "weights.pth")
    config, _, own = read(tmp_path / "weights.pth")
    assert config.model.box_head.pool == 8
    features = torch.randn(2, 256, 8, 8)
    expected = features.flatten(1) @ weight[:3].T
    layers = [name for name in own if name.endswith("fcs.0.weight")]
    assert len(layers) == len(names)
    for name in layers:
        got = features.permute(0, 2, 3, 1).flatten(1) @ own[name][:3].T
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)
    with torch.device("meta"):
        weights.load(build(config.model), {name: value.to("meta") for name, value in own.items()})


def test_files_of_a_wrapped_model(v1_names: State, tmp_path: Path):
    expected = read_weights({"model": v1_names}, tmp_path)
    for content in (
        {"model_state_dict": v1_names, "epoch": 3},
        {f"module.{name}": value for name, value in v1_names.items()},
        {"state_dict": {f"model.{name}": value for name, value in v1_names.items()}},
    ):
        assert read_weights(content, tmp_path) == expected


def read_weights(content: dict[str, Any], folder: Path) -> list[str]:
    torch.save(content, folder / "weights.pth")
    return sorted(read(folder / "weights.pth").state)


# Files that are refused


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.command = f"touch '{marker}'"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".ckpt", ".pt", ""])
def test_nothing_in_a_file_is_run(suffix: str, tmp_path: Path, v1_names: State):
    marker = tmp_path / "it ran"
    hidden = argparse.Namespace(lr=0.1, bomb=Bomb(marker))
    for number, content in enumerate(
        (
            Bomb(marker),
            {"model": v1_names, "args": hidden},
            {"model": {"w": Bomb(marker)}},
            {"model": v1_names},
        )
    ):
        path = tmp_path / f"weights{number}{suffix}"
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path)
        if number < 3 or suffix == ".pkl":  # a tensor in a plain pickle is more than an array
            with pytest.raises(UserError, match=rf"weights{number}{suffix} cannot be loaded"):
                read(path)
            with pytest.raises(UserError, match="cannot be loaded"):
                load_model(path, accelerator="cpu")
    assert not marker.exists()


def test_a_file_that_holds_no_mask_rcnn_is_told(tmp_path: Path, v1_names: State):
    files: dict[str, tuple[Any, str]] = {
        "classifier.pth": (
            hollow({"conv1.weight": (64, 3, 7, 7)}),
            "has conv1.weight and so on: it is neither a Mask",
        ),
        "empty.pth": ({}, "has nothing and so on"),
        "empty_model.pth": ({"model": {}}, "has nothing and so on"),
        "net.pth": ({"net": v1_names}, "alone or as the entry model, state_dict, model_state_dict"),
        "model.pth": (nn.Conv2d(1, 1, 1), "contains more than tensors.*save the state dict alone"),
        "list.pth": ([torch.ones(2)], "contains a list, not weights"),
        "tensor.pth": (torch.ones(2), "contains a Tensor, not weights"),
        "numbers.pth": ({1: torch.ones(2), 2: torch.ones(1)}, "neither a Mask R-CNN"),
        "plain.pth": (
            {"epoch": 3, "config": {"lr": [0.1]}, "why": None, "names": ["a"]},
            "neither a Mask R-CNN",
        ),
        "inner.pth": ({"state_dict": {"net": {"conv": torch.ones(2)}}}, "neither a Mask R-CNN"),
        "mobile.pth": (
            {"backbone.body.0.0.weight": torch.ones(1), "roi_heads.mask_head.x": torch.ones(1)},
            "with an unsupported backbone",
        ),
        "headless.pth": ({k: v for k, v in v1_names.items() if "cls_score" not in k}, "cls_score"),
        "deep.pth": (
            {k: v for k, v in hollow(published_shapes()).items() if "res4.3" not in k},
            "with an unsupported backbone",
        ),
    }
    for name, (content, said) in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=said) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)
    torch.save(
        v1_names | {"roi_heads.keypoint_head.0.weight": torch.zeros(1)}, tmp_path / "keypoints.pth"
    )
    with pytest.raises(UserError, match=r"keypoint_head.*does not belong to torchvision's"):
        read(tmp_path / "keypoints.pth")


def test_what_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(
        UserError,
        match=r"none\.pth does not exist: give a run folder .* or one of torchvision_v1, tor",
    ):
        read(tmp_path / "none.pth")
    with pytest.raises(UserError, match="torchvision_v3 does not exist"):
        read("torchvision_v3")
    with pytest.raises(UserError, match="is not a run folder"):
        read(tmp_path)
    with pytest.raises(UserError, match="checkpoint=newest must be best or last"):
        read(tmp_path, "newest")


@pytest.mark.long
@pytest.mark.parametrize("whose", ["torchvision", "torchvision on MobileNet", "detectron2"])
def test_a_detector_without_masks_is_told(whose: str, tmp_path: Path):
    if whose == "detectron2":
        state = {
            name: value for name, value in hollow(published_shapes()).items() if "mask" not in name
        }
    else:
        state = hollow_of(
            fasterrcnn_resnet50_fpn if whose == "torchvision" else fasterrcnn_mobilenet_v3_large_fpn
        )
    torch.save({"model": state}, tmp_path / "faster.pth")
    told = (
        f"{tmp_path / 'faster.pth'} has no mask head, so it is not a Mask R-CNN: give weights "
        "of a Mask R-CNN"
    )
    for use in (read, functools.partial(load_model, accelerator="cpu")):
        with pytest.raises(UserError) as error:
            use(tmp_path / "faster.pth")
        assert str(error.value) == told
    with pytest.raises(UserError) as error:
        begun(composed(f"model.weights={tmp_path / 'faster.pth'}"))
    assert str(error.value) == told


# By name


def offered(server: Server, content: Any, name: str) -> Published:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    url, digest = server.offer(buffer.getvalue(), name)
    return Published(url, digest[:8])


@pytest.mark.long
def test_published_weights_come_by_name(
    server: Server,
    downloads: Path,
    v1_names: State,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        PUBLISHED, "torchvision_v1", offered(server, v1_names, "maskrcnn-12345678.pth")
    )
    model = load_model("torchvision_v1", accelerator="cpu")
    assert [category.id for category in model.categories] == list(range(1, 91))
    assert not model.model.training
    assert (
        read("torchvision_v1").config.model
        == read(downloads / "maskrcnn-12345678.pth").config.model
    )
    assert server.asked == ["/maskrcnn-12345678.pth"]


def test_published_weights_without_a_network_are_told(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"{server.address}/500.model_final_f10217.pkl"
    monkeypatch.setitem(PUBLISHED, "detectron2_r50_3x", Published(url, "f10217", "md5"))
    with pytest.raises(UserError, match="cannot be downloaded") as error:
        load_model("detectron2_r50_3x", accelerator="cpu")
    assert url in str(error.value)
    assert str(downloads / "500.model_final_f10217.pkl") in str(error.value)


def test_a_training_without_a_network_is_told_the_other_ways_to_start(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"{server.address}/500.maskrcnn-12345678.pth"
    monkeypatch.setitem(PUBLISHED, "torchvision_v2", Published(url, "12345678"))
    with pytest.raises(UserError) as error:
        begun(composed("model.weights=torchvision_v2"))
    said = str(error.value)
    assert said.startswith(f"model.weights=torchvision_v2: {url} cannot be downloaded (")
    assert f"copy the file from elsewhere to {downloads / '500.maskrcnn-12345678.pth'}" in said
    assert said.endswith(
        "; alternatives: model.weights=FILE (a Mask R-CNN); model.weights=null "
        "backbone.weights=imagenet or FILE (backbone only); model.weights=null (random weights)"
    )
    assert "\n" not in said
    assert not list(downloads.glob("*"))


# A new model begins with the weights of a backbone


chosen = functools.cache(
    lambda groups: compose("train", ["model=tiny", "backbone=mobilenet_v3_small", *groups])
)


def composed(*options: str, classes: int = 3) -> DictConfig:
    """A small model, unless the options say something else."""
    config = deepcopy(
        chosen(tuple(option for option in options if "." not in option.split("=")[0]))
    )
    for option in options:
        if "." in option.split("=")[0]:
            name, value = option.split("=", 1)
            OmegaConf.update(config, name, yaml.safe_load(value))
    config.model.num_classes = classes
    return config


def begun(config: DictConfig, names: Sequence[str] = ("a", "b", "c")) -> tuple[MaskRCNN, list[str]]:
    """A new model after `start`, and what that tells."""
    model = build(config.model)
    return model, start(model, config, [Category(i + 1, name) for i, name in enumerate(names)])


def has_weights_of(model: MaskRCNN, state: State) -> bool:
    own = model.backbone.state_dict()
    return len(own) > 50 and all(
        torch.equal(value, state[name.removeprefix("body.")])
        for name, value in own.items()
        if not name.endswith("num_batches_tracked")
    )


@pytest.fixture(scope="module")
def classifier() -> State:
    torch.manual_seed(5)
    return resnet18().state_dict()


def test_nothing_is_told_of_a_model_from_scratch():
    for whole, backbone in itertools.product(("none", "null"), repeat=2):
        assert begun(composed(f"model.weights={whole}", f"backbone.weights={backbone}"))[1] == []


def test_weights_of_a_backbone_beside_those_of_a_whole_model_are_told():
    with pytest.raises(UserError) as error:
        begun(composed("model.weights=torchvision_v2", "backbone.weights=imagenet"))
    assert str(error.value) == (
        "model.weights=torchvision_v2 includes a backbone, but backbone.weights=imagenet is set, "
        "too: "
        "give one of them, and leave out the other or set it to none"
    )


@pytest.mark.long
@pytest.mark.parametrize("norm", ["auto", "batch", "sync"])
def test_weights_of_a_backbone_from_a_file(classifier: State, tmp_path: Path, norm: str):
    wrapped = {
        "plain.pth": classifier,
        "model.pth": {"model": classifier, "args": argparse.Namespace(lr=0.1)},
    }
    for name, content in wrapped.items():
        torch.save(content, tmp_path / name)
        options = (
            "backbone=resnet18",
            f"backbone.weights={tmp_path / name}",
            f"backbone.norm={norm}",
        )
        model, told = begun(composed(*options))
        assert has_weights_of(model, classifier)
        expected = {"auto": "frozen"}.get(norm, norm)
        assert told == [f"backbone resnet18: weights {tmp_path / name}; norms {expected}"]
        assert model.backbone.body["layer1"][0].conv1.weight.requires_grad is False, (
            "frozen, as pretrained ones are"
        )


@pytest.fixture
def offers(
    server: Server, downloads: Path, classifier: State, monkeypatch: pytest.MonkeyPatch
) -> Server:
    """A server that has torchvision's weights of resnet18."""
    buffer = io.BytesIO()
    torch.save(classifier, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    url, _ = server.offer(buffer.getvalue(), f"resnet18-{digest}.pth")
    usual = ResNet18_Weights.IMAGENET1K_V1.transforms
    members = [
        SimpleNamespace(name="IMAGENET1K_V1", url=url, transforms=usual),
        SimpleNamespace(name="OTHER", url=f"{url}-0badf00d.pth", transforms=usual),
        SimpleNamespace(
            name="HALF",
            url=url,
            transforms=functools.partial(usual, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.25]),
        ),
    ]
    monkeypatch.setattr(published, "get_model_weights", lambda name: members)
    return server


@pytest.mark.long
@pytest.mark.parametrize("name", ["imagenet", "IMAGENET1K_V1"])
def test_weights_of_a_backbone_by_name(offers: Server, classifier: State, name: str):
    for _ in range(2):
        model, told = begun(composed("backbone=resnet18", f"backbone.weights={name}"))
        assert has_weights_of(model, classifier)
        assert told == [f"backbone resnet18: weights {name}; norms frozen"]
    assert len(offers.asked) == 1


@pytest.mark.long
def test_weights_of_a_backbone_for_other_pixels_are_told_before_they_are_fetched(
    offers: Server, classifier: State
):
    options = ("backbone=resnet18", "backbone.weights=HALF")
    with pytest.raises(UserError) as error:
        begun(composed(*options))
    assert str(error.value) == (
        "resnet18 was trained with another pixel mean and standard deviation than this model: add "
        "'model.mean=[0.5, 0.5, 0.5]' 'model.std=[0.5, 0.5, 0.25]'"
    )
    assert offers.asked == []
    model, _ = begun(composed(*options, "model.mean=[0.5, 0.5, 0.5]", "model.std=[0.5, 0.5, 0.25]"))
    assert has_weights_of(model, classifier)


@pytest.mark.long
def test_weights_of_a_backbone_that_cannot_be_had_are_told(
    offers: Server, classifier: State, tmp_path: Path, downloads: Path
):
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pth")
    said = {
        "OTHER": rf"backbone\.weights=OTHER: {offers.address}.* cannot be downloaded .*, copy the "
        r"file "
        rf"from elsewhere to {downloads}.*; other ways to start: backbone\.weights=FILE; "
        r"backbone\.weights=none, random weights",
        "IMAGENET1K_V7": r"backbone\.weights=IMAGENET1K_V7 is neither a file nor one of imagenet, "
        r"none, IMAGENET1K_V1",
        str(tmp_path / "none.pth"): r"none\.pth does not exist: give imagenet, none or a file",
        str(tmp_path): "does not exist: give imagenet, none or a file",
        str(
            tmp_path / "other.pth"
        ): r"the weights are not those of backbone resnet18.*torchvision's resnet18",
    }
    for name, message in said.items():
        with pytest.raises(UserError, match=message):
            begun(composed("backbone=resnet18", f"backbone.weights={name}"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_timm_backbone_from_a_file(suffix: str, tmp_path: Path):
    file, other = tmp_path / f"timm{suffix}", tmp_path / f"other{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    state = timm.create_model("test_resnet").state_dict()
    save(state, file)
    save(timm.create_model("convnext_atto").state_dict(), other)
    options = (
        "backbone=timm",
        "backbone.name=test_resnet",
        *(f"model.{n}=[0.5, 0.5, 0.5]" for n in ("mean", "std")),
    )
    model, told = begun(composed(*options, f"backbone.weights={file}"))
    assert has_weights_of(model, state)
    assert told == [f"backbone test_resnet: weights {file}; norms frozen"]
    with pytest.raises(
        UserError, match=r"the weights from the file are not those of timm's test_resnet"
    ) as error:
        begun(composed(*options, f"backbone.weights={other}"))
    assert str(error.value).startswith(f"backbone.weights={other}: ")
    other.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"other{suffix} cannot be loaded, since it is damaged"):
        begun(composed(*options, f"backbone.weights={other}"))
    with pytest.raises(
        UserError,
        match=r"backbone\.weights=IMAGENET1K_V1 does not exist: give imagenet, none or a file",
    ):
        begun(composed(*options, "backbone.weights=IMAGENET1K_V1"))


def test_the_pixels_follow_a_timm_backbone(tmp_path: Path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "timm.pth")
    options = (
        "backbone=timm",
        "backbone.name=test_resnet",
        f"backbone.weights={tmp_path / 'timm.pth'}",
    )
    model, told = begun(composed(*options))
    assert model.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert model.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert told == [f"backbone test_resnet: weights {tmp_path / 'timm.pth'}; norms frozen"]
    with pytest.raises(
        UserError, match=r"test_resnet was trained with another pixel mean"
    ) as error:
        begun(composed(*options, "model.mean=[0.485, 0.456, 0.406]"))
    assert "'model.mean=[0.5, 0.5, 0.5]' 'model.std=[0.5, 0.5, 0.5]'" in str(error.value)


def test_weights_of_a_package():
    options = ("backbone=efficientnet_lite0", "backbone.weights=package", "backbone.norm=batch")
    model, told = begun(composed(*options))
    assert has_weights_of(model, package_weights("tf_efficientnet_lite0"))
    assert model.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert told == ["backbone tf_efficientnet_lite0: weights package; norms batch"]


def test_a_backbone_without_a_package_is_refused():
    options = ("backbone=timm", "backbone.name=test_resnet", "backbone.weights=package")
    with pytest.raises(UserError, match=r"backbone\.weights=package: .*test_resnet"):
        begun(composed(*options))


# A new model begins with the weights of a whole one


def distinct(model: nn.Module) -> State:
    """Random weights and statistics, none as a new model has them."""
    return {
        name: (torch.rand(value.shape) + 0.5) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def write_run(folder: Path, config: DictConfig, names: Sequence[str], name: str = "last") -> State:
    """A run folder, as far as others read it; returns its weights."""
    state = distinct(build(config.model))
    save_plain(
        folder / "checkpoints" / f"{name}.ckpt",
        {
            "config": OmegaConf.to_container(config, resolve=True),
            "categories": [[7 * i + 3, title] for i, title in enumerate(names)],
            "state_dict": {f"model.{key}": value for key, value in state.items()},
            "global_step": 8,
        },
    )
    return state


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


THEIRS = ("cat", "dog", "horse")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, State]]:
    """A run folder with a best and a last checkpoint; the weights of the best."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    write_run(folder, composed(), THEIRS)
    yield folder, write_run(folder, composed(), THEIRS, "best")
    shutil.rmtree(folder)


def test_a_run_folder_is_read(run: tuple[Path, State]):
    folder, best = run
    config, categories, state = read(folder)
    assert equal(state, best)
    assert config.model == OmegaConf.create(OmegaConf.to_container(composed(), resolve=True)).model
    assert categories == (Category(3, "cat"), Category(10, "dog"), Category(17, "horse"))
    last = read(folder, "last").state
    assert not equal(last, best)
    assert equal(last, read(folder / "checkpoints" / "last.ckpt").state)
    assert equal(read(str(folder / "checkpoints" / "best.ckpt")).state, best)


def test_a_model_of_the_same_classes_takes_over_everything(run: tuple[Path, State]):
    folder, best = run
    model, told = begun(composed(f"model.weights={folder}"), THEIRS)
    assert equal(dict(model.state_dict()), best)
    assert told == [
        f"model.weights={folder}: 3 of 3 classes matched by name, all other weights loaded"
    ]


def rows_of(state: State, label: int) -> list[Tensor]:
    """All that a state dict knows of label 1..K."""
    rows = [state[f"box_head.classes.{kind}"][label] for kind in ("weight", "bias")]
    rows += [
        state[f"box_head.deltas.{kind}"][4 * (label - 1) : 4 * label] for kind in ("weight", "bias")
    ]
    return rows + [state[f"mask_head.logits.{kind}"][label - 1] for kind in ("weight", "bias")]


def test_a_model_of_other_classes_takes_over_those_that_it_knows(run: tuple[Path, State]):
    folder, best = run
    ours = ("aardvark", "horse", "cat", "zebra")
    config = composed(f"model.weights={folder}", classes=4)
    torch.manual_seed(3)
    fresh = build(config.model).state_dict()
    torch.manual_seed(3)
    model, told = begun(config, ours)
    state = model.state_dict()
    for label, name in enumerate(ours, start=1):
        source, row = (best, THEIRS.index(name) + 1) if name in THEIRS else (fresh, label)
        assert all(
            torch.equal(a, b)
            for a, b in zip(rows_of(state, label), rows_of(source, row), strict=True)
        ), name
    assert torch.equal(state["box_head.classes.weight"][0], best["box_head.classes.weight"][0]), (
        "background"
    )
    heads = ("box_head.classes", "box_head.deltas", "mask_head.logits")
    assert all(
        torch.equal(value, best[name])
        for name, value in state.items()
        if not name.startswith(heads)
    )
    assert told == [
        f"model.weights={folder}: 2 of 4 classes matched by name, all other weights loaded",
        "  aardvark  initialized",
        "  horse     loaded",
        "  cat       loaded",
        "  zebra     initialized",
        "  unused: dog",
    ]


def test_a_part_that_the_weights_lack_starts_from_random_numbers(run: tuple[Path, State]):
    folder, best = run
    model, told = begun(composed(f"model.weights={folder}", "model.mask_iou=true"), THEIRS)
    assert told == [
        f"model.weights={folder}: 3 of 3 classes matched by name, all other weights loaded",
        "  not in these weights, so initialized: mask_iou",
    ]
    assert torch.equal(model.state_dict()["fpn.lateral.0.weight"], best["fpn.lateral.0.weight"])


def test_options_that_change_the_numbers_are_told(run: tuple[Path, State]):
    folder, _ = run
    changed = (
        "model.anchors.measured_strides=true",
        "model.roi_align.points=0",
        "model.mean=[0.5, 0.5, 0.5]",
    )
    _, told = begun(
        composed(f"model.weights={folder}", "backbone.norm_eps=1.0e-3", *changed), THEIRS
    )
    assert sorted(told[1:]) == [
        "  the weights were trained with backbone.norm_eps=None, but here it is 0.001",
        "  the weights were trained with model.anchors.measured_strides=False, but here it is True",
        "  the weights were trained with model.mean=[0.485, 0.456, 0.406], but here it is [0.5, "
        "0.5, 0.5]",
        "  the weights were trained with model.roi_align.points=2, but here it is 0",
    ]


@pytest.mark.long
def test_options_of_published_weights_are_told_where_the_model_has_others(
    v1_names: State, tmp_path: Path
):
    torch.save(v1_names, tmp_path / "weights.pth")
    weights = f"model.weights={tmp_path / 'weights.pth'}"
    resnet = ("data=coco2017", "backbone=resnet50", "backbone.norm=frozen", weights)
    names = [category.name for category in coco_categories(80)]
    for option, differences in (("mask_rcnn", ["measured_strides"]), ("torchvision_v1", [])):
        _, told = begun(composed(*resnet, f"model={option}", classes=80), names)
        assert told[0].endswith("80 of 80 classes matched by name, all other weights loaded")
        assert [
            line.split("=")[0].split(".")[-1] for line in told if "trained with" in line
        ] == differences
    torch.save(hollow(published_shapes()), tmp_path / "weights.pth")
    _, told = begun(composed(*resnet, "model=mask_rcnn", classes=80), names)
    parts = {line.split("with ")[1].split("=")[0] for line in told if "trained with" in line}
    rois = {"model.roi_align.points", "model.roi_align.aligned"}
    assert parts == {"backbone.stride_in_1x1", "model.anchors.round_corners"} | rois


ANOTHER = {
    "backbone=shufflenet_v2": "backbone.name=mobilenet_v3_small, but here it is shufflenet_v2_x1_0",
    "backbone.norm=group": "backbone.norm=auto, but here it is group",
    "model.fpn.channels=32": "model.fpn.channels=64, but here it is 32",
    "model.fpn.norm=batch": "model.fpn.norm=None, but here it is batch",
    "model.anchors.ratios=[0.5, "
    "1.0]": "model.anchors.ratios=[0.5, 1.0, 2.0], but here it is [0.5, 1.0]",
    "model.rpn.depth=2": "model.rpn.depth=1, but here it is 2",
    "model.box_head.pool=5": "model.box_head.pool=7, but here it is 5",
    "model.box_head.convs=1": "model.box_head.convs=0, but here it is 1",
    "model.box_head.width=128": "model.box_head.width=256, but here it is 128",
    "model.box_head.fcs=1": "model.box_head.fcs=2, but here it is 1",
    "model.mask_head.width=32": "model.mask_head.width=64, but here it is 32",
    "model.mask_head.depth=3": "model.mask_head.depth=2, but here it is 3",
    "model.mask_head.norm=batch": "model.mask_head.norm=None, but here it is batch",
}


@pytest.mark.long
@pytest.mark.parametrize(("option", "difference"), ANOTHER.items(), ids=list(ANOTHER))
def test_another_architecture_is_told_with_what_would_fit(
    run: tuple[Path, State], option: str, difference: str
):
    folder, _ = run
    for names in (THEIRS, ("cat", "cow")):
        config = composed(f"model.weights={folder}", option, classes=len(names))
        model = build(config.model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(UserError, match=r"do not fit the model in \d+ places") as error:
            start(model, config, [Category(i, name) for i, name in enumerate(names)])
        assert str(error.value).startswith(f"model.weights={folder}: ")
        assert str(error.value).endswith(f"of their training; they were trained with {difference}")
        assert equal(dict(model.state_dict()), before), "nothing is loaded by halves"


def test_of_an_architecture_only_what_differs_and_matters_is_told(run: tuple[Path, State]):
    """Both heads' convolutions; norms whose weights are alike fit, and are not what is wrong."""
    folder, _ = run
    convs = ("model.box_head.convs=1", "model.box_head.conv_width=32", "model.box_head.norm=group")
    with pytest.raises(UserError) as error:
        begun(composed(f"model.weights={folder}", "backbone.norm=frozen", *convs), THEIRS)
    assert str(error.value).endswith(
        "they were trained with model.box_head.convs=0, but here it is 1; "
        "model.box_head.conv_width=256, but here it is 32; model.box_head.norm=None, but here it "
        "is group"
    )


def test_damaged_weights_of_the_same_architecture_are_told(run: tuple[Path, State], tmp_path: Path):
    saved = torch.load(run[0] / "checkpoints" / "best.ckpt", weights_only=True)
    del saved["state_dict"]["model.rpn.deltas.bias"]
    torch.save(saved, tmp_path / "part.ckpt")
    with pytest.raises(
        UserError, match=r"in 1 places \(rpn\.deltas\.bias is missing\); .* of their training$"
    ):
        begun(composed(f"model.weights={tmp_path / 'part.ckpt'}"), THEIRS)


def test_a_whole_model_that_is_not_there_is_told(tmp_path: Path):
    for source in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=r"does not exist|is not a run folder"):
            begun(composed(f"model.weights={source}"))


# From end to end


@pytest.mark.long
def test_training_begins_with_a_run(
    trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """With a learning rate of next to nothing: what comes out is what was taken over."""
    root, run_dir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(shapes, root)
    for part in ("train", "val"):
        content = ground_truth(root, part)
        for category in content["categories"]:
            category["name"] = {"star": "asteroid"}.get(category["name"], category["name"])
        save_ground_truth(root, content, part)
    quick = (
        "trainer.epochs=1",
        "optimizer.lr=1.0e-12",
        f"run_dir={run_dir}",
        f"model.weights={trained}",
    )
    run_command(
        "train",
        *coco_data(root),
        *RESNET,
        *SCHEDULE,
        *quick,
        "data.train_images=2",
        "data.val_images=1",
    )
    shown = capsys.readouterr().out
    assert f"model.weights={trained}: 5 of 6 classes matched by name" in shown
    assert "  asteroid   initialized\n  circle     loaded\n" in shown
    assert "  unused: star\n" in shown
    assert "the weights were trained with" not in shown
    config = load_run_config(run_dir)
    assert (config.backbone.norm, config.backbone.freeze_at) == (
        "frozen",
        2,
    )  # as where a backbone is pretrained
    assert config.model.weights == str(trained)
    assert result(run_dir)["status"] == "finished"
    after, before = (
        {
            name.removeprefix("model."): value
            for name, value in checkpoint(folder, which)["state_dict"].items()
        }
        for folder, which in ((run_dir, "last"), (trained, "best"))
    )
    names = ["circle", "cross", "rectangle", "ring", "star", "triangle"]
    for label, name in enumerate(
        ["asteroid", "circle", "cross", "rectangle", "ring", "triangle"], start=1
    ):
        if name != "asteroid":
            for ours, theirs in zip(
                rows_of(after, label), rows_of(before, names.index(name) + 1), strict=True
            ):
                assert torch.allclose(ours, theirs, atol=1e-6), name
    heads = ("model.box_head.classes", "box_head.deltas", "mask_head.logits", "box_head.classes")
    for name, value in after.items():
        if not name.startswith(heads):
            assert torch.allclose(value, before[name], atol=1e-6), name
    shutil.rmtree(run_dir)


def test_a_backbone_of_ones_own_loads_its_own_weights():
    """Whatever it calls `weights` is not ours to read."""
    model = SimpleNamespace(weights=None, backbone=nn.Conv2d(3, 8, 1))
    assert start(model, OmegaConf.create({}), []) == []
    model.backbone.weights = "a file of theirs"
    assert start(model, OmegaConf.create({}), []) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_told(
    value: float, run: tuple[Path, State], classifier: State, tmp_path: Path
):
    folder, _ = run
    file = tmp_path / "best.ckpt"
    saved = load_plain(folder / "checkpoints" / "best.ckpt")
    saved["state_dict"]["model.box_head.classes.bias"][1] = value
    save_plain(file, saved)
    expected = r"best\.ckpt are not finite \(NaN or infinite in box_head\.classes\.bias\)"
    with pytest.raises(UserError, match=expected):
        read(file)
    with pytest.raises(UserError, match=expected):
        begun(composed(f"model.weights={file}"), THEIRS)
    broken = {name: tensor.clone() for name, tensor in classifier.items()}
    name = next(name for name in broken if broken[name].is_floating_point())
    broken[name].view(-1)[0] = value
    torch.save(broken, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=rf"backbone\.pth are not finite .* in {name}"):
        begun(composed("backbone=resnet18", f"backbone.weights={tmp_path / 'backbone.pth'}"))


@pytest.fixture
def stored_choice(tmp_path: Path) -> Path:
    choice = {"nms": "matrix", "agnostic_nms": True, "exclusive": False}
    write_suppression(tmp_path, choice, "val/mask_ap", 0.5)
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, Suppression("soft")),
        ({"nms": None, "agnostic_nms": None, "exclusive": None}, Suppression("soft")),
        ({"nms": "mask"}, Suppression("mask")),
        ({"exclusive": True}, Suppression("soft", exclusive=True)),
        ({"nms": "best"}, Suppression("matrix", agnostic_nms=True)),
        ({"nms": "best", "agnostic_nms": False}, Suppression("matrix")),
    ],
)
def test_the_suppression_of_a_run_is_changed_where_it_is_asked_for(
    stored_choice: Path, wanted: dict[str, Any], expected: Suppression
):
    trained = OmegaConf.create({"model": {"nms": "soft", "weights": None}})
    OmegaConf.set_struct(trained, True)
    set_suppression(trained, stored_choice, wanted)
    assert suppression_of(trained) == expected


def test_a_run_of_an_earlier_version_has_the_suppression_of_the_paper():
    trained = OmegaConf.create({"model": {"weights": None}})
    assert suppression_of(trained) == Suppression()
    with pytest.raises(UserError, match=r"model\.nms=boxes must be one of box"):
        set_suppression(trained, "run", {"nms": "boxes"})


def test_the_suppression_of_an_exported_file_stays():
    check_exported_suppression({"nms": None, "agnostic_nms": None, "exclusive": None})
    with pytest.raises(UserError, match=r"model\.exclusive=True cannot change an exported file"):
        check_exported_suppression({"nms": None, "exclusive": True})
