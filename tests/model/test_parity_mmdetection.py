"""MMDetection from its equations: what its Mask R-CNN on a ResNet-50 and a ResNet-101 with FPN
computes in inference, written plainly from the layouts of its weights and compared with ours layer
by layer, on a real image, in float64. Its own code is not needed, and not installed.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from detectron2_names import BLOCKS
from mmdetection_files import published_shapes, write_configs
from PIL import Image
from torch import Tensor
from two_stage_equations import State, close, deformed, detect, linear, proposals_of

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.runs.migration.imported import import_model

pytestmark = pytest.mark.long

HEIGHT, WIDTH, PADDED = 90, 120, (96, 128)
STRIDES = (4, 8, 16, 32, 64)
STYLES = {50: "pytorch", 101: "caffe"}  # the depths that are compared, one of each style


class Reference(NamedTuple):
    """What MMDetection computes of the image, step by step."""

    maps: list[Tensor]
    pyramid: list[Tensor]
    anchors: list[Tensor]
    logits: list[Tensor]
    deltas: list[Tensor]
    proposals: Tensor
    class_logits: Tensor
    box_deltas: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor  # 0..79
    masks: Tensor  # 28 x 28


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    """Batch norm in evaluation, with an epsilon of 1e-5."""
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)


def conv2(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    """The 3x3 convolution of a block, or DCN or DCNv2: of version 2, whose predictions are in three
    parts, the last is the factors before their sigmoid.
    """
    if f"{name}.conv_offset.weight" not in state:
        return conv(state, name, x, stride)
    predicted = conv(state, f"{name}.conv_offset", x, stride)
    mask = predicted[:, 18:].sigmoid() if predicted.shape[1] == 27 else None
    return deformed(x, state[f"{name}.weight"], predicted[:, :18], mask, stride)


def preprocess(rgb: Tensor, style: str) -> Tensor:
    """DetDataPreprocessor: 3 H W, 0..255 -> 1 3 H' W'; padding is zero after the normalization."""
    if style == "caffe":  # B G R
        mean, std = torch.tensor([103.530, 116.280, 123.675]), torch.ones(3)
        image = rgb.flip(0).double()
    else:
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        image = rgb.double()
    image = (image - mean[:, None, None]) / std[:, None, None]
    return F.pad(image, (0, PADDED[1] - WIDTH, 0, PADDED[0] - HEIGHT))[None]


def resnet(state: State, image: Tensor, depth: int) -> list[Tensor]:
    """The maps of layer1..layer4. style=pytorch halves in the 3x3 convolution, caffe in the first
    1x1 one.
    """
    caffe = STYLES[depth] == "caffe"
    x = F.relu(norm(state, "backbone.bn1", conv(state, "backbone.conv1", image, 2)))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    maps = []
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            first, second = (stride, 1) if caffe else (1, stride)
            out = F.relu(norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, first)))
            out = F.relu(norm(state, f"{name}.bn2", conv2(state, f"{name}.conv2", out, second)))
            out = norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", out))
            if block == 0:
                x = conv(state, f"{name}.downsample.0", x, stride)
                x = norm(state, f"{name}.downsample.1", x)
            x = F.relu(out + x)
        maps.append(x)
    return maps


def fpn(state: State, maps: list[Tensor]) -> list[Tensor]:
    """Five levels; the fifth is a max pooling of the fourth with a kernel of 1. PAFPN adds each
    level, through a convolution of stride 2, to the next, and then convolves all but the first.
    """
    merged = [conv(state, f"neck.lateral_convs.{n}.conv", x) for n, x in enumerate(maps)]
    for n in (3, 2, 1):
        size = merged[n - 1].shape[2:]
        merged[n - 1] = merged[n - 1] + F.interpolate(merged[n], size=size, mode="nearest")
    levels = [conv(state, f"neck.fpn_convs.{n}.conv", x) for n, x in enumerate(merged)]
    if "neck.pafpn_convs.0.conv.weight" in state:
        for n in range(3):
            down = conv(state, f"neck.downsample_convs.{n}.conv", levels[n], 2)
            levels[n + 1] = levels[n + 1] + down
        for n in range(3):
            levels[n + 1] = conv(state, f"neck.pafpn_convs.{n}.conv", levels[n + 1])
    return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


def anchors_of(pyramid: list[Tensor]) -> list[Tensor]:
    """AnchorGenerator: a base of 8 strides, centers at multiples of the stride; by row, column,
    ratio.
    """
    levels = []
    for features, stride in zip(pyramid, STRIDES, strict=True):
        ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()
        width, height = 8 * stride / ratios, 8 * stride * ratios
        cell = torch.stack([-0.5 * width, -0.5 * height, 0.5 * width, 0.5 * height], dim=1)
        y, x = torch.meshgrid(
            torch.arange(features.shape[2]) * stride,
            torch.arange(features.shape[3]) * stride,
            indexing="ij",
        )
        shift = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        levels.append((shift + cell).reshape(-1, 4))
    return levels


def rpn_head(state: State, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and deltas of each level, by row, column, anchor."""
    logits, deltas = [], []
    for features in pyramid:
        hidden = F.relu(conv(state, "rpn_head.rpn_conv", features))
        logits.append(conv(state, "rpn_head.rpn_cls", hidden)[0].permute(1, 2, 0).reshape(-1))
        deltas.append(conv(state, "rpn_head.rpn_reg", hidden)[0].permute(1, 2, 0).reshape(-1, 4))
    return logits, deltas


