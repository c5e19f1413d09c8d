"""Torchvision as the second source of truth: with the same weights, the same images and the same
sampled anchors and regions, everything agrees with `maskrcnn_resnet50_fpn` to float precision. Real
images, float64: then a top-k or a suppression that hangs on the last digit does not decide.
"""

from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from models import make_model
from PIL import Image
from pycocotools.coco import COCO
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.model.mask_head import mask_targets
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.model.sampling import ANCHORS, REGIONS, random_keys

pytestmark = pytest.mark.long

SIDE = 128  # every image fits into SIDE - 32, so that no object touches the padded border


@pytest.fixture(scope="module", autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


Scene = tuple[Batch, list[dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def scene(test_data: Any) -> Scene:
    return scene_of(test_data, SIDE)


def scene_of(test_data: Any, side: int) -> Scene:
    """Real images and objects as our batch, and the same as torchvision's targets (full masks on
    the padded image of `side` pixels).
    """
    folder = test_data / "coco_mini"
    coco = COCO(folder / "annotations" / "instances_val2017.json")
    ids = [i for i in sorted(coco.imgs) if 3 <= len(coco.getAnnIds([i], iscrowd=False)) <= 20][:2]
    images = torch.zeros(len(ids), 3, side, side, dtype=torch.uint8)
    sizes, scales, targets = [], [], []
    for slot, image_id in enumerate(ids):
        info = coco.imgs[image_id]
        picture = Image.open(folder / "val2017" / info["file_name"]).convert("RGB")
        scale = (side - 32) / max(picture.size)
        width, height = round(picture.width * scale), round(picture.height * scale)
        images[slot, :, :height, :width] = torch.from_numpy(
            np.array(picture.resize((width, height)))
        ).permute(2, 0, 1)
        sizes.append((height, width))
        scales.append((height / picture.height, width / picture.width))
        boxes, masks = [], []
        for annotation in coco.loadAnns(coco.getAnnIds([image_id], iscrowd=False)):
            mask = Image.fromarray(coco.annToMask(annotation)).resize((width, height))
            masks.append(torch.zeros(side, side, dtype=torch.uint8))
            masks[-1][:height, :width] = torch.from_numpy(np.array(mask))
            x, y, w, h = annotation["bbox"]
            boxes.append(
                [
                    x * scales[-1][1],
                    y * scales[-1][0],
                    (x + w) * scales[-1][1],
                    (y + h) * scales[-1][0],
                ]
            )
        labels = torch.arange(len(boxes)) % 4 + 1
        targets.append(
            {"boxes": torch.tensor(boxes), "labels": labels, "masks": torch.stack(masks)}
        )
    return _batch(
        images,
        sizes,
        scales,
        [(coco.imgs[i]["height"], coco.imgs[i]["width"]) for i in ids],
        targets,
    ), targets


def _batch(
    images: Any,
    sizes: Any,
    scales: Any,
    original_sizes: Any,
    targets: list[dict[str, torch.Tensor]],
) -> Batch:
    """Masks are crops of the whole padded image; mask boxes lie half a pixel up and left, which is
    where torchvision's mask targets read (see `mask_targets`).
    """
    count, slots, side = len(images), 24, images.shape[-1]
    batch = {
        "images": images,
        "image_sizes": torch.tensor(sizes),
        "scales": torch.tensor(scales),
        "original_sizes": torch.tensor(original_sizes),
        "image_ids": torch.arange(count),
        "readable": torch.ones(count, dtype=torch.bool),
        "boxes": torch.zeros(count, slots, 4),
        "labels": torch.zeros(count, slots, dtype=torch.int64),
        "crowd": torch.zeros(count, slots, dtype=torch.bool),
        "masks": torch.zeros(count, slots, side, side, dtype=torch.uint8),
        "mask_boxes": torch.tensor([-0.5, -0.5, side - 0.5, side - 0.5]).expand(count, slots, 4),
        "seeds": torch.arange(count),
    }
    for i, target in enumerate(targets):
        for key, value in target.items():
            batch[key][i, : len(value)] = value
    return batch | {"valid": batch["labels"] > 0}


@pytest.fixture(scope="module")
def models(scene: Any) -> tuple[MaskRCNN, Any]:
    """Torchvision's model with random weights that find something, and ours with the same through
    `weights.py`.
    """
    torch.manual_seed(3)
    theirs = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=5,
        rpn_pre_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=400,
        rpn_post_nms_top_n_test=200,
        rpn_batch_size_per_image=256,
        box_batch_size_per_image=64,
        box_detections_per_img=30,
    )
    with torch.no_grad():
        for norm in (m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            # statistics of the images themselves, so that evaluation mode is not degenerate
            norm.momentum = None
        normal = _normalized(scene[0]["images"], scene[0]["image_sizes"])
        features = theirs.train().backbone(normal)
        for pool in (theirs.roi_heads.box_roi_pool, theirs.roi_heads.mask_roi_pool):
            # It guesses the strides once, from the first images' sizes: here these are far below
            # the padded one.
            pool(features, [torch.zeros(1, 4)] * len(normal), [(SIDE, SIDE)] * len(normal))
        for norm in (m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = 0.1
        theirs.rpn.head.cls_logits.weight.mul_(30)
        theirs.rpn.head.bbox_pred.weight.mul_(10)
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(40)
        theirs.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
        theirs.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(3)
    ours = make_model(
        4,
        "resnet50",
        channels=256,
        width=1024,
        depth=4,
        regions=64,
        anchors={"sizes": (32, 64, 128, 256, 512), "measured_strides": True},
    )
    ours.rpn.pre_nms, ours.rpn.post_nms = {"train": 500, "test": 300}, {"train": 400, "test": 200}
    ours.box_head.candidates, ours.box_head.max_detections = 1000, 30
    weights.load(ours, weights.from_torchvision(theirs.state_dict()))
    return ours.double(), theirs.double()


def _normalized(images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """As torchvision's transform does it: image by image, then padded with zeros."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    out = torch.zeros(images.shape)
    for i, (height, width) in enumerate(sizes.tolist()):
        pixels = images[i, :, :height, :width].double() / 255
        out[i, :, :height, :width] = (pixels - mean[:, None, None]) / std[:, None, None]
    return out


class KeyedSampler:
    """Torchvision's sampler with our random numbers: the candidates with the largest keys. `keys`
    is B N.
    """

    def __init__(self, keys: torch.Tensor, count: int, fraction: float) -> None:
        self.keys, self.count, self.most = keys, count, int(count * fraction)

    def __call__(
        self, matched: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        chosen: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for kind, keys in zip(matched, self.keys, strict=True):
            keys = keys[: len(kind)]
            positive, negative = (kind >= 1).nonzero()[:, 0], (kind == 0).nonzero()[:, 0]
            positive = positive[keys[positive].argsort(descending=True)[: self.most]]
            negative = negative[
                keys[negative].argsort(descending=True)[: self.count - len(positive)]
            ]
            for mask, index in zip(chosen, (positive, negative), strict=True):
                mask.append(torch.zeros(len(kind), dtype=torch.uint8).index_fill(0, index, 1))
        return chosen


def close(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 1e-9) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max().clamp(min=1)


def test_features_anchors_and_rpn(models: Any, scene: Any) -> None:
    ours, theirs = models
    batch, _ = scene
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        images = ours.normalize(batch["images"], batch["image_sizes"])
        expected_images = _normalized(batch["images"], batch["image_sizes"])
        close(images, expected_images, 1e-12)
        pyramid, expected = (
            ours.fpn(ours.backbone(images)),
            list(theirs.backbone(expected_images).values()),
        )
        for level, expected_level in zip(pyramid, expected, strict=True):
            close(level, expected_level)
        anchors = ours.anchors(pyramid, images.shape[-2:])
        (expected_anchors, _) = theirs.rpn.anchor_generator(
            ImageList(expected_images, [tuple(s) for s in batch["image_sizes"].tolist()]), expected
        )
        close(anchors, expected_anchors, 1e-12)
        prediction = ours.rpn(pyramid)
        logits, deltas = theirs.rpn.head(expected)
        close(
            prediction.logits, torch.cat([t.permute(0, 2, 3, 1).flatten(1) for t in logits], dim=1)
        )
        close(
            prediction.deltas,
            torch.cat([t.permute(0, 2, 3, 1).reshape(2, -1, 4) for t in deltas], dim=1),
        )


def test_losses_and_gradients(models: Any, scene: Any) -> None:
    ours, theirs = models
    batch, targets = scene
    ours.train(), theirs.train()
    images = _normalized(batch["images"], batch["image_sizes"])
    sizes = [tuple(s) for s in batch["image_sizes"].tolist()]

    cells = sum(3 * (SIDE // s) ** 2 for s in (4, 8, 16, 32, 64))
    rpn_keys = random_keys(batch["seeds"], ANCHORS, cells)
    region_keys = random_keys(batch["seeds"], REGIONS, 400 + batch["labels"].shape[1])
    losses = ours(batch).losses
    ours.zero_grad()
    sum(losses.values()).backward()

    features = theirs.backbone(images)
    theirs.rpn.fg_bg_sampler = KeyedSampler(rpn_keys, 256, 0.5)
    proposals, expected = theirs.rpn(ImageList(images, sizes), features, targets)
    # Their candidates are an image's proposals and its objects, without our padding in between.
    keys = [torch.cat([k[: len(p)], k[400:]]) for k, p in zip(region_keys, proposals, strict=True)]
    theirs.roi_heads.fg_bg_sampler = KeyedSampler(keys, 64, 0.25)
    _, region_losses = theirs.roi_heads(features, proposals, sizes, targets)
    expected = expected | region_losses
    theirs.zero_grad()
    sum(expected.values()).backward()

    names = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "class": "loss_classifier",
        "box": "loss_box_reg",
        "mask": "loss_mask",
    }
    for name, their_name in names.items():  # theirs reduces the objectness loss in float32
        bound = 1e-6 if name == "rpn_objectness" else 1e-9
        assert losses[name].item() == pytest.approx(expected[their_name].item(), rel=bound), name
    gradients = weights.from_torchvision({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients[name], 1e-7)


@torch.no_grad()
def test_proposals_and_detections(models: Any, scene: Any) -> None:
    ours, theirs = models
    batch, _ = scene
    ours.eval(), theirs.eval()
    images = _normalized(batch["images"], batch["image_sizes"])
    sizes = [tuple(s) for s in batch["image_sizes"].tolist()]
    features = theirs.backbone(images)
    expected_proposals, _ = theirs.rpn(ImageList(images, sizes), features)
    detections, _ = theirs.roi_heads(features, expected_proposals, sizes)

    pyramid = ours.fpn(ours.backbone(images))
    anchors = ours.anchors(pyramid, images.shape[-2:])
    proposals, _, valid = ours.rpn.propose(ours.rpn(pyramid), anchors, batch["image_sizes"], "test")
    for i, expected in enumerate(expected_proposals):
        close(proposals[i][valid[i]], expected)

    found = to_original(ours(batch).detections, batch)
    assert sum(len(d["boxes"]) for d in detections) > 40, "the comparison needs detections"
    for i, (our, their) in enumerate(zip(found, detections, strict=True)):
        size = batch["original_sizes"][i].tolist()
        boxes = their["boxes"] / batch["scales"][i].flip(0).repeat(2)
        assert our["labels"].tolist() == their["labels"].tolist()
        np.testing.assert_allclose(our["boxes"], boxes.numpy(), atol=1e-3)
        np.testing.assert_allclose(our["scores"], their["scores"].numpy(), atol=1e-6)
        pasted = paste_masks_in_image(their["masks"], boxes, tuple(size))[:, 0] > 0.5
        for rle, mask in zip(our["masks"], pasted.numpy(), strict=True):
            theirs_rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            if mask.any():
                assert pycocotools.mask.iou([rle], [theirs_rle], [0])[0, 0] >= 0.99
            else:
                assert pycocotools.mask.area(rle) == 0


def test_mask_targets_from_crops_differ_little(test_data: Any) -> None:
    """On purpose: a 112 x 112 crop of each mask in place of the whole image, and pixel centers in
    place of corners.
    """
    _, targets = scene_of(test_data, 192)
    differences = []
    for target in targets:
        noise = 1 + (torch.rand(len(target["boxes"]), 4) - 0.5) * 0.2
        side = (target["boxes"][:, 2:] - target["boxes"][:, :2]).repeat(1, 2)
        regions = (target["boxes"] + side * (noise - 1)).clamp(min=0)
        expected = project_masks_on_boxes(
            target["masks"].double(), regions, torch.arange(len(regions)), 28
        )
        got = mask_targets(regions, _crops(target), target["boxes"], torch.arange(len(regions)), 28)
        large = (side > 16).all(dim=1)  # half a pixel of a smaller object is more than its outline
        differences.append((got - expected).abs().mean(dim=(1, 2))[large])
    assert torch.cat(differences).mean() < 0.05
    assert len(torch.cat(differences)) >= 5


def _crops(target: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each mask cut to its box, 112 x 112."""
    grid = (torch.arange(112) + 0.5) / 112
    crops = []
    for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].tolist(), strict=True):
        y, x = (y1 + grid * (y2 - y1)).long(), (x1 + grid * (x2 - x1)).long()
        crops.append(mask[y[:, None], x[None, :]])
    return torch.stack(crops)
