"""The mask IoU head: region features and a predicted mask -> how well the mask fits its object
(Mask Scoring R-CNN, Huang et al. 2019, section 3.3).

The class score says how sure the class is. Multiplied by the predicted IoU it says how good the
detection is as a whole.

Letters: R regions, C channels, K classes, p side of the region features, m mask side, I instances,
M crop side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.model.boxes import area, full_precision
from maskrcnn_lit.model.losses import count
from maskrcnn_lit.model.norms import MAX_POOL, MAX_WIDTH

CONVS = 4  # section 3.3, the last one with stride 2
HIDDEN = 4  # width of the fully connected layers, in channels of the pyramid: 1024 for 256


class MaskIoUHead(nn.Module):
    """Four 3x3 convolutions, two fully connected layers, then one IoU per class (figure 3).

    Args:
        channels: of the pyramid and of the convolutions.
        pool: p, of the mask head.
        num_classes: K.

    Raises: UserError: a value of the wrong type or range.
    """

    def __init__(self, *, channels: int, pool: int, num_classes: int) -> None:
        super().__init__()
        check_whole(
            1, MAX_WIDTH, model__mask_iou__channels=channels, model__num_classes=num_classes
        )
        check_whole(1, MAX_POOL, model__mask_head__pool=pool)
        self.pool = pool
        inputs = [channels + 1] + [channels] * (CONVS - 1)
        strides = [1] * (CONVS - 1) + [2]
        convs = [
            nn.Conv2d(c, channels, 3, stride, padding=1)
            for c, stride in zip(inputs, strides, strict=True)
        ]
        hidden, cells = HIDDEN * channels, ((pool + 1) // 2) ** 2
        fcs = [nn.Linear(channels * cells, hidden), nn.Linear(hidden, hidden)]
        self.ious = nn.Linear(hidden, num_classes)
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        for fc in fcs:
            nn.init.kaiming_uniform_(fc.weight, a=1)
        nn.init.normal_(self.ious.weight, std=0.01)
        for layer in (*convs, *fcs, self.ious):
            nn.init.zeros_(layer.get_parameter("bias"))
        self.convs, self.fcs = nn.ModuleList(convs), nn.ModuleList(fcs)

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """R C p p features and R m m logits of the mask head, R int64 labels (1..K) -> R: the IoU
        that the head expects of each mask, float32, not limited to [0, 1].
        """
        side = logits.shape[-1] // self.pool
        if side * self.pool != logits.shape[-1]:
            raise UserError(
                f"model.mask_iou=true needs masks whose side is a multiple of {self.pool}, the "
                f"side of the region features, but the mask head gives {logits.shape[-1]}"
            )
        mask = F.max_pool2d(logits.sigmoid()[:, None], side).to(features.dtype)
        hidden = torch.cat([features, mask], dim=1)
        for layer in self.convs:
            hidden = F.relu(layer(hidden))
        hidden = hidden.flatten(1)
        for layer in self.fcs:
            hidden = F.relu(layer(hidden))
        own = (labels - 1).clamp(min=0)[:, None]
        return full_precision(self.ious(hidden)).gather(1, own)[:, 0]

    def scores(self, scores: Tensor, ious: Tensor) -> Tensor:
        """The scores of detections: class score x IoU, of tensors of one shape. The head may expect
        less than 0 or more than 1, which no IoU is.
        """
        return scores * ious.clamp(0, 1)

    def losses(
        self, ious: Tensor, targets: Tensor, positive: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The loss by name and its sample size: half of the squared error of R expected IoUs, a
        mean over the positives whose mask meets its object (as in the authors' code).
        """
        counted = positive & (targets > 0)
        loss = 0.5 * (ious - targets) ** 2 * counted
        return {"mask_iou": loss.sum() / count(counted)}, counted.sum()


@torch.no_grad()
def mask_iou_targets(
    logits: Tensor,
    targets: Tensor,
    boxes: Tensor,
    masks: Tensor,
    mask_boxes: Tensor,
    instance: Tensor,
    image_sizes: Tensor,
    counted: Tensor | None = None,
) -> Tensor:
    """The IoU of each predicted mask, binarized at 0.5, with all of the object that is in the
    image: R in [0, 1].

    Args:
        logits, targets: R m m, of the mask head and of `mask_targets`.
        boxes: R 4, the regions in pixels.
        masks, mask_boxes: I M M uint8 and I 4, the crops of all instances.
        instance: R int64 into I.
        image_sizes: I 2, height and width in pixels of the image of each instance.
        counted: R m m, the share of each pixel that is not void; None: no pixel is void.

    The object may reach beyond its region, so its area is that of its crop, of which a random crop
    or a rotation may have put a part outside of the image.
    """
    predicted, inside = logits > 0, targets >= 0.5
    weight = torch.ones_like(targets) if counted is None else counted
    cell = area(boxes) / logits.shape[-1] ** 2

    def size(pixels: Tensor) -> Tensor:
        return (pixels * weight).sum(dim=(1, 2)) * cell

    pixels = _pixels_inside(masks, mask_boxes, image_sizes)
    crops = pixels / masks.shape[-1] ** 2 * area(mask_boxes)
    both = size(predicted & inside)
    whole = torch.maximum(crops[instance], size(inside))  # equal areas may differ by rounding
    union = size(predicted) + whole - both
    return both / union.clamp(min=torch.finfo(union.dtype).tiny)


def _pixels_inside(masks: Tensor, boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """I: the pixels of the crops (I M M, over `boxes`) whose centers lie in the image."""
    side = masks.shape[-1]
    centers = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5) / side
    first, last = boxes[:, :2, None], boxes[:, 2:, None]
    x, y = (first + centers * (last - first)).unbind(1)  # I M each
    height, width = image_sizes.to(boxes.dtype)[:, :, None].unbind(1)
    rows, columns = (y >= 0) & (y <= height), (x >= 0) & (x <= width)
    inside = rows[:, :, None] & columns[:, None, :]
    return (masks * inside).sum(dim=(1, 2), dtype=boxes.dtype)