def regions(pyramid: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    """SingleRoIExtractor: finest_scale 56, RoIAlign with aligned=True and sampling_ratio=0."""
    scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(torch.log2(scale / 56 + 1e-6)).clamp(0, 3)
    out = torch.zeros(len(boxes), 256, size, size)
    for n in range(4):
        here = level == n
        rois = torch.cat([torch.zeros(int(here.sum()), 1), boxes[here]], dim=1)
        out[here] = torchvision.ops.roi_align(
            pyramid[n], rois, size, 1 / STRIDES[n], sampling_ratio=0, aligned=True
        )
    return out


def box_head(state: State, pyramid: list[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor]:
    """Logits R 81, the last of background, and deltas R 80 4."""
    hidden = regions(pyramid, proposals, 7).flatten(1)
    for n in (0, 1):
        hidden = F.relu(linear(state, f"roi_head.bbox_head.shared_fcs.{n}", hidden))
    deltas = linear(state, "roi_head.bbox_head.fc_reg", hidden).view(len(hidden), 80, 4)
    return linear(state, "roi_head.bbox_head.fc_cls", hidden), deltas


def masks_of(state: State, pyramid: list[Tensor], boxes: Tensor, label: Tensor) -> Tensor:
    x = regions(pyramid, boxes, 14)
    for n in range(4):
        x = F.relu(conv(state, f"roi_head.mask_head.convs.{n}.conv", x))
    name = "roi_head.mask_head.upsample"
    x = F.relu(F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2))
    x = conv(state, "roi_head.mask_head.conv_logits", x)
    return x[torch.arange(len(x)), label].sigmoid()


@pytest.fixture(scope="module", autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def rgb(test_data: Any) -> Tensor:
    """A real image, 3 H W uint8."""
    file = min((test_data / "coco_mini" / "val2017").glob("*.jpg"))
    image = np.array(Image.open(file).convert("RGB").resize((WIDTH, HEIGHT)))
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.fixture(scope="module")
def batch(rgb: Tensor) -> Batch:
    images = torch.full((1, 3, *PADDED), 77, dtype=torch.uint8)  # padding must not matter
    images[0, :, :HEIGHT, :WIDTH] = rgb
    return {"images": images, "image_sizes": torch.tensor([[HEIGHT, WIDTH]])}


@pytest.fixture(scope="module", params=[50, pytest.param(101, marks=pytest.mark.slow)])
def depth(request: pytest.FixtureRequest) -> int:
    return request.param


def drawn(depth: int, image: Tensor, **options: Any) -> State:
    """Random weights under which the maps of the backbone have about the same size."""
    torch.manual_seed(depth)
    made: State = {}
    for name, shape in published_shapes(depth, **options).items():
        kind = name.rsplit(".", 1)[-1]
        if kind == "running_var" or (kind == "weight" and len(shape) == 1):
            made[name] = torch.empty(shape).uniform_(0.5, 1.5) * (0.3 if ".bn3." in name else 1)
        elif len(shape) == 1:
            made[name] = torch.randn(shape) * 0.1
        else:
            made[name] = torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:]))
    made["backbone.conv1.weight"] /= image.std()
    return made


