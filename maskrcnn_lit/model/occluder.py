"""The occluder branch: region features -> features of what covers the region's object, which the
mask head sees as well (BCNet, Ke et al. 2021).

A region has two layers. The first one predicts the occluder, which is all other objects in the
region together, as a mask and as its boundary. Its features are added to those of the region, and
from their sum the second layer, the mask head, predicts the object itself (the occludee).

As in the authors' code: the order of the layers, the sum, the convolutions and
deconvolutions of the first layer, one occluder of no class, its two losses with their factors, and
that regions without an occluder count no more than those with one.

Not as there:
- Both layers are plain convolutions (FCN), without the non-local operator (GCN).
- The second layer is the model's mask head with one mask per class, without a boundary of its own.
- Regions without an occluder have a smaller weight, where the authors leave some of them out.
- The authors take objects whose boxes have an IoU over 0.05 with the object's box, and what lies in
  that box. Here it is what lies in the region, of at most 16 objects.

Letters: R regions, C channels, p side of the region features, m mask side, B images, G instances, M
crop side, N other instances of a region.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.errors import check_whole
from maskrcnn_lit.model.boxes import full_precision, intersection
from maskrcnn_lit.model.losses import count, mask_loss
from maskrcnn_lit.model.mask_head import mask_targets
from maskrcnn_lit.model.norms import MAX_WIDTH

CONVS = 4
MASK_WEIGHT, BOUNDARY_WEIGHT = 0.25, 0.5  # of the losses, as in the authors' code
OTHERS = 16  # N: those of which the boxes cover most of the region; fixed shapes need a limit


class OccluderHead(nn.Module):
    """Four 3x3 convolutions, then for the mask and for its boundary each a 2x2 stride 2
    deconvolution and a 1x1 convolution with one channel.

    Args: channels: of the pyramid and of all layers.

    Raises: UserError: a value of the wrong type or range.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        check_whole(1, MAX_WIDTH, model__occluder__channels=channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(CONVS)
        )
        self.mask_deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.mask_logits = nn.Conv2d(channels, 1, 1)
        self.boundary_deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.boundary_logits = nn.Conv2d(channels, 1, 1)
        for layer in (*self.convs, self.mask_deconv, self.boundary_deconv):
            nn.init.kaiming_normal_(
                layer.get_parameter("weight"), mode="fan_out", nonlinearity="relu"
            )
            nn.init.zeros_(layer.get_parameter("bias"))
        for last in (self.mask_logits, self.boundary_logits):
            nn.init.normal_(last.weight, std=0.001)
            nn.init.zeros_(last.get_parameter("bias"))

    def forward(self, features: Tensor) -> Tensor:
        """R C p p -> R C p p, to be added to the region features."""
        for layer in self.convs:
            features = F.relu(layer(features))
        return features

    def predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The result of `forward` -> the occluder's mask and its boundary, as logits R 2p 2p. Only
        training needs them.
        """
        mask = self.mask_logits(F.relu(self.mask_deconv(hidden)))
        boundary = self.boundary_logits(F.relu(self.boundary_deconv(hidden)))
        return full_precision(mask[:, 0]), full_precision(boundary[:, 0])

    def losses(
        self, hidden: Tensor, targets: Tensor, counted: Tensor, positive: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses by name and their sample size, the sum of the regions' weights; without an
        occluder in any region it is 0, and so are they.

        Args:
            hidden: R C p p, of `forward`.
            targets, counted: R 2p 2p, of `occluder_targets`.
            positive: R bool, the regions that count.
        """
        weight = balanced(targets, counted, positive)
        mask, boundary = self.predict(hidden)
        edges = boundaries(targets)
        losses = {
            "occluder": MASK_WEIGHT * mask_loss(mask, targets, weight, counted),
            "occluder_boundary": BOUNDARY_WEIGHT * mask_loss(boundary, edges, weight, counted),
        }
        return losses, weight.sum()


@torch.no_grad()
def balanced(targets: Tensor, counted: Tensor, positive: Tensor) -> Tensor:
    """The weight of each region, R: 1 with an occluder, and without one at most 1, such that all of
    the latter together weigh at most as much as the former. 0 if it is not positive or nothing in
    it counts.
    """
    positive = positive & (counted > 0).flatten(1).any(dim=1)
    occluded = positive & ((targets >= 0.5) & (counted > 0)).flatten(1).any(dim=1)
    others = positive & ~occluded
    share = (occluded.sum() / count(others)).clamp(max=1)
    return occluded + others * share


@torch.no_grad()
def boundaries(masks: Tensor) -> Tensor:
    """R m m in [0, 1] -> R m m, 0 or 1: the pixels at both sides of the contour of the masks,
    binarized at 0.5. The edge of the region is not a contour.
    """
    inside = (masks >= 0.5).to(masks.dtype)
    return _grown(inside) - (1 - _grown(1 - inside))


def _grown(masks: Tensor) -> Tensor:
    """The largest value of each pixel and its four neighbors."""
    column = F.max_pool2d(masks, (3, 1), stride=1, padding=(1, 0))
    return torch.maximum(column, F.max_pool2d(masks, (1, 3), stride=1, padding=(0, 1)))


@torch.no_grad()
def occluder_targets(
    boxes: Tensor, instance: Tensor, batch: Batch, size: int
) -> tuple[Tensor, Tensor]:
    """The union of the masks of the other objects in each region, R size size in [0, 1], and the
    share of each pixel that counts, likewise.

    Args:
        boxes: R 4, regions in pixels of the batch.
        instance: R int64 into (B G), the object of each region.
        batch: with boxes, valid, crowd, masks, mask_boxes of data/batch.py, and perhaps masked.

    A mask is read at the center of each pixel. What lies in a crowd region, or in the box of an
    object without a mask, may be an occluder or not: it does not count.
    """
    slots = batch["valid"].shape[1]
    image, own = instance // slots, instance % slots
    filled = batch["valid"] | batch["crowd"]
    other = filled[image] & (torch.arange(slots, device=own.device) != own[:, None])  # R G
    shared = intersection(boxes[:, None], batch["boxes"][image])[:, 0] * other
    shared, slot = shared.topk(min(OTHERS, slots), dim=1)  # R N
    index = (slot + slots * image[:, None]).flatten()
    cover = mask_targets(
        boxes.repeat_interleave(slot.shape[1], dim=0),
        batch["masks"].flatten(0, 1),
        batch["mask_boxes"].flatten(0, 1),
        index,
        size,
        samples=1,
    ).view(*slot.shape, size, size)
    known = batch["valid"] & batch["masked"] if "masked" in batch else batch["valid"]
    known = known.flatten()[index].view(slot.shape)

    def union(chosen: Tensor) -> Tensor:
        return (cover * (chosen & (shared > 0))[..., None, None]).amax(dim=1)

    return union(known), 1 - union(~known)
