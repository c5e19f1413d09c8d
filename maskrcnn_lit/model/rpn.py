"""The region proposal network: pyramid -> objectness and deltas of anchors -> proposals (Faster
R-CNN, section 3.1).

Letters: B images, C channels, L levels, a anchors per cell, A anchors of all levels, P proposals
per image, G instances.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.errors import UserError, check_choice, check_flag, check_whole, check_within
from maskrcnn_lit.model.boxes import clip, decode, encode, full_precision, nms_per_level
from maskrcnn_lit.model.losses import (
    BOX_LOSSES,
    CLASS_LOSSES,
    RPN_GIOU_WEIGHT,
    box_loss,
    focal_objectness_loss,
    giou_loss,
    objectness_loss,
)
from maskrcnn_lit.model.matching import IGNORED, match, take
from maskrcnn_lit.model.norms import MAX_DEPTH, MAX_WIDTH, conv, dense_convs
from maskrcnn_lit.model.sampling import ANCHORS, MAX_SAMPLE, random_keys, sample

UNIT = (1.0, 1.0, 1.0, 1.0)  # the RPN's deltas are not scaled

MIN_SIDE = 1e-3  # pixels; smaller proposals are removed


PHASES = ("train", "test")


class Prediction(NamedTuple):
    logits: Tensor  # B A float32, objectness
    deltas: Tensor  # B A 4 float32
    level_sizes: list[int]  # anchors of each level, summing to A


class AnchorSample(NamedTuple):
    """Sampled anchors and their objects."""

    indices: Tensor  # B S int64 into A
    anchors: Tensor  # B S 4, pixels
    objects: Tensor  # B S 4, pixels: the box of the matched object
    positive: Tensor  # B S bool
    valid: Tensor  # B S bool


class RPN(nn.Module):
    """3x3 convolutions, then two 1x1: objectness and four deltas for each anchor; shared by all
    levels.

    Args:
        channels: of the pyramid.
        anchors_per_cell: number of aspect ratios.
        depth: number of the 3x3 convolutions.
        separable: these are depthwise separable (norms.py).
        object_iou, background_iou, batch_size, positive_fraction: section 3.1.3 of Faster R-CNN;
            per image.
        nms_iou: section 3.3 of Faster R-CNN; per level (FPN).
        pre_nms, post_nms: number of best proposals before NMS (per level) and after (per image),
            for `train` and `test`.
        box_loss: smooth_l1 of the deltas, or giou of the boxes; objectness_loss: cross_entropy, or
            focal. See losses.py.

    Raises UserError for values of the wrong type or range.
    """

    def __init__(
        self,
        *,
        channels: int,
        anchors_per_cell: int,
        object_iou: float,
        background_iou: float,
        batch_size: int,
        positive_fraction: float,
        nms_iou: float,
        pre_nms: dict[str, int],
        post_nms: dict[str, int],
        depth: int = 1,
        separable: bool = False,
        box_loss: str = "smooth_l1",
        objectness_loss: str = "cross_entropy",
    ) -> None:
        super().__init__()
        check_choice(BOX_LOSSES, model__rpn__box_loss=box_loss)
        check_choice(CLASS_LOSSES, model__rpn__objectness_loss=objectness_loss)
        self.box_loss, self.objectness_loss = box_loss, objectness_loss
        check_whole(1, MAX_WIDTH, model__rpn__channels=channels)
        check_whole(1, MAX_WIDTH, model__rpn__anchors_per_cell=anchors_per_cell)
        check_whole(1, MAX_DEPTH, model__rpn__depth=depth)
        check_flag(model__rpn__separable=separable)
        check_whole(1, MAX_SAMPLE, model__rpn__batch_size=batch_size)
        check_within(
            0, 1, model__rpn__object_iou=object_iou, model__rpn__background_iou=background_iou
        )
        check_within(
            0, 1, model__rpn__nms_iou=nms_iou, model__rpn__positive_fraction=positive_fraction
        )
        if background_iou > object_iou:
            raise UserError(
                f"model.rpn.background_iou={background_iou} must be at most model.rpn.object_iou, "
                f"which is {object_iou}"
            )
        for name, counts in {"pre_nms": pre_nms, "post_nms": post_nms}.items():
            _check_counts(name, counts)
        self.convs = nn.ModuleList(
            conv(channels, channels, 3, None, separable=separable) for _ in range(depth)
        )
        self.objectness = nn.Conv2d(channels, anchors_per_cell, 1)
        self.deltas = nn.Conv2d(channels, anchors_per_cell * 4, 1)
        for layer in dense_convs(self):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.get_parameter("bias"))
        self.object_iou, self.background_iou = object_iou, background_iou
        self.batch_size, self.positive_fraction = batch_size, positive_fraction
        self.nms_iou, self.pre_nms, self.post_nms = nms_iou, pre_nms, post_nms

    def forward(self, pyramid: Sequence[Tensor]) -> Prediction:
        """p2..p6, each B C h w -> objectness and deltas of every anchor, in the order of
        `Anchors`.
        """
        # Run the two 1x1 convolutions as one, to read the hidden map once and have one gradient.
        # Tensor cores need multiples of eight channels, so pad with zero channels.
        own = [len(self.objectness.weight), len(self.deltas.weight)]
        fill = -sum(own) % 8
        weight = torch.cat([self.objectness.weight, self.deltas.weight])
        bias = torch.cat([self.objectness.get_parameter("bias"), self.deltas.get_parameter("bias")])
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, fill)), F.pad(bias, (0, fill))
        logits, deltas = [], []
        for features in pyramid:
            for layer in self.convs:
                features = F.relu(layer(features), inplace=True)
            both = F.conv2d(features, weight, bias).permute(
                0, 2, 3, 1
            )  # B (a + a 4 + fill) h w -> B h w (a + a 4 + fill)
            parts = both.split([*own, fill], dim=-1)
            logits.append(parts[0].flatten(1))  # B (h w a)
            deltas.append(parts[1].reshape(len(both), -1, 4))  # B (h w a) 4
        sizes = [level.shape[1] for level in logits]
        return Prediction(
            full_precision(torch.cat(logits, dim=1)),
            full_precision(torch.cat(deltas, dim=1)),
            sizes,
        )

    @torch.no_grad()
    def propose(
        self,
        prediction: Prediction,
        anchors: Tensor,
        image_sizes: Tensor,
        phase: str,
        static_shapes: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best proposals: boxes B P 4 in pixels, logits B P, valid B P bool; `phase` is "train"
        or "test". static_shapes: see `boxes.can_sync`.

        Images with fewer than P proposals are padded with zero boxes.
        """
        boxes, logits, real = [], [], []
        sizes = prediction.level_sizes
        levels = (
            prediction.logits.split(sizes, 1),
            prediction.deltas.split(sizes, 1),
            anchors.split(sizes),
        )
        for level, deltas, reference in zip(*levels, strict=True):
            best, index = level.topk(min(self.pre_nms[phase], level.shape[1]), dim=1)
            proposals = clip(decode(take(deltas, index), reference[index], UNIT), image_sizes)
            boxes.append(proposals)
            logits.append(best)
            real.append((proposals[..., 2:] - proposals[..., :2] >= MIN_SIDE).all(dim=-1))
        # A box without area overlaps nothing, so it may stay in NMS.
        stays = self.suppress(boxes, static_shapes)
        keep = [own & there for own, there in zip(stays, real, strict=True)]
        scores = torch.where(torch.cat(keep, dim=1), torch.cat(logits, dim=1), -torch.inf)
        scores, index = scores.topk(min(self.post_nms[phase], scores.shape[1]), dim=1)
        valid = scores > -torch.inf
        # where, not a product: boxes of a diverged network are NaN, which must not become an index.
        return torch.where(valid[..., None], take(torch.cat(boxes, dim=1), index), 0), scores, valid

    def suppress(self, levels: Sequence[Tensor], static_shapes: bool = False) -> list[Tensor]:
        """Which boxes of each level stay: B N 4, best first, -> B N bool, of each. What exports the
        model gives it another form.
        """
        return nms_per_level(levels, self.nms_iou, static_shapes=static_shapes)

    @torch.no_grad()
    def sample_anchors(
        self, anchors: Tensor, batch: Batch, static_shapes: bool = False
    ) -> AnchorSample:
        """Match A 4 anchors and sample from them. static_shapes: see `boxes.can_sync`."""
        index, kind = match(
            anchors[None],
            batch["boxes"],
            batch["valid"],
            batch["crowd"],
            object_iou=self.object_iou,
            background_iou=self.background_iou,
            keep_best=True,
            static_shapes=static_shapes,
        )
        # Anchors extend beyond an unreadable image, so its crowd region does not cover them all.
        kind = torch.where(batch["readable"][:, None], kind, IGNORED)
        keys = random_keys(batch["seeds"], ANCHORS, kind.shape[1])
        drawn = sample(kind, keys, count=self.batch_size, positive_fraction=self.positive_fraction)
        objects = take(batch["boxes"], take(index, drawn.indices))
        return AnchorSample(
            drawn.indices, anchors[drawn.indices], objects, drawn.positive, drawn.valid
        )

    def losses(self, prediction: Prediction, chosen: AnchorSample) -> dict[str, Tensor]:
        """Objectness and box loss of the sampled anchors."""
        logits, deltas = (
            take(prediction.logits, chosen.indices),
            take(prediction.deltas, chosen.indices),
        )
        samples = chosen.positive, chosen.valid
        focal = self.objectness_loss == "focal"
        objectness = (focal_objectness_loss if focal else objectness_loss)(logits, *samples)
        if self.box_loss == "giou":
            boxes = decode(deltas, chosen.anchors, UNIT)
            box = giou_loss(boxes, chosen.objects, *samples, weight=RPN_GIOU_WEIGHT)
        else:
            box = box_loss(deltas, encode(chosen.objects, chosen.anchors, UNIT), *samples)
        return {"rpn_objectness": objectness, "rpn_box": box}


def _check_counts(name: str, counts: Any) -> None:
    """Check pre_nms or post_nms: one number for each phase (conf/model/mask_rcnn.yaml)."""
    if not isinstance(counts, Mapping) or set(counts) != set(PHASES):
        raise UserError(
            f"model.rpn.{name}={counts} must have one number for each of {' and '.join(PHASES)}"
        )
    for phase, count in counts.items():
        check_whole(1, MAX_SAMPLE, **{f"model__rpn__{name}__{phase}": count})
