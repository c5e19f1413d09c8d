"""The mask head: region features -> a mask for the region's class (Mask R-CNN, section 3 and figure
4 right).

Letters: R regions, C channels, K classes, m mask side, B images, G instances, S sampled regions, M
crop side.
"""

import inspect
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from maskrcnn_lit.errors import UserError, check_choice, check_flag, check_whole
from maskrcnn_lit.model.boxes import full_precision
from maskrcnn_lit.model.losses import mask_loss, multinomial_mask_loss
from maskrcnn_lit.model.norms import HEAD_NORMS, MAX_DEPTH, MAX_POOL, MAX_WIDTH, conv, dense_convs
from maskrcnn_lit.model.sampling import MAX_SAMPLE

ACTIVATIONS = ("sigmoid", "softmax")

_ALL_VOID = 1e-4  # a pixel of which less counts does not count


class MaskHead(nn.Module):
    """3x3 convolutions, a 2x2 stride 2 deconvolution, a 1x1 convolution with one channel per class.

    Args:
        channels: of the pyramid.
        width: of the convolutions; depth: their number.
        norm: after each of them (see norms.py); None: none.
        separable: they are depthwise separable (see norms.py).
        pool: side of the region features; the mask's side is twice that.
        num_classes: K.
        activation: sigmoid: a mask of its own for each class (section 3); softmax: in each pixel
            the classes and the background compete (table 2b of the paper).
            With one class, or class_agnostic, it is a sigmoid of their difference.
        class_agnostic: one mask for all classes (section 4.2).
        fcs: fully connected layers of `width` in place of all convolutions, whatever `depth` is,
            and a last one that gives every pixel (table 2e); 0: convolutions.
        slots: maximum number of regions per image, on average over a batch, whose masks are trained
            in a step (see `MaskRCNN.with_masks`); None: as many as may be sampled.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        depth: int,
        pool: int,
        num_classes: int,
        norm: str | None = None,
        slots: int | None = None,
        separable: bool = False,
        activation: str = "sigmoid",
        class_agnostic: bool = False,
        fcs: int = 0,
    ) -> None:
        super().__init__()
        check_choice(ACTIVATIONS, model__mask_head__activation=activation)
        check_flag(model__mask_head__class_agnostic=class_agnostic)
        check_whole(0, MAX_DEPTH, model__mask_head__fcs=fcs)
        check_whole(1, MAX_WIDTH, model__num_classes=num_classes)
        check_whole(
            1, MAX_WIDTH, model__mask_head__channels=channels, model__mask_head__width=width
        )
        check_whole(1, MAX_DEPTH, model__mask_head__depth=depth)
        check_whole(1, MAX_POOL, model__mask_head__pool=pool)
        check_choice(HEAD_NORMS, True, model__mask_head__norm=norm)
        check_flag(model__mask_head__separable=separable)
        if slots is not None:
            check_whole(1, MAX_SAMPLE, model__mask_head__slots=slots)
        if fcs:
            _refuse_convolutions(fcs, {"norm": norm, "separable": separable})
        self.slots, self.activation, self.class_agnostic = slots, activation, class_agnostic
        self.pool, self.mask_size = pool, 2 * pool
        count = 1 if class_agnostic else num_classes
        count += activation == "softmax"  # the background comes first
        self.fcs = nn.ModuleList()
        self.needs_positives = False
        if fcs:
            sides = [channels * pool**2, *[width] * fcs]
            self.fcs.extend(nn.Linear(*pair) for pair in pairwise(sides))
            self.logits: nn.Conv2d | nn.Linear = nn.Linear(width, count * self.mask_size**2)
        else:
            self.needs_positives = norm in (
                "batch",
                "sync",
            )  # else its statistics would include other regions
            inputs = [channels, *[width] * (depth - 1)]
            self.convs = nn.ModuleList(conv(c, width, 3, norm, separable=separable) for c in inputs)
            self.deconv = nn.ConvTranspose2d(width, width, 2, stride=2)
            self.logits = nn.Conv2d(width, count, 1)
            for layer in (*dense_convs(self.convs), self.deconv):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.logits.weight, std=0.001)  # initial mask probabilities are 0.5
        nn.init.zeros_(self.logits.get_parameter("bias"))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """R C pool pool and R int64 labels (1..K) -> R m m logits of each region's own class; with
        softmax R 2 m m, log probabilities of the class and of the background.
        """
        channel = torch.zeros_like(labels) if self.class_agnostic else (labels - 1).clamp(min=0)
        if len(self.fcs):
            return self._chosen(self._connected(features), channel)
        for layer in self.convs:
            features = F.relu(layer(features), inplace=True)
        # Each cell becomes 2 x 2 cells without overlap, so the deconvolution and the next layer are
        # linear layers.
        weight = self.deconv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # C O 2 2 -> (2 2 O) C
        cells = features.permute(0, 2, 3, 1)  # R p p C
        hidden = F.relu(
            F.linear(cells, weight, self.deconv.get_parameter("bias").repeat(4)), inplace=True
        )
        if self.activation == "softmax":
            wide = hidden.view(*cells.shape[:3], 2, 2, -1).permute(0, 5, 1, 3, 2, 4)
            return self._chosen(self.logits(wide.flatten(4).flatten(2, 3)), channel)
        hidden = hidden.view(len(cells), 4 * self.pool**2, -1)  # R (p p 2 2) O
        # Only the channel of the region's class is needed: one row of the 1x1 convolution per
        # region.
        row = self.logits.weight.flatten(1)[channel]  # K O 1 1 -> R O
        bias = torch.index_select(self.logits.get_parameter("bias"), 0, channel)
        logits = full_precision(torch.bmm(hidden, row[..., None])[..., 0] + bias[:, None])
        fine = logits.view(-1, self.pool, self.pool, 2, 2).permute(0, 1, 3, 2, 4)  # R p 2 p 2
        return fine.reshape(-1, self.mask_size, self.mask_size)

    def _connected(self, features: Tensor) -> Tensor:
        """R C pool pool -> R K' m m: every pixel from fully connected layers."""
        hidden = features.permute(0, 2, 3, 1).flatten(1)
        for layer in self.fcs:
            hidden = F.relu(layer(hidden))
        return self.logits(hidden).view(len(features), -1, self.mask_size, self.mask_size)

    def _chosen(self, every: Tensor, channel: Tensor) -> Tensor:
        """Of R K' m m scores what `forward` gives, for the R classes `channel`, from 0."""
        region = torch.arange(len(every), device=every.device)
        every = full_precision(every)
        if self.activation == "sigmoid":
            return every[region, channel]
        logs = every.log_softmax(dim=1)
        return torch.stack([logs[region, channel + 1], logs[:, 0]], dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The output of `forward` -> R m m in [0, 1]."""
        return logits.sigmoid() if self.activation == "sigmoid" else logits[:, 0].exp()

    def losses(
        self,
        logits: Tensor,
        targets: Tensor,
        positive: Tensor,
        counted: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The output of `forward`, R m m targets in [0, 1], R bool: the regions that count -> the
        loss by name, a mean over these regions. counted: R m m, see `without_void`; None: there is
        no void.
        """
        loss = mask_loss if self.activation == "sigmoid" else multinomial_mask_loss
        return {"mask": loss(logits, targets, positive, counted)}


def _refuse_convolutions(fcs: int, options: Mapping[str, Any]) -> None:
    """Raise UserError for the first of `options` (name -> value) that is set: it is one of
    convolutions.
    """
    for name, value in options.items():
        if value:
            off = "false" if isinstance(value, bool) else "null"
            raise UserError(
                f"model.mask_head.{name}={value} needs convolutions, and model.mask_head.fcs={fcs} "
                f"has none: use model.mask_head.{name}={off}, or model.mask_head.fcs=0"
            )


@torch.no_grad()
def mask_targets(
    boxes: Tensor,
    masks: Tensor,
    mask_boxes: Tensor,
    instance: Tensor,
    size: int,
    samples: int = -1,
) -> Tensor:
    """The mask targets of the regions: R size size in [0, 1].

    Args:
        boxes: R 4, regions in pixels of the batch.
        masks, mask_boxes: I M M uint8 and I 4, the crops of all instances (data/batch.py).
        instance: R int64 into I.
        samples: per side of a cell; -1: as many as the cells of the crop there. A box without area
            is a point, with size=1 and samples=1.

    The paper (and torchvision) samples a mask of the full image; an M x M crop represents the same
    shape with a fraction of the memory. The region is mapped into the crop, with pixel centers at
    half-integer coordinates; torchvision's `project_masks_on_boxes` samples at pixel corners, which
    shifts its targets by half an image pixel. A test bounds the difference.
    """
    origin, side = (
        mask_boxes[instance, :2].repeat(1, 2),
        mask_boxes[instance, 2:] - mask_boxes[instance, :2],
    )
    side = side.clamp(min=1e-6).repeat(1, 2)
    crop = masks.shape[-1]
    # Pad each crop with a row and column of zeros: everything outside is background.
    inside = (boxes - origin) / side * crop + 1
    rois = torch.cat([instance[:, None].to(inside.dtype), inside], dim=1)
    padded = F.pad(masks[:, None].to(boxes.dtype), (1, 1, 1, 1))
    return roi_align(padded, rois, size, sampling_ratio=samples, aligned=True)[:, 0]


@torch.no_grad()
def without_void(
    targets: Tensor, boxes: Tensor, image: Tensor, void: Tensor, samples: int = -1
) -> tuple[Tensor, Tensor]:
    """The mask targets of the part of each pixel that is not void, and the share of that part.

    Args:
        targets: R m m in [0, 1], of `mask_targets`.
        boxes: R 4, regions in pixels of the batch.
        image: R int64 into B.
        void: B H W uint8, 1 in void pixels.
        samples: as in `mask_targets`.

    Cross-entropy is linear in its target. With the share as its weight, the loss of a pixel that is
    partly void is that of its other part.
    """
    rois = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)
    pixels, side = void[:, None].to(boxes.dtype), targets.shape[-1]
    shares = roi_align(pixels, rois, side, sampling_ratio=samples, aligned=True)[:, 0]
    counted = torch.where(shares < 1 - _ALL_VOID, 1 - shares, 0)
    return torch.minimum(targets, counted) / counted.clamp(min=_ALL_VOID), counted


def check_takes_void(mask_head: nn.Module) -> None:
    """Raise UserError if the `losses` of a mask head do not take `counted`, as data with void
    regions need.
    """
    losses: Any = mask_head.losses
    try:
        inspect.signature(losses).bind("logits", "targets", "positive", "counted")
    except TypeError:
        raise UserError(
            f"the data have void regions, but {type(mask_head).__name__}.losses does not take the "
            "share of each pixel that counts: add the argument `counted` to it, after `positive`, "
            "or train on void pixels as background with data.ignore_void=false"
        ) from None
