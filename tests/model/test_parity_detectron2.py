"""Detectron2 from its equations: what its Mask R-CNN on a ResNet-50 with FPN computes in inference,
written plainly from the layouts of its weights and compared with ours layer by layer, on a real
image, in float64 (then a top-k or a suppression that hangs on the last digit does not decide). Its
own code is not needed, and not installed.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from detectron2_names import BLOCKS, published_shapes
from PIL import Image
from torch import Tensor
from two_stage_equations import State, close, deformed, detect, linear, proposals_of

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.runs.trained_model import read

pytestmark = pytest.mark.long

HEIGHT, WIDTH = 120, 150  # of the image
PADDED = (128, 160)  # to multiples of 32
STRIDES = (4, 8, 16, 32, 64)
PIXEL_MEAN = (103.530, 116.280, 123.675)  # B G R; the deviation is 1


class Found(NamedTuple):
    """The answer for one image, best first."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor  # 0..79
    masks: Tensor  # 28 x 28


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)


def normed(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """FrozenBatchNorm2d after a convolution without bias, or a deformable one (stride 1)."""
    if f"{name}_offset.weight" in state:
        x = deformed(x, state[f"{name}.weight"], conv(state, f"{name}_offset", x), None, 1)
    else:
        x = conv(state, name, x, stride)
    weight, bias, mean, var = (
        state[f"{name}.norm.{k}"] for k in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / torch.sqrt(var + 1e-5)
    return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]


def preprocess(rgb: Tensor) -> Tensor:
    """3 H W, 0..255 -> 1 3 H' W': B G R, the mean subtracted, then zeros below and on the right."""
    bgr = rgb.flip(0).double() - torch.tensor(PIXEL_MEAN)[:, None, None]
    return F.pad(bgr, (0, PADDED[1] - WIDTH, 0, PADDED[0] - HEIGHT))[None]


def bottom_up(state: State, image: Tensor, depth: int = 50) -> list[Tensor]:
    """res2..res5; a block that halves the map does it in its first 1x1 convolution
    (STRIDE_IN_1X1).
    """
    x = F.relu(normed(state, "backbone.bottom_up.stem.conv1", image, 2))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    maps = []
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        for block in range(blocks):
            name, stride = (
                f"backbone.bottom_up.res{stage}.{block}",
                2 if block == 0 and stage > 2 else 1,
            )
            shortcut = normed(state, f"{name}.shortcut", x, stride) if block == 0 else x
            out = F.relu(normed(state, f"{name}.conv1", x, stride))
            out = F.relu(normed(state, f"{name}.conv2", out))
            x = F.relu(normed(state, f"{name}.conv3", out) + shortcut)
        maps.append(x)
    return maps


def fpn(state: State, maps: list[Tensor]) -> list[Tensor]:
    """p2..p6."""
    merged = conv(state, "backbone.fpn_lateral5", maps[3])
    pyramid = [conv(state, "backbone.fpn_output5", merged)]
    for level in (4, 3, 2):
        finer = conv(state, f"backbone.fpn_lateral{level}", maps[level - 2])
        merged = finer + merged.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)  # nearest
        pyramid.insert(0, conv(state, f"backbone.fpn_output{level}", merged))
    return [*pyramid, F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]


def anchors_of(pyramid: list[Tensor]) -> list[Tensor]:
    """Each level's: by row, column, ratio; the first center is at 0, 0 (offset 0); corners are not
    rounded.
    """
    levels = []
    for features, stride, size in zip(pyramid, STRIDES, (32, 64, 128, 256, 512), strict=True):
        cell = []
        for ratio in (0.5, 1.0, 2.0):
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            cell.append([-width / 2, -height / 2, width / 2, height / 2])
        boxes = [
            [x * stride + c[0], y * stride + c[1], x * stride + c[2], y * stride + c[3]]
            for y in range(features.shape[2])
            for x in range(features.shape[3])
            for c in cell
        ]
        levels.append(torch.tensor(boxes))
    return levels


