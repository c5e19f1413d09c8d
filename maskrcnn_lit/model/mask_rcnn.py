"""Start here: Mask R-CNN (He et al. 2017) as one forward. Image -> backbone -> pyramid -> proposals
-> box and mask.

Letters: B images, G padded instances, P proposals, S sampled regions, D detections, R regions, m
mask side, K classes.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskrcnn_lit.data.batch import Batch, stored_maps
from maskrcnn_lit.errors import (
    UserError,
    check_choice,
    check_flag,
    check_list,
    check_text,
    check_whole,
)
from maskrcnn_lit.model.anchors import Anchors
from maskrcnn_lit.model.backbone import Backbone, levels
from maskrcnn_lit.model.box_head import BoxHead, SampledRegions
from maskrcnn_lit.model.boxes import can_sync
from maskrcnn_lit.model.cascade import later_losses, predict, scaled, stages, with_stages
from maskrcnn_lit.model.fpn import FPN, SimpleFPN
from maskrcnn_lit.model.mask_head import MaskHead, mask_targets, without_void
from maskrcnn_lit.model.mask_iou import MaskIoUHead, mask_iou_targets
from maskrcnn_lit.model.matching import take
from maskrcnn_lit.model.occluder import OccluderHead, occluder_targets
from maskrcnn_lit.model.point_head import STEPS, PointHead, logits_at, places
from maskrcnn_lit.model.roi_align import KINDS, RoIs, roi_align, sample_points
from maskrcnn_lit.model.rpn import RPN, AnchorSample, Prediction
from maskrcnn_lit.model.sampling import scramble
from maskrcnn_lit.model.suppression import BOX_NMS, Suppression, suppress_masks
from maskrcnn_lit.model.timm_backbone import TimmBackbone

MAX_POINTS = 32  # maximum sampling_ratio of RoIAlign
ROI_OPTIONS = ("points", "aligned", "kind", "level")
REFINEMENTS = ("points",)  # model.mask_refine


class Output(NamedTuple):
    """The output of a forward pass; it depends on the mode (see `MaskRCNN.forward`)."""

    losses: dict[
        str, Tensor
    ]  # rpn_objectness, rpn_box, class, box, mask, and those of optional parts: scalars, each a
    # mean over a sample
    counts: dict[str, Tensor]  # the size of the sample of each loss; for 0 the loss is 0
    detections: (
        dict[str, Tensor] | None
    )  # boxes B D 4, scores B D, labels B D, masks B D m m if it has a mask head, valid B D,
    # perhaps exclusive B D
    box_labels: (
        Tensor | None
    )  # B G int64: the class (0 = background) that the box head assigns to the box of each slot
    masks_dropped: Tensor | None = None  # scalar: positives of this batch without a mask slot
    each: dict[Suppression, dict[str, Tensor]] | None = None  # see `MaskRCNN.choices`
    plain: dict[str, Tensor] | None = None  # see `tta.WithViews` and `tiles.WithTiles`
    found: list[dict[str, Any]] | None = None  # see `tiles.WithTiles`


class MaskRCNN(nn.Module):
    """The paper's figure 1 on the pyramid of its section 3.1.

    Args:
        mean: of the pixels in 0..1, by channel R G B.
        std: likewise.
        backbone: images B 3 H W -> c2..c5, or one map.
        fpn: these -> p2..p6.
        anchors: of each level of the pyramid.
        rpn: anchors -> proposals.
        box_head: proposals -> classes and boxes.
        mask_head: boxes -> masks; None: boxes alone, Faster R-CNN (table 3 of the paper).
        points: sampling_ratio of RoIAlign: samples per side of a bin (roi_align.py).
        aligned: whether RoIAlign shifts by half a pixel.
        kind: align, warp or pool (roi_align.py).
        level: 2..5: all regions read this level of the pyramid; None: each the one that fits.
        suppression: of detections in evaluation mode.
        weights: the initial weights of training (convert.py): a published name, a file, a run. The
            model only stores the name and does not load them. None or "none": random weights.
        mask_iou: scores masks (mask_iou.py); None: the score of a detection is its class score.
        mask_refine: makes masks finer (point_head.py); None: they are the mask head's.
        occluder: adds features of what covers an object to those of its region, for the mask head
            (occluder.py); None: it sees those of the region alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        backbone: Backbone | TimmBackbone,
        fpn: FPN | SimpleFPN,
        anchors: Anchors,
        rpn: RPN,
        box_head: BoxHead,
        mask_head: MaskHead | None,
        points: int = 2,
        aligned: bool = False,
        kind: str = "align",
        level: int | None = None,
        suppression: Suppression = BOX_NMS,
        weights: str | None = None,
        mask_iou: MaskIoUHead | None = None,
        mask_refine: PointHead | None = None,
        occluder: OccluderHead | None = None,
    ) -> None:
        super().__init__()
        check_list(0, 1, 3, model__mean=mean)
        check_list(0.001, 1, 3, model__std=std)
        check_whole(0, MAX_POINTS, model__roi_align__points=points)
        check_flag(model__roi_align__aligned=aligned)
        check_choice(KINDS, model__roi_align__kind=kind)
        if level is not None:
            check_whole(2, 5, model__roi_align__level=level)
        check_text(model__weights=weights)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.backbone, self.fpn, self.anchors, self.rpn = backbone, fpn, anchors, rpn
        self.box_head, self.mask_head = box_head, mask_head
        self.mask_iou, self.mask_refine, self.occluder = mask_iou, mask_refine, occluder
        self.points, self.aligned, self.weights = (
            points,
            aligned,
            None if weights == "none" else weights,
        )
        self.set_suppression(suppression)
        # kinds of suppression, not exclusive, of which a forward gives the detections too, as
        # `Output.each`; the model's own is one of them
        self.choices: tuple[Suppression, ...] = ()
        # of the levels that RoIAlign uses: p2..p5
        self.strides: list[int] = getattr(fpn, "strides", None) or levels(backbone)[1]
        self.kind, self.level = kind, level

    def set_suppression(self, suppression: Suppression) -> None:
        """Change the suppression of detections; no weight depends on it. Raises UserError for
        values of the wrong kind, and for those that need masks of a model without them.
        """
        self.suppression = suppression.checked()
        if self.mask_head is None:
            if suppression.of_masks:
                raise UserError(
                    f"model.nms={suppression.nms} needs masks, and model.mask_head=null makes "
                    "none: use model.nms=box or soft, or a mask head"
                )
            _refuse_masks({"exclusive": suppression.exclusive})
        # a class of the user may be the head: it need not know of it
        self.box_head.suppression = self.suppression

    @property
    def mask_size(self) -> int:
        """The side of the masks of detections; 0 without a mask head."""
        if self.mask_head is None:
            return 0
        side = int(self.mask_head.mask_size)
        return side if self.mask_refine is None else side * 2**STEPS

    def forward(self, batch: Batch, static_shapes: bool = False) -> Output:
        """`batch` as in data/batch.py; its targets may be absent in evaluation.

        In training mode: the five losses. In evaluation mode: detections and, if the batch has
        targets, the five losses with the same sampling as in training and `box_labels`, all from
        one pass through the backbone. static_shapes: compute all slots on the CPU, too, as a GPU
        does (see `boxes.can_sync`): the same result with more work.
        """
        if not self.training and "boxes" not in batch and not self.choices:
            inferred = self.infer(batch["images"], batch["image_sizes"], static_shapes)
            return Output({}, {}, self.marked(inferred), None)
        maps = stored_maps(batch)
        if maps is None:
            pyramid, prediction = self.trunk(batch["images"], batch["image_sizes"])
        else:  # of a frozen backbone, computed before
            pyramid, prediction = self.after_backbone(maps)
        anchors = self.anchors(pyramid, batch["images"].shape[-2:])

        losses, counts = dict[str, Tensor](), dict[str, Tensor]()
        dropped = None
        if "boxes" in batch:
            if "seeds" not in batch:
                batch = batch | {
                    "seeds": torch.randint(2**63 - 1, (len(pyramid[0]),), device=anchors.device)
                }
            chosen, regions = self.targets(prediction, anchors, batch, static_shapes)
            losses, counts, dropped = self.losses(
                pyramid, prediction, chosen, regions, batch, static_shapes
            )
        if self.training:
            return Output(losses, counts, None, None, dropped)

        sizes = batch["image_sizes"]
        proposals, valid = self.proposals(prediction, anchors, sizes, static_shapes)
        each = None
        if self.choices:
            each = self.detect_each(pyramid, proposals, valid, sizes, static_shapes)
            detections = each[self.suppression._replace(exclusive=False)]
        else:
            detections = self.detect(pyramid, proposals, valid, sizes, static_shapes)
        labels = self.classify(pyramid, batch["boxes"], sizes) if "boxes" in batch else None
        return Output(losses, counts, self.marked(detections), labels, dropped, each)

    def infer(
        self, images: Tensor, image_sizes: Tensor, static_shapes: bool = False
    ) -> dict[str, Tensor]:
        """Detections of images without targets, in one function that compiles to one graph."""
        kind = type(self)  # methods of the class are not compiled separately
        pyramid, prediction = kind.trunk(self, images, image_sizes)
        anchors = self.anchors(pyramid, images.shape[-2:])
        proposals, valid = kind.proposals(self, prediction, anchors, image_sizes, static_shapes)
        return kind.detect(self, pyramid, proposals, valid, image_sizes, static_shapes)

    def trunk(self, images: Tensor, image_sizes: Tensor) -> tuple[list[Tensor], Prediction]:
        """Pixels -> p2..p6 and the RPN's prediction for every anchor."""
        kind = type(self)  # methods of the class are not compiled separately
        return kind.after_backbone(self, self.backbone(self.normalize(images, image_sizes)))

    def after_backbone(self, maps: list[Tensor]) -> tuple[list[Tensor], Prediction]:
        """c2..c5 -> p2..p6 and the RPN's prediction for every anchor."""
        pyramid = self.fpn(maps)
        return pyramid, self.rpn(pyramid)

    def targets(
        self, prediction: Prediction, anchors: Tensor, batch: Batch, static_shapes: bool = False
    ) -> tuple[AnchorSample, SampledRegions]:
        """The sampled anchors and regions of this step, and their targets."""
        proposals, _, valid = self.rpn.propose(
            prediction, anchors, batch["image_sizes"], "train", static_shapes
        )
        return (
            self.rpn.sample_anchors(anchors, batch, static_shapes),
            self.box_head.sample_regions(proposals, valid, batch, static_shapes),
        )

    def proposals(
        self,
        prediction: Prediction,
        anchors: Tensor,
        image_sizes: Tensor,
        static_shapes: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The proposals of inference: B P 4 in pixels, and their validity, B P."""
        boxes, _, valid = self.rpn.propose(prediction, anchors, image_sizes, "test", static_shapes)
        return boxes, valid

    def losses(
        self,
        pyramid: Sequence[Tensor],
        prediction: Prediction,
        chosen: AnchorSample,
        regions: SampledRegions,
        batch: Batch,
        static_shapes: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        """The losses of the RPN and of both heads, the sample size of each, and the number of
        positives without a mask slot (None without a mask head).
        """
        rpn = self.rpn.losses(prediction, chosen)
        heads, counts, dropped = self.head_losses(pyramid, regions, batch, static_shapes)
        return rpn | heads, dict.fromkeys(rpn, chosen.valid.sum()) | counts, dropped

    def normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """B 3 H W uint8 -> float32 with zero mean and unit variance inside of each image, exactly
        zero outside.
        """
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < image_sizes[:, 0, None]  # B H
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1, None]  # B W
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        normal = torch.where(inside, (images / 255 - self.mean) / self.std, 0)
        return normal.contiguous(memory_format=torch.channels_last)

    def head_losses(
        self,
        pyramid: Sequence[Tensor],
        regions: SampledRegions,
        batch: Batch,
        static_shapes: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        """The losses of the heads on the sampled regions, the sample size of each, and the number
        of positives without a mask slot (None without a mask head).
        """
        every = self.regions(regions.boxes, self.box_head.pool)
        if self.mask_head is None:
            (features,) = self.align(pyramid, [every])
            return *self.box_losses(pyramid, features, regions, batch, static_shapes), None
        wanted = regions.positive
        if "masked" in batch:  # objects without a mask have box losses alone
            wanted = wanted & take(batch["masked"], regions.instance)
        chosen = self.with_masks(wanted, static_shapes)
        masked = RoIs(every.boxes[chosen], every.image[chosen], self.mask_head.pool)
        box_features, mask_features = self.align(pyramid, [every, masked])
        losses, counts = self.box_losses(pyramid, box_features, regions, batch, static_shapes)

        positive = wanted.flatten()[chosen]
        mask_losses, mask_counts = self.mask_losses(
            pyramid, mask_features, masked, chosen, positive, regions, batch
        )
        return losses | mask_losses, counts | mask_counts, wanted.sum() - positive.sum()

    def box_losses(
        self,
        pyramid: Sequence[Tensor],
        features: Tensor,
        regions: SampledRegions,
        batch: Batch,
        static_shapes: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of the box head, of all of its stages, and the sample size of each. features:
        (B S) C pool pool, of the regions.
        """
        logits, deltas = self.box_head(scaled(features, len(stages(self.box_head))))
        losses = self.box_head.losses(logits, deltas, regions, batch)
        counts = dict.fromkeys(losses, regions.valid.sum())
        pool = partial(self.pool, pyramid, size=self.box_head.pool)
        later, sizes = later_losses(self.box_head, pool, deltas, regions, batch, static_shapes)
        return losses | later, counts | sizes

    def mask_losses(
        self,
        pyramid: Sequence[Tensor],
        features: Tensor,
        masked: RoIs,
        chosen: Tensor,
        positive: Tensor,
        regions: SampledRegions,
        batch: Batch,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of the mask head and its optional parts on the `masked` regions, and the
        sample size of each. chosen: their indices into (B S). positive: which of them count.
        """
        head = self.mask_head
        if head is None:
            return {}, {}
        labels = regions.labels.flatten()[chosen]
        occluder = None if self.occluder is None else self.occluder(features)
        logits = head(features if occluder is None else features + occluder, labels)
        instance = (
            regions.instance.flatten()[chosen] + masked.image * batch["labels"].shape[1]
        )  # into (B G)
        masks, mask_boxes = batch["masks"].flatten(0, 1), batch["mask_boxes"].flatten(0, 1)
        # A slot without an object has no loss, and its region may be much larger than its crop.
        boxes = torch.where(positive[:, None], masked.boxes, mask_boxes[instance])
        targets, counted = mask_targets(boxes, masks, mask_boxes, instance, logits.shape[-1]), None
        if "void" in batch:
            targets, counted = without_void(targets, boxes, masked.image, batch["void"])
            positive = positive & (counted > 0).any(dim=2).any(dim=1)
        shares = () if counted is None else (counted,)
        losses = head.losses(logits, targets, positive, *shares)
        if self.mask_refine is not None:
            slot = chosen % regions.labels.shape[1]
            seeds = scramble(batch["seeds"])[masked.image] + slot
            truth = RoIs(boxes, masked.image, 1), instance
            losses = losses | self.point_losses(
                pyramid, logits, labels, seeds, *truth, positive, batch
            )
        counts = dict.fromkeys(losses, positive.sum())
        if self.mask_iou is not None:
            sizes = batch["image_sizes"].repeat_interleave(batch["labels"].shape[1], dim=0)
            fits = mask_iou_targets(
                logits, targets, boxes, masks, mask_boxes, instance, sizes, counted
            )
            ious = self.mask_iou(features, logits, labels)
            own, size = self.mask_iou.losses(ious, fits, positive)
            losses, counts = losses | own, counts | dict.fromkeys(own, size)
        if occluder is not None:
            own, size = self.occluder_losses(
                occluder, RoIs(boxes, masked.image, 1), instance, positive, batch
            )
            losses, counts = losses | own, counts | dict.fromkeys(own, size)
        return losses, counts

    def occluder_losses(
        self, hidden: Tensor, regions: RoIs, instance: Tensor, positive: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of the occluder branch on the regions of the mask loss, and their sample size.
        hidden: R C p p, its features. instance: R int64 into (B G).
        """
        head = self.occluder
        if head is None:
            return {}, positive.sum()
        targets, counted = occluder_targets(regions.boxes, instance, batch, 2 * hidden.shape[-1])
        if "void" in batch:
            targets, share = without_void(targets, regions.boxes, regions.image, batch["void"])
            counted = counted * share
        return head.losses(hidden, targets, counted, positive)

    def point_losses(
        self,
        pyramid: Sequence[Tensor],
        coarse: Tensor,
        labels: Tensor,
        seeds: Tensor,
        regions: RoIs,
        instance: Tensor,
        positive: Tensor,
        batch: Batch,
    ) -> dict[str, Tensor]:
        """The loss of the point head on the regions of the mask loss. coarse: their logits of the
        mask head. seeds: R int64, of their points. instance: R int64 into (B G).
        """
        head = self.mask_refine
        if head is None:
            return {}
        points = head.training_points(coarse, seeds)
        shape = points.shape[:2]
        logits = head(self.features_at(pyramid, regions, points), logits_at(coarse, points), labels)
        masks, mask_boxes = batch["masks"].flatten(0, 1), batch["mask_boxes"].flatten(0, 1)
        at, owner = places(regions.boxes, points), instance.repeat_interleave(shape[1])
        targets, counted = mask_targets(at, masks, mask_boxes, owner, 1, samples=1), None
        if "void" in batch:
            image = regions.image.repeat_interleave(shape[1])
            targets, counted = without_void(targets, at, image, batch["void"], samples=1)
            counted = counted.view(shape)
        return head.losses(logits, targets.view(shape), positive, counted)

    def with_masks(self, positive: Tensor, static_shapes: bool = False) -> Tensor:
        """The regions with a mask loss, which are the positives (section 3): B S bool -> indices
        into (B S).

        All images share a number of slots, so that the mask head does not compute unused masks. On
        the CPU it is the number of positives; a GPU would have to wait for the host, so there it is
        the maximum number of sampled positives, or `mask_head.slots` per image if that is less. If
        a batch has more positives than slots, on the CPU too, the last sampled ones of the images
        with most positives are dropped.
        """
        images, count = positive.shape
        drawn = max(1, int(count * self.box_head.positive_fraction))
        needs_positives = getattr(self.mask_head, "needs_positives", False)
        limit = None if needs_positives else getattr(self.mask_head, "slots", None)
        slots = images * (drawn if limit is None else min(limit, drawn))
        if can_sync(positive, static_shapes) or needs_positives:
            # at least one, so that every parameter gets a gradient in each step
            slots = min(slots, max(1, int(positive.sum())))
        if limit is None or limit >= drawn:
            return positive.flatten().byte().argsort(descending=True, stable=True)[:slots]
        # The positives of an image come first in its sample, in random order.
        left = torch.arange(count, 0, -1, device=positive.device)
        first = torch.where(positive, left, 0).flatten().argsort(descending=True, stable=True)
        return first[:slots].sort().values

    def regions(self, boxes: Tensor, size: int) -> RoIs:
        """B R 4 -> the (B R) regions as RoIs for RoIAlign."""
        image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        return RoIs(boxes.flatten(0, 1), image, size)

    def align(self, pyramid: Sequence[Tensor], wanted: Sequence[RoIs]) -> list[Tensor]:
        """Features R C size size of each of the `wanted`, from p2..p5."""
        levels, strides = self.sources(pyramid)
        return roi_align(
            levels,
            wanted,
            strides=strides,
            points=self.points,
            aligned=self.aligned,
            kind=self.kind,
        )

    def sources(self, pyramid: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[int]]:
        """The levels that regions read, and their strides: p2..p5, or one of them."""
        own = (
            slice(len(self.strides))
            if self.level is None
            else slice(self.level - 2, self.level - 1)
        )
        return pyramid[own], self.strides[own]

    def features_at(self, pyramid: Sequence[Tensor], regions: RoIs, points: Tensor) -> Tensor:
        """The finest map at R N 2 points (x and y from 0 to 1 in each of the R regions), bilinear:
        R N C.
        """
        count = points.shape[1]
        image = regions.image.repeat_interleave(count)
        at = RoIs(places(regions.boxes, points), image, 1)
        return self.align_points(pyramid[0], at).view(*points.shape[:2], -1)

    def align_points(self, finest: Tensor, points: RoIs) -> Tensor:
        """Features R C 1 1 of boxes without area, from p2. What exports the model gives it another
        form.
        """
        return sample_points(finest, points, self.strides[0])

    def pool(self, pyramid: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
        """B R 4 -> (B R) C size size."""
        return self.align(pyramid, [self.regions(boxes, size)])[0]

    def detect(
        self,
        pyramid: Sequence[Tensor],
        proposals: Tensor,
        valid: Tensor,
        image_sizes: Tensor,
        static_shapes: bool = False,
    ) -> dict[str, Tensor]:
        """Detect boxes, then predict a mask for each (section 3.1, inference)."""
        detections = self.detect_boxes(pyramid, proposals, valid, image_sizes, static_shapes)
        return self.finished(pyramid, detections, static_shapes)

    def detect_boxes(
        self,
        pyramid: Sequence[Tensor],
        proposals: Tensor,
        valid: Tensor,
        image_sizes: Tensor,
        static_shapes: bool = False,
    ) -> dict[str, Tensor]:
        """The detections of the box head, without masks; candidates where suppression compares
        masks.
        """
        logits, deltas, boxes = self.predict_boxes(pyramid, proposals, image_sizes)
        return self.box_head.detect(logits, deltas, boxes, valid, image_sizes, static_shapes)

    def finished(
        self,
        pyramid: Sequence[Tensor],
        detections: dict[str, Tensor],
        static_shapes: bool = False,
    ) -> dict[str, Tensor]:
        """Detections of the box head with their masks, without duplicates."""
        detections = self.with_predicted_masks(pyramid, detections, static_shapes)
        return self.refined(pyramid, self.suppressed(detections, static_shapes))

    def detect_each(
        self,
        pyramid: Sequence[Tensor],
        proposals: Tensor,
        valid: Tensor,
        image_sizes: Tensor,
        static_shapes: bool = False,
    ) -> dict[Suppression, dict[str, Tensor]]:
        """The result of `detect` for each of `choices`. The box head runs once, and the mask head
        once for all kinds that compare masks.
        """
        logits, deltas, boxes = self.predict_boxes(pyramid, proposals, image_sizes)
        own, candidates, each = self.suppression, None, {}
        for choice in self.choices:
            self.set_suppression(choice)
            detections = candidates if choice.of_masks else None
            if detections is None:
                detections = self.box_head.detect(
                    logits, deltas, boxes, valid, image_sizes, static_shapes
                )
                detections = self.with_predicted_masks(pyramid, detections, static_shapes)
            if choice.of_masks:
                candidates = detections
            each[choice] = self.refined(pyramid, self.suppressed(detections, static_shapes))
        self.set_suppression(own)
        return each

    def predict_boxes(
        self, pyramid: Sequence[Tensor], boxes: Tensor, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The box head's logits and deltas, and the boxes that its deltas move."""
        pool = partial(self.pool, pyramid, size=self.box_head.pool)
        return predict(self.box_head, pool, boxes, image_sizes)

    def with_predicted_masks(
        self,
        pyramid: Sequence[Tensor],
        detections: dict[str, Tensor],
        static_shapes: bool = False,
    ) -> dict[str, Tensor]:
        """Detections of the box head with "masks", B D m m in [0, 1], of the mask head, if there is
        one, and where they are to be refined, with its logits, "coarse"; on the CPU without the
        slots that no image needs.
        """
        detections = self.trimmed(detections, static_shapes)
        if self.mask_head is None:
            return detections
        masks = self.predict_masks(pyramid, detections["boxes"], detections["labels"])
        return self.ranked(detections | masks)

    def trimmed(
        self, detections: dict[str, Tensor], static_shapes: bool = False
    ) -> dict[str, Tensor]:
        """On the CPU without the slots that no image needs: masks of detected boxes only."""
        valid = detections["valid"]
        if not can_sync(valid, static_shapes):
            return detections
        most = max(1, int(valid.sum(dim=1).max()))
        return {key: value[:, :most] for key, value in detections.items()}

    def predict_masks(
        self, pyramid: Sequence[Tensor], boxes: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """For boxes B D 4 of classes B D: "masks", B D m m in [0, 1]; with a point head "coarse",
        the logits; with a mask IoU head "mask_ious", B D. Empty without a mask head.
        """
        head = self.mask_head
        if head is None:
            return {}
        shape, labels = labels.shape, labels.flatten()
        features = self.pool(pyramid, boxes, head.pool)
        joined = features if self.occluder is None else features + self.occluder(features)
        coarse = head(joined, labels)
        probabilities = getattr(head, "probabilities", torch.sigmoid)(coarse)
        output = {"masks": probabilities.view(*shape, *probabilities.shape[1:])}
        if self.mask_refine is not None:
            output["coarse"] = coarse.view(*shape, *coarse.shape[1:])
        if self.mask_iou is not None:
            output["mask_ious"] = self.mask_iou(features, coarse, labels).view(shape)
        return output

    def ranked(self, detections: dict[str, Tensor]) -> dict[str, Tensor]:
        """With scores that "mask_ious" have a part in, by descending score, if there are any; these
        are left out.
        """
        if self.mask_iou is None:
            return detections
        ious = detections["mask_ious"]
        detections = {name: value for name, value in detections.items() if name != "mask_ious"}
        scores = self.mask_iou.scores(detections["scores"], ious)
        valid = detections["valid"]
        ranked, order = torch.where(valid, scores, -1).topk(valid.shape[1], dim=1)
        detections = {key: take(value, order) for key, value in detections.items()}
        return detections | {"scores": ranked.clamp(min=0)}

    def suppressed(
        self, detections: dict[str, Tensor], static_shapes: bool = False
    ) -> dict[str, Tensor]:
        """Without duplicates, where suppression compares masks; else as they are."""
        if not self.suppression.of_masks:
            return detections
        return suppress_masks(
            detections,
            self.suppression,
            threshold=self.box_head.nms_iou,
            least_score=self.box_head.score_threshold,
            count=self.box_head.max_detections,
            static_shapes=static_shapes,
        )

    def refined(
        self, pyramid: Sequence[Tensor], detections: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """With finer masks, of those that stay, if the model has a point head. "coarse": B D m m,
        the logits of the mask head; it is left out.
        """
        if self.mask_refine is None:
            return detections
        regions = self.regions(detections["boxes"], 1)
        shape = detections["labels"].shape
        masks = self.mask_refine.refine(
            detections["coarse"].flatten(0, 1),
            detections["labels"].flatten(),
            partial(self.features_at, pyramid, regions),
        )
        others = {name: value for name, value in detections.items() if name != "coarse"}
        return others | {"masks": masks.sigmoid().view(*shape, *masks.shape[1:])}

    def marked(self, detections: dict[str, Tensor]) -> dict[str, Tensor]:
        """With `exclusive`, B D bool, where masks must not share a pixel: see postprocess.py."""
        if not self.suppression.exclusive:
            return detections
        return detections | {"exclusive": detections["valid"]}

    def classify(self, pyramid: Sequence[Tensor], boxes: Tensor, image_sizes: Tensor) -> Tensor:
        """The most likely class (0 = background) of each given box: B G 4 -> B G."""
        logits, _, _ = self.predict_boxes(pyramid, boxes, image_sizes)
        return logits.argmax(dim=-1).view(boxes.shape[:2])


def build_mask_rcnn(
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    backbone: Backbone | TimmBackbone,
    fpn: Callable[..., FPN | SimpleFPN],
    anchors: Anchors,
    rpn: Callable[..., RPN],
    roi_align: Mapping[str, Any],
    box_head: Callable[..., BoxHead],
    mask_head: Callable[..., MaskHead] | None,
    nms: str = "box",
    agnostic_nms: bool = False,
    exclusive: bool = False,
    weights: str | None = None,
    mask_iou: bool = False,
    mask_refine: str | None = None,
    occluder: bool = False,
) -> MaskRCNN:
    """Build the model from the parts of conf/model/mask_rcnn.yaml: each part gets the sizes that
    other parts or the data determine.

    Custom parts may replace them: docs/extend lists their requirements.

    Args: num_classes: K, without background. fpn, rpn, box_head, mask_head: constructors that still
    need in_channels (and strides, where they take it); channels and anchors_per_cell; channels and
    num_classes; channels and num_classes. mask_head=None: a model without masks. roi_align:
    ROI_OPTIONS. nms, agnostic_nms, exclusive: see suppression.py. weights: see MaskRCNN; nothing is
    loaded here. mask_iou: with a mask IoU head. mask_refine: "points": with a point head. occluder:
    with an occluder branch.
    """
    check_flag(model__mask_iou=mask_iou, model__occluder=occluder)
    check_choice(REFINEMENTS, True, model__mask_refine=mask_refine)
    parts: dict[str, Any] = {"backbone": backbone, "fpn": fpn, "anchors": anchors, "rpn": rpn}
    parts["box_head"] = box_head
    if mask_head is None:
        _refuse_masks({"mask_iou": mask_iou, "mask_refine": mask_refine, "occluder": occluder})
    else:
        parts["mask_head"] = mask_head
    for name, part in parts.items():
        if not callable(part):
            raise UserError(f"model.{name}={part} must be a part of a model: see conf/model")
    if not isinstance(roi_align, Mapping) or not set(roi_align) <= set(ROI_OPTIONS):
        raise UserError(
            f"model.roi_align={roi_align} must be a group of options: {', '.join(ROI_OPTIONS)}"
        )
    channels, strides = levels(backbone)
    takes = inspect.signature(fpn).parameters
    pyramid = fpn(in_channels=channels, **({"strides": strides} if "strides" in takes else {}))
    width, count = pyramid.channels, len(getattr(pyramid, "strides", channels)) + 1
    if len(anchors.sizes) != count:
        raise UserError(
            f"model.anchors.sizes has {len(anchors.sizes)} numbers, but the pyramid has {count} "
            "levels: give one size for each level"
        )
    sizes = {"channels": width, "num_classes": num_classes}
    proposals = rpn(channels=width, anchors_per_cell=len(anchors.ratios))
    boxes = with_stages(box_head(**sizes), partial(box_head, **sizes))
    masks = None if mask_head is None else mask_head(**sizes)
    if getattr(masks, "activation", None) == "softmax":
        for name, value in (("mask_iou", mask_iou), ("mask_refine", mask_refine)):
            if value:
                raise UserError(
                    f"model.{name}={value} needs logits of each class, and "
                    "model.mask_head.activation=softmax has none: use sigmoid, or leave out "
                    f"model.{name}"
                )
    return MaskRCNN(
        mean=mean,
        std=std,
        backbone=backbone,
        fpn=pyramid,
        anchors=anchors,
        rpn=proposals,
        box_head=boxes,
        mask_head=masks,
        **roi_align,
        suppression=Suppression(nms, agnostic_nms, exclusive),
        weights=weights,
        # The optional parts come last: without them, all weights are the same.
        mask_iou=MaskIoUHead(**sizes, pool=masks.pool) if mask_iou and masks else None,
        mask_refine=PointHead(**sizes) if mask_refine else None,
        occluder=OccluderHead(channels=width) if occluder else None,
    )


def _refuse_masks(options: Mapping[str, Any]) -> None:
    """Raise UserError for the first of `options` (name -> value) that is set: it needs masks."""
    for name, value in options.items():
        if value:
            raise UserError(
                f"model.{name}={value} needs masks, and model.mask_head=null makes none: leave out "
                f"model.{name}, or use a mask head"
            )