@pytest.fixture(scope="module")
@torch.no_grad()
def state(rgb: Tensor, depth: int) -> State:
    """Random weights under which each layer has something to say."""
    image = preprocess(rgb, STYLES[depth])
    made = drawn(depth, image)

    def scale(layer: str, values: Tensor, deviation: float) -> None:
        for part in ("weight", "bias"):
            made[f"{layer}.{part}"] *= deviation / values.std()

    maps = resnet(made, image, depth)
    for n, features in enumerate(maps):
        made[f"neck.lateral_convs.{n}.conv.weight"] /= features.std()
    pyramid = fpn(made, maps)
    logits, deltas = rpn_head(made, pyramid)
    scale("rpn_head.rpn_cls", torch.cat(logits), 2)
    scale("rpn_head.rpn_reg", torch.cat(deltas), 0.5)
    proposals, _ = proposals_of(anchors_of(pyramid), *rpn_head(made, pyramid), HEIGHT, WIDTH)
    class_logits, box_deltas = box_head(made, pyramid, proposals[:100])
    made["roi_head.bbox_head.fc_cls.bias"] -= class_logits.mean(dim=0)
    scale("roi_head.bbox_head.fc_cls", class_logits - class_logits.mean(dim=0), 0.43)
    scale("roi_head.bbox_head.fc_reg", box_deltas, 2)
    return made


@pytest.fixture(scope="module")
@torch.no_grad()
def theirs(state: State, rgb: Tensor, depth: int) -> Reference:
    maps = resnet(state, preprocess(rgb, STYLES[depth]), depth)
    pyramid = fpn(state, maps)
    anchors, (logits, deltas) = anchors_of(pyramid), rpn_head(state, pyramid)
    proposals, _ = proposals_of(anchors, logits, deltas, HEIGHT, WIDTH)
    class_logits, box_deltas = box_head(state, pyramid, proposals)
    found = detect(class_logits, box_deltas, proposals, HEIGHT, WIDTH)
    masks = masks_of(state, pyramid, found[0], found[2])
    return Reference(
        *(maps, pyramid, anchors, logits, deltas, proposals, class_logits, box_deltas),
        *(*found, masks),
    )


@pytest.fixture(scope="module")
def ours(state: State, depth: int, tmp_path_factory: pytest.TempPathFactory) -> MaskRCNN:
    """Imported from a config and a file of weights."""
    folder = tmp_path_factory.mktemp("mmdetection")
    config = write_configs(folder)
    if STYLES[depth] == "caffe":
        config = folder / "caffe.py"
    changed = folder / "changed.py"
    changed.write_text(f"_base_ = './{config.name}'\nmodel = dict(backbone=dict(depth={depth}))\n")
    torch.save({"state_dict": state, "meta": {}}, folder / "weights.pth")
    imported = import_model("mmdetection", str(changed), str(folder / "weights.pth"))
    model = build(imported.config.model).eval()
    weights.load(model, imported.state)
    return model


@torch.no_grad()
def test_features(ours: MaskRCNN, theirs: Reference, batch: Batch):
    maps = ours.backbone(ours.normalize(batch["images"], batch["image_sizes"]))
    for got, expected in zip(maps, theirs.maps, strict=True):
        close(got, expected, 1e-12)
    for got, expected in zip(ours.fpn(theirs.maps), theirs.pyramid, strict=True):
        close(got, expected, 1e-12)