def rpn_head(state: State, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Objectness (h w a) and deltas (h w a) 4 of each level; channel 4 a + k is delta k of anchor
    a.
    """
    logits, deltas = [], []
    for features in pyramid:
        hidden = F.relu(conv(state, "proposal_generator.rpn_head.conv", features))
        score = conv(state, "proposal_generator.rpn_head.objectness_logits", hidden)[0]
        delta = conv(state, "proposal_generator.rpn_head.anchor_deltas", hidden)[0]
        logits.append(score.permute(1, 2, 0).flatten())
        deltas.append(delta.view(3, 4, *delta.shape[1:]).permute(2, 3, 0, 1).reshape(-1, 4))
    return logits, deltas


def pool(pyramid: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    """ROIAlignV2 with sampling ratio 0, on the level of equation 1 of the FPN paper."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-8)).clamp(2, 5)
    out = torch.zeros(len(boxes), 256, size, size)
    for number in (2, 3, 4, 5):
        here = level == number
        rois = torch.cat([torch.zeros(int(here.sum()), 1), boxes[here]], dim=1)
        out[here] = torchvision.ops.roi_align(
            pyramid[number - 2], rois, size, 1 / STRIDES[number - 2], sampling_ratio=0, aligned=True
        )
    return out


def box_head(state: State, pyramid: list[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor]:
    """Logits R 81, the last of background, and deltas R 80 4."""
    hidden = pool(pyramid, proposals, 7).flatten(1)
    hidden = F.relu(linear(state, "roi_heads.box_head.fc1", hidden))
    hidden = F.relu(linear(state, "roi_heads.box_head.fc2", hidden))
    logits = linear(state, "roi_heads.box_predictor.cls_score", hidden)
    return logits, linear(state, "roi_heads.box_predictor.bbox_pred", hidden).view(
        len(hidden), 80, 4
    )


def masks_of(state: State, pyramid: list[Tensor], boxes: Tensor, label: Tensor) -> Tensor:
    """Each box's mask of its own class, R 28 28."""
    x = pool(pyramid, boxes, 14)
    for layer in (1, 2, 3, 4):
        x = F.relu(conv(state, f"roi_heads.mask_head.mask_fcn{layer}", x))
    name = "roi_heads.mask_head.deconv"
    x = F.relu(F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2))
    return conv(state, "roi_heads.mask_head.predictor", x)[torch.arange(len(x)), label].sigmoid()


@pytest.fixture(scope="module", autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def rgb(test_data: Any) -> Tensor:
    """A real image, 3 H W uint8."""
    file = min((test_data / "coco_mini" / "val2017").glob("*.jpg"))
    return torch.from_numpy(
        np.array(Image.open(file).convert("RGB").resize((WIDTH, HEIGHT)))
    ).permute(2, 0, 1)


@pytest.fixture(scope="module")
def batch(rgb: Tensor) -> Batch:
    images = torch.full(
        (1, 3, *PADDED), 77, dtype=torch.uint8
    )  # what lies in the padding must not matter
    images[0, :, :HEIGHT, :WIDTH] = rgb
    return {"images": images, "image_sizes": torch.tensor([[HEIGHT, WIDTH]])}


def drawn(**options: Any) -> State:
    """Random weights under which the maps of the backbone have about the same size."""
    torch.manual_seed(1)
    made = {}
    for name, shape in published_shapes(**options).items():
        kind = name.rsplit(".", 1)[-1]
        if kind == "running_var" or (kind == "weight" and len(shape) == 1):
            made[name] = torch.empty(shape).uniform_(0.5, 1.5) * (0.3 if ".conv3." in name else 1)
        elif len(shape) == 1:
            made[name] = torch.randn(shape) * 0.1
        else:
            made[name] = torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:]))
        if "offset" in name:  # points move by about a cell; farther ones enlarge rounding
            made[name] *= 0.1
    made["backbone.bottom_up.stem.conv1.weight"] /= 60  # pixels deviate by about as much
    return made


