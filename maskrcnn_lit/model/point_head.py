"""The point head: predicts single points of a mask again, where the mask head is least sure
(PointRend, Kirillov et al. 2020).

A point sees the finest map of the pyramid at its place and what the mask head says there. All
counts of points are fixed, so no shape depends on the data.

Letters: R regions, N points of a region, C channels, K classes, m side of the mask head's mask.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_lit.errors import check_whole
from maskrcnn_lit.model.boxes import full_precision
from maskrcnn_lit.model.losses import mask_loss
from maskrcnn_lit.model.matching import take
from maskrcnn_lit.model.norms import MAX_WIDTH
from maskrcnn_lit.model.sampling import POINTS, random_keys

# Section 4.1: points of a training step, how many times as many are drawn to find uncertain ones,
# and the share of uncertain ones; layers.
TRAIN_POINTS, OVERSAMPLING, UNCERTAIN, LAYERS = 14 * 14, 3, 0.75, 3
TEST_POINTS = 28 * 28  # of each step of inference
STEPS = 3  # of inference, of which each doubles the side: 28 -> 224


class PointHead(nn.Module):
    """Three fully connected layers and one logit per class, shared by all points and regions. Each
    layer sees the logit of the mask head as well (section 4.1).

    The paper joins the mask head's logits of all classes; here it is that of the region's class.

    Args:
        channels: of the pyramid and of the layers.
        num_classes: K.

    Raises: UserError: a value of the wrong type or range.
    """

    def __init__(self, *, channels: int, num_classes: int) -> None:
        super().__init__()
        check_whole(
            1, MAX_WIDTH, model__mask_refine__channels=channels, model__num_classes=num_classes
        )
        fcs = [nn.Linear(channels + 1, channels) for _ in range(LAYERS)]
        self.logits = nn.Linear(channels + 1, num_classes)
        for fc in fcs:
            nn.init.kaiming_normal_(fc.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.logits.weight, std=0.001)
        for layer in (*fcs, self.logits):
            nn.init.zeros_(layer.bias)
        self.fcs = nn.ModuleList(fcs)

    def forward(self, features: Tensor, coarse: Tensor, labels: Tensor) -> Tensor:
        """R N C features and R N logits of the mask head, R int64 labels (1..K) -> R N logits of
        each region's own class.
        """
        guess = coarse[..., None].to(features.dtype)
        hidden = torch.cat([features, guess], dim=-1)
        for layer in self.fcs:
            hidden = torch.cat([F.relu(layer(hidden)), guess], dim=-1)
        channel = (labels - 1).clamp(min=0)
        row = self.logits.weight[channel]  # R C + 1
        bias = torch.index_select(self.logits.bias, 0, channel)
        return full_precision(torch.bmm(hidden, row[..., None])[..., 0] + bias[:, None])

    @torch.no_grad()
    def training_points(self, coarse: Tensor, seeds: Tensor) -> Tensor:
        """R m m logits and R int64 seeds -> R N 2: x and y from 0 to 1 in each region. Of three
        times as many uniform points the most uncertain ones, and a quarter uniform ones.
        """
        important = int(UNCERTAIN * TRAIN_POINTS)
        drawn = OVERSAMPLING * TRAIN_POINTS
        count = drawn + TRAIN_POINTS - important
        keys = random_keys(seeds, POINTS, 2 * count)
        places = (keys.double() / 2**31).to(coarse.dtype).view(-1, count, 2)
        candidates, others = places.split([drawn, count - drawn], dim=1)
        index = -logits_at(coarse, candidates).abs()
        return torch.cat([take(candidates, index.topk(important, dim=1).indices), others], dim=1)

    def losses(
        self, logits: Tensor, targets: Tensor, positive: Tensor, counted: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss by name, a mean over the positives: R N logits, R N targets in [0, 1], R bool.
        counted: R N, the share of each point that is not void; None: no pixel is void.
        """
        share = None if counted is None else counted[..., None]
        return {"mask_points": mask_loss(logits[..., None], targets[..., None], positive, share)}

    def refine(self, coarse: Tensor, labels: Tensor, sample: Callable[[Tensor], Tensor]) -> Tensor:
        """R m m logits of the mask head -> R 8m 8m (section 3.1, inference): in each of three steps
        the mask becomes twice as fine, and its most uncertain points are predicted again.

        sample: R N 2 points, x and y from 0 to 1 in each region -> R N C, their features.
        """
        logits = coarse
        for _ in range(STEPS):
            logits = enlarged(logits, 2 * logits.shape[-1])
            side = logits.shape[-1]
            uncertainty = -logits.abs().flatten(1)
            index = uncertainty.topk(min(TEST_POINTS, side**2), dim=1).indices
            cell = torch.stack([index % side, index // side], dim=-1)
            points = (cell.to(logits.dtype) + 0.5) / side
            guess = enlarged(coarse, side).flatten(1).gather(1, index)
            again = self(sample(points), guess, labels)
            logits = logits.flatten(1).scatter(1, index, again).view(-1, side, side)
        return logits


def enlarged(masks: Tensor, side: int) -> Tensor:
    """R m m -> R side side, bilinear, with the masks' edge beyond the centers of its cells."""
    return F.interpolate(masks[:, None], size=(side, side), mode="bilinear")[:, 0]


def logits_at(masks: Tensor, points: Tensor) -> Tensor:
    """R m m and R N 2 (x and y from 0 to 1) -> R N: the value that `enlarged` has there."""
    grid = (2 * points - 1)[:, :, None]
    values = F.grid_sample(masks[:, None], grid, padding_mode="border", align_corners=False)
    return values[:, 0, :, 0]


def places(boxes: Tensor, points: Tensor) -> Tensor:
    """R 4 boxes and R N 2 points in them, from 0 to 1 -> (R N) 4 boxes without area, in pixels."""
    at = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
    return at.repeat(1, 1, 2).flatten(0, 1)
