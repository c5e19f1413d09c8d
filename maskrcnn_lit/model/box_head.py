"""The box head: region features -> class scores and box deltas (Fast R-CNN heads on FPN; Mask
R-CNN, figure 4 right).

Letters: B images, P proposals, S sampled regions per image, C channels, K classes, G instances, D
detections.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.errors import UserError, check_choice, check_list, check_whole, check_within
from maskrcnn_lit.model.boxes import batched_nms, can_sync, clip, decode, encode, full_precision
from maskrcnn_lit.model.losses import (
    BOX_LOSSES,
    CLASS_LOSSES,
    box_loss,
    class_loss,
    focal_class_loss,
    giou_loss,
)
from maskrcnn_lit.model.matching import match, take
from maskrcnn_lit.model.norms import HEAD_NORMS, MAX_DEPTH, MAX_POOL, MAX_WIDTH, conv
from maskrcnn_lit.model.sampling import MAX_SAMPLE, REGIONS, random_keys, sample
from maskrcnn_lit.model.suppression import BOX_NMS, CANDIDATES, SAME_BOX, soft_nms

MIN_SIDE = 1e-2  # pixels; smaller detections are removed


class SampledRegions(NamedTuple):
    """Sampled proposals and their targets."""

    boxes: Tensor  # B S 4, pixels
    labels: Tensor  # B S int64, 0 = background
    instance: Tensor  # B S int64 into G: the matched object
    positive: Tensor  # B S bool
    valid: Tensor  # B S bool


class BoxHead(nn.Module):
    """Convolutions (none in the paper) and fully connected layers, then K + 1 class logits (0 =
    background) and 4 deltas per class.

    Args: channels: of the pyramid. pool: side of the region features. conv_width, convs: width and
    number of the convolutions (Wu and He 2018, section 5.2: 256 and 4). norm: after each
    convolution (see norms.py); None: none. width, fcs: width and number of the fully connected
    layers. num_classes: K. object_iou: minimum IoU of a foreground proposal; all others are
    background. batch_size, positive_fraction: sampled regions per image (Mask R-CNN, section 3.1:
    512, 1:3). box_weights: scale of the deltas. label_smoothing: share of the class targets that is
    spread over all classes and the background. score_threshold, nms_iou, max_detections: of
    inference (section 3.1). candidates: boxes kept before NMS, by score; exact if no more of an
    image's boxes pass score_threshold. cascade: object_iou of each stage of a cascade (cascade.py),
    whose deltas are of no class; None: one stage. box_loss: smooth_l1 of the deltas, or giou of the
    boxes. class_loss: cross_entropy, or focal. See losses.py.

    Raises UserError for values of the wrong type or range.
    """

    def __init__(
        self,
        *,
        channels: int,
        pool: int,
        width: int,
        num_classes: int,
        object_iou: float,
        batch_size: int,
        positive_fraction: float,
        box_weights: tuple[float, float, float, float],
        score_threshold: float,
        nms_iou: float,
        max_detections: int,
        candidates: int,
        conv_width: int = 256,
        convs: int = 0,
        norm: str | None = None,
        fcs: int = 2,
        label_smoothing: float = 0.0,
        cascade: Sequence[float] | None = None,
        box_loss: str = "smooth_l1",
        class_loss: str = "cross_entropy",
    ) -> None:
        super().__init__()
        check_whole(
            1, MAX_WIDTH, model__num_classes=num_classes, model__box_head__channels=channels
        )
        check_whole(1, MAX_WIDTH, model__box_head__width=width)
        check_whole(1, MAX_WIDTH, model__box_head__conv_width=conv_width)
        check_whole(1, MAX_POOL, model__box_head__pool=pool)
        check_whole(1, MAX_DEPTH, model__box_head__fcs=fcs)
        check_whole(0, MAX_DEPTH, model__box_head__convs=convs)
        check_whole(1, MAX_SAMPLE, model__box_head__batch_size=batch_size)
        check_whole(1, MAX_SAMPLE, model__box_head__max_detections=max_detections)
        check_whole(1, MAX_SAMPLE, model__box_head__candidates=candidates)
        check_within(
            0, 1, model__box_head__nms_iou=nms_iou, model__box_head__score_threshold=score_threshold
        )
        check_within(0, 1, model__box_head__object_iou=object_iou)
        check_within(0, 1, model__box_head__positive_fraction=positive_fraction)
        check_within(0, 1, model__box_head__label_smoothing=label_smoothing)
        check_list(0.001, 1000, 4, model__box_head__box_weights=box_weights)
        check_choice(HEAD_NORMS, True, model__box_head__norm=norm)
        _check_cascade(cascade)
        check_choice(BOX_LOSSES, model__box_head__box_loss=box_loss)
        check_choice(CLASS_LOSSES, model__box_head__class_loss=class_loss)
        if class_loss == "focal" and label_smoothing:
            raise UserError(
                f"model.box_head.class_loss=focal takes no label_smoothing={label_smoothing}: set "
                "it to 0, or use cross_entropy"
            )
        self.box_loss, self.class_loss = box_loss, class_loss
        inputs = [channels, *[conv_width] * convs]
        self.convs = nn.ModuleList(conv(c, conv_width, 3, norm) for c in inputs[:-1])
        self.fcs = nn.ModuleList(
            nn.Linear(c, width) for c in [inputs[-1] * pool**2, *[width] * (fcs - 1)]
        )
        self.classes = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 if cascade else num_classes * 4)
        # As in the published configurations: initial class scores are about equal, deltas about 0.
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.deltas.bias)
        self.pool, self.num_classes, self.box_weights = pool, num_classes, tuple(box_weights)
        self.object_iou, self.batch_size, self.positive_fraction = (
            object_iou,
            batch_size,
            positive_fraction,
        )
        self.label_smoothing, self.score_threshold, self.nms_iou = (
            label_smoothing,
            score_threshold,
            nms_iou,
        )
        self.max_detections, self.candidates = max_detections, candidates
        self.suppression = BOX_NMS  # the model's, see `MaskRCNN.set_suppression`
        self.cascade = None if cascade is None else tuple(cascade)
        self.later = nn.ModuleList()  # the stages after this one, see cascade.py

    @property
    def final_weights(self) -> tuple[float, ...]:
        """The box weights of the last stage, whose deltas `detect` is given."""
        stages: list[Any] = [self, *self.later]
        weights: tuple[float, ...] = stages[-1].box_weights
        return weights

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """R C pool pool -> class logits R K+1 and deltas R K 4 (R 1 4 with a cascade)."""
        for layer in self.convs:
            features = F.relu(layer(features), inplace=True)
        hidden = features.permute(0, 2, 3, 1).flatten(
            1
        )  # R (pool pool C), the memory layout of RoIAlign: no copy
        for layer in self.fcs:
            hidden = F.relu(layer(hidden))
        logits, deltas = full_precision(self.classes(hidden)), full_precision(self.deltas(hidden))
        return logits, deltas.unflatten(1, (-1, 4))

    @torch.no_grad()
    def sample_regions(
        self, proposals: Tensor, valid: Tensor, batch: Batch, static_shapes: bool = False
    ) -> SampledRegions:
        """Sample regions from proposals B P 4 and the ground-truth boxes (so that there are
        positives from the start). static_shapes: see `boxes.can_sync`.
        """
        candidates = torch.cat([proposals, batch["boxes"]], dim=1)  # B (P+G) 4
        real = torch.cat([valid, batch["valid"]], dim=1)
        instance, kind = match(
            candidates,
            batch["boxes"],
            batch["valid"],
            batch["crowd"],
            object_iou=self.object_iou,
            background_iou=self.object_iou,
            keep_best=False,
            static_shapes=static_shapes,
        )
        keys = torch.where(
            real, random_keys(batch["seeds"], REGIONS, real.shape[1]), -1
        )  # padding is never sampled
        drawn = sample(kind, keys, count=self.batch_size, positive_fraction=self.positive_fraction)
        instance = take(instance, drawn.indices)
        labels = torch.where(drawn.positive, take(batch["labels"], instance), 0)
        return SampledRegions(
            take(candidates, drawn.indices), labels, instance, drawn.positive, drawn.valid
        )

    def losses(
        self, logits: Tensor, deltas: Tensor, regions: SampledRegions, batch: Batch
    ) -> dict[str, Tensor]:
        """Class and box loss of the sampled regions; the box loss uses the four deltas of the true
        class.
        """
        images, count = regions.labels.shape
        channel = (regions.labels - 1).clamp(0, deltas.shape[1] - 1).view(-1, 1, 1)
        channel = channel.expand(-1, 1, 4)
        own = deltas.gather(1, channel).view(images, count, 4)  # (B S) K 4 -> B S 4
        truth = take(batch["boxes"], regions.instance)
        samples = regions.positive, regions.valid
        if self.box_loss == "giou":
            box = giou_loss(decode(own, regions.boxes, self.box_weights), truth, *samples)
        else:
            box = box_loss(own, encode(truth, regions.boxes, self.box_weights), *samples)
        scores = logits.view(images, count, -1)
        if self.class_loss == "focal":
            classes = focal_class_loss(scores, regions.labels, regions.valid)
        else:
            classes = class_loss(
                scores, regions.labels, regions.valid, smoothing=self.label_smoothing
            )
        return {"class": classes, "box": box}

    @torch.no_grad()
    def detect(
        self,
        logits: Tensor,
        deltas: Tensor,
        proposals: Tensor,
        valid: Tensor,
        image_sizes: Tensor,
        static_shapes: bool = False,
    ) -> dict[str, Tensor]:
        """Logits (B P) K+1, deltas (B P) K 4 or (B P) 1 4, proposals B P 4 -> boxes B D 4, scores B
        D, labels B D, valid B D.

        Slots beyond an image's detections are zero. Where suppression compares masks, which come
        later, these are candidates: more, and some of them of one object. static_shapes: see
        `boxes.can_sync`.
        """
        images = len(valid)
        scores = logits.softmax(dim=-1)[:, 1:].reshape(
            images, -1
        )  # (B P) K+1 -> B (P K), without background
        likely = valid.repeat_interleave(self.num_classes, dim=1) & (scores > self.score_threshold)
        scores = torch.where(likely, scores, -1)
        limit = min(self.candidates, scores.shape[1])
        if can_sync(scores, static_shapes):  # NMS is quadratic in it
            limit = min(limit, max(1, int((scores >= 0).sum(dim=1).max())))
        scores, index = scores.topk(limit, dim=1)
        region, labels = index // self.num_classes, index % self.num_classes + 1
        own = index if deltas.shape[1] == self.num_classes else region
        chosen = take(deltas.reshape(images, -1, 4), own)
        boxes = clip(decode(chosen, take(proposals, region), self.final_weights), image_sizes)
        real = (boxes[..., 2:] - boxes[..., :2] >= MIN_SIDE).all(dim=-1)
        scores = torch.where(real, scores, -1)
        boxes = torch.where(real[..., None], boxes, 0)  # they suppress none
        if self.suppression.nms == "soft":
            groups, count = self.suppression.groups(labels), min(self.max_detections, limit)
            scores, best = soft_nms(boxes, scores, groups, count)
            selected = scores > self.score_threshold
        else:
            several = self.suppression.of_masks
            groups = labels if several else self.suppression.groups(labels)
            count = self.max_detections * (CANDIDATES if several else 1)
            keep = self.suppress(boxes, groups, static_shapes)
            scores, best = torch.where(keep, scores, -1).topk(min(count, limit), dim=1)
            selected = scores > 0
        return {
            "boxes": torch.where(selected[..., None], take(boxes, best), 0),
            "scores": scores * selected,
            "labels": take(labels, best) * selected,
            "valid": selected,
        }

    @property
    def removed_iou(self) -> float:
        """The IoU of boxes beyond which `suppress` removes the worse one."""
        return SAME_BOX if self.suppression.of_masks else self.nms_iou

    def suppress(self, boxes: Tensor, groups: Tensor, static_shapes: bool = False) -> Tensor:
        """Which boxes stay: B N 4, best first, and groups B N of 1..K -> B N bool. What exports the
        model gives it another form.
        """
        return batched_nms(boxes, self.removed_iou, groups=groups, static_shapes=static_shapes)


def _check_cascade(cascade: Sequence[float] | None) -> None:
    if cascade is None:
        return
    check_list(0, 1, model__box_head__cascade=cascade)
    if len(cascade) < 2 or any(low > high for low, high in pairwise(cascade)):
        raise UserError(
            f"model.box_head.cascade={list(cascade)} must have two or more IoU thresholds in "
            "ascending order, for example [0.5,0.6,0.7], or be null"
        )