@pytest.fixture(scope="module")
@torch.no_grad()
def state(rgb: Tensor) -> State:
    """Random weights under which each layer has something to say."""
    made = drawn()

    def scale(layer: str, values: Tensor, deviation: float) -> None:
        for part in ("weight", "bias"):
            made[f"{layer}.{part}"] *= deviation / values.std()

    maps = bottom_up(made, preprocess(rgb))
    for level, features in enumerate(maps, start=2):
        made[f"backbone.fpn_lateral{level}.weight"] /= features.std()
    pyramid = fpn(made, maps)
    logits, deltas = rpn_head(made, pyramid)
    scale("proposal_generator.rpn_head.objectness_logits", torch.cat(logits), 2)
    scale("proposal_generator.rpn_head.anchor_deltas", torch.cat(deltas), 0.5)
    proposals, _ = proposals_of(anchors_of(pyramid), *rpn_head(made, pyramid), HEIGHT, WIDTH)
    logits, deltas = box_head(made, pyramid, proposals[:100])
    made["roi_heads.box_predictor.cls_score.bias"] -= logits.mean(
        dim=0
    )  # or the same classes win everywhere
    scale("roi_heads.box_predictor.cls_score", logits - logits.mean(dim=0), 0.43)
    scale("roi_heads.box_predictor.bbox_pred", deltas, 2)
    return made


@pytest.fixture(scope="module")
def ours(state: State) -> MaskRCNN:
    config = compose(
        "train", ["model=detectron2", "backbone=resnet50_caffe", "backbone.norm=frozen"]
    ).model
    config.num_classes = 80
    model = build(config).eval()
    weights.load(model, weights.from_detectron2(state, std=config.std))
    return model


class Reference(NamedTuple):
    """What Detectron2 computes of the image, step by step."""

    maps: list[Tensor]
    pyramid: list[Tensor]
    anchors: list[Tensor]
    logits: list[Tensor]
    deltas: list[Tensor]
    proposals: Tensor
    proposal_scores: Tensor
    class_logits: Tensor
    box_deltas: Tensor
    found: Found


@pytest.fixture(scope="module")
@torch.no_grad()
def theirs(state: State, rgb: Tensor) -> Reference:
    maps = bottom_up(state, preprocess(rgb))
    pyramid = fpn(state, maps)
    anchors, (logits, deltas) = anchors_of(pyramid), rpn_head(state, pyramid)
    proposals, scores = proposals_of(anchors, logits, deltas, HEIGHT, WIDTH)
    class_logits, box_deltas = box_head(state, pyramid, proposals)
    boxes, box_scores, label = detect(class_logits, box_deltas, proposals, HEIGHT, WIDTH)
    found = Found(boxes, box_scores, label, masks_of(state, pyramid, boxes, label))
    return Reference(
        maps, pyramid, anchors, logits, deltas, proposals, scores, class_logits, box_deltas, found
    )


def test_features(ours: MaskRCNN, theirs: Reference, batch: Batch):
    maps = ours.backbone(ours.normalize(batch["images"], batch["image_sizes"]))
    for got, expected in zip(maps, theirs.maps, strict=True):
        close(got, expected, 1e-12)
    pyramid = ours.fpn(theirs.maps)
    for got, expected in zip(pyramid, theirs.pyramid, strict=True):
        close(got, expected, 1e-12)


@torch.no_grad()
def test_features_of_deformable_convolutions(rgb: Tensor, batch: Batch, tmp_path: Path):
    """Of mask_rcnn_R_50_FPN_3x_dconv_c3-c5, whose file says so by its names."""
    state = drawn(dconv=True)
    torch.save({"model": state}, tmp_path / "model_final.pth")
    config, _, converted = read(tmp_path / "model_final.pth")
    assert list(config.backbone.deformable) == [3, 4, 5]
    assert not config.backbone.modulated
    model = build(config.model).eval()
    weights.load(model, converted)
    maps = model.backbone(model.normalize(batch["images"], batch["image_sizes"]))
    for got, expected in zip(maps, bottom_up(state, preprocess(rgb)), strict=True):
        close(got, expected, 1e-10)


def test_anchors(ours: MaskRCNN, theirs: Reference):
    close(ours.anchors(theirs.pyramid, PADDED), torch.cat(theirs.anchors), 1e-12)


@torch.no_grad()
def test_objectness_and_deltas(ours: MaskRCNN, theirs: Reference):
    prediction = ours.rpn(theirs.pyramid)
    close(prediction.logits[0], torch.cat(theirs.logits), 1e-12)
    close(prediction.deltas[0], torch.cat(theirs.deltas), 1e-12)
    assert prediction.level_sizes == [len(level) for level in theirs.anchors]