DCN = "backbone=dict(dcn=dict(type={}, {}), stage_with_dcn=(False, True, True, True))"
OTHERS = {  # the changes of a config, the weights, and whether these have the names of version 1
    "mdconv_pafpn": (
        DCN.format("'DCNv2'", "deform_groups=1, fallback_on_stride=False")
        + ", neck=dict(type='PAFPN')",
        {"dcn": 2, "pafpn": True},
        False,
    ),
    "dconv": (DCN.format("'DCN'", "deformable_groups=1"), {"dcn": 1}, True),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_features_of_other_configs(kind: str, rgb: Tensor, batch: Batch, tmp_path: Path):
    """dcn, dcnv2 and pafpn of its configs."""
    text, options, older = OTHERS[kind]
    image = preprocess(rgb, "pytorch")
    state = drawn(50, image, **options)
    expected = resnet(state, image, 50)
    write_configs(tmp_path)
    (tmp_path / "changed.py").write_text(f"_base_ = './base.py'\nmodel = dict({text})\n")
    named = {n.replace(".conv_offset", "_offset") if older else n: v for n, v in state.items()}
    torch.save({"state_dict": named}, tmp_path / "weights.pth")
    imported = import_model(
        "mmdetection", str(tmp_path / "changed.py"), str(tmp_path / "weights.pth")
    )
    model = build(imported.config.model).eval()
    weights.load(model, imported.state)
    maps = model.backbone(model.normalize(batch["images"], batch["image_sizes"]))
    for got, theirs in zip(maps, expected, strict=True):
        close(got, theirs, 1e-10)
    for got, theirs in zip(model.fpn(expected), fpn(state, expected), strict=True):
        close(got, theirs, 1e-12)


@torch.no_grad()
def test_anchors_and_rpn(ours: MaskRCNN, theirs: Reference, batch: Batch):
    close(ours.anchors(theirs.pyramid, PADDED), torch.cat(theirs.anchors), 1e-12)
    prediction = ours.rpn(theirs.pyramid)
    close(prediction.logits[0], torch.cat(theirs.logits), 1e-12)
    close(prediction.deltas[0], torch.cat(theirs.deltas), 1e-12)
    anchors = torch.cat(theirs.anchors)
    boxes, _, valid = ours.rpn.propose(prediction, anchors, batch["image_sizes"], "test")
    assert 300 < len(theirs.proposals) == int(valid.sum())
    close(boxes[0][valid[0]], theirs.proposals, 1e-12)


@torch.no_grad()
def test_box_head(ours: MaskRCNN, theirs: Reference):
    proposals = theirs.proposals[None, :100]
    logits, deltas = ours.box_head(ours.pool(theirs.pyramid, proposals, 7))
    close(logits.roll(-1, dims=1), theirs.class_logits[:100], 1e-12)  # ours has background first
    close(deltas, theirs.box_deltas[:100], 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("size", [7, 14])
def test_regions_of_every_level(ours: MaskRCNN, theirs: Reference, size: int):
    sides = torch.tensor([3.0, 50, 111, 113, 223, 225, 300, 447, 449, 900])
    corner = torch.linspace(0, 50, len(sides))[:, None].expand(-1, 2)
    boxes = torch.cat([corner, corner + sides[:, None] * torch.tensor([0.8, 1.25])], dim=1)
    expected = regions(theirs.pyramid, boxes, size)
    close(ours.pool(theirs.pyramid, boxes[None], size), expected, 1e-12)


@torch.no_grad()
def test_boxes_scores_classes_and_masks_of_the_whole(
    ours: MaskRCNN, theirs: Reference, batch: Batch
):
    """From pixels to detections, all of ours."""
    got = ours(batch).detections
    assert got is not None
    assert 20 <= len(theirs.boxes) == int(got["valid"].sum())
    assert len(set(theirs.classes.tolist())) >= 3, "the comparison needs classes"
    valid = got["valid"][0]
    assert got["labels"][0][valid].tolist() == (theirs.classes + 1).tolist()
    close(got["scores"][0][valid], theirs.scores, 1e-10)
    close(got["boxes"][0][valid], theirs.boxes, 1e-10)
    close(got["masks"][0][valid], theirs.masks, 1e-10)
    assert theirs.masks.std() > 0.05, "masks of one color would agree anyway"