@torch.no_grad()
def test_proposals(ours: MaskRCNN, theirs: Reference, batch: Batch):
    prediction = ours.rpn(theirs.pyramid)
    boxes, scores, valid = ours.rpn.propose(
        prediction, torch.cat(theirs.anchors), batch["image_sizes"], "test"
    )
    assert 500 < len(theirs.proposals) == int(valid.sum())
    close(boxes[0][valid[0]], theirs.proposals, 1e-12)
    close(scores[0][valid[0]], theirs.proposal_scores, 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("size", [7, 14])
def test_regions_of_every_level(ours: MaskRCNN, theirs: Reference, size: int):
    """Proposals of this image are all of p2 and p3; larger regions reach out of it."""
    sides = torch.tensor([3.0, 50, 111, 113, 223, 225, 300, 447, 449, 900])
    corner = torch.rand(len(sides), 2) * 50
    boxes = torch.cat([corner, corner + sides[:, None] * torch.tensor([0.8, 1.25])], dim=1)
    close(ours.pool(theirs.pyramid, boxes[None], size), pool(theirs.pyramid, boxes, size), 1e-12)


@torch.no_grad()
def test_box_head(ours: MaskRCNN, theirs: Reference):
    proposals = theirs.proposals[None, :100]
    logits, deltas = ours.box_head(ours.pool(theirs.pyramid, proposals, 7))
    close(logits.roll(-1, dims=1), theirs.class_logits[:100], 1e-12)  # ours has background first
    close(deltas, theirs.box_deltas[:100], 1e-12)


@torch.no_grad()
def test_boxes_scores_classes_and_masks_of_the_whole(
    ours: MaskRCNN, theirs: Reference, batch: Batch
):
    """From pixels to detections, all of ours."""
    expected, got = theirs.found, ours(batch).detections
    assert got is not None
    assert 20 <= len(expected.boxes) == int(got["valid"].sum())
    assert len(set(expected.classes.tolist())) >= 3, "the comparison needs classes"
    valid = got["valid"][0]
    assert got["labels"][0][valid].tolist() == (expected.classes + 1).tolist()
    close(got["scores"][0][valid], expected.scores, 1e-10)
    close(got["boxes"][0][valid], expected.boxes, 1e-10)
    close(got["masks"][0][valid], expected.masks, 1e-10)
    assert expected.masks.std() > 0.05, "masks of one color would agree anyway"


@torch.no_grad()
@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("anchors", "round_corners", True),
        ("anchors", "offset", 0.5),
        ("anchors", "ratios", (2.0, 1.0, 0.5)),
    ],
)
def test_the_comparison_of_anchors_would_see_it(
    theirs: Reference, part: str, option: str, value: Any
):
    config = compose("train", ["model=detectron2", "backbone=resnet50_caffe"]).model
    config[part][option] = value
    other = build(config[part])
    assert (other(theirs.pyramid, PADDED) - torch.cat(theirs.anchors)).abs().max() > 0.2


@torch.no_grad()
@pytest.mark.parametrize("option", [{"points": 2}, {"aligned": False}])
def test_the_comparison_of_regions_would_see_it(
    ours: MaskRCNN, theirs: Reference, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any]
):
    for name, value in option.items():
        monkeypatch.setattr(ours, name, value)
    logits, _ = ours.box_head(ours.pool(theirs.pyramid, theirs.proposals[None, :100], 7))
    assert (logits.roll(-1, dims=1) - theirs.class_logits[:100]).abs().max() > 1e-3


@torch.no_grad()
def test_the_comparison_of_features_would_see_where_a_block_halves_the_map(
    state: State, theirs: Reference, batch: Batch
):
    config = compose("train", ["backbone=resnet50", "backbone.norm=frozen"])
    backbone = build(config.backbone).eval()
    converted = weights.from_detectron2(state, std=config.model.std)
    prefix = "backbone."
    weights.load(
        backbone, {k[len(prefix) :]: v for k, v in converted.items() if k.startswith(prefix)}
    )
    maps = backbone(_normalized(batch["images"]))
    assert (
        (maps[0] - theirs.maps[0]).abs().max()
        < 1e-9
        < 1e-2
        < (maps[1] - theirs.maps[1]).abs().max()
    )


def _normalized(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    out = (images / 255 - mean[:, None, None]) / std[:, None, None]
    out[:, :, HEIGHT:], out[:, :, :, WIDTH:] = 0, 0
    return out
