"""What the equations of Detectron2's and MMDetection's two-stage models have in common, written
plainly for one image: decoding, clipping, suppression, proposals, detections.
"""

import math

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

State = dict[str, Tensor]


def close(got: Tensor, expected: Tensor, bound: float) -> None:
    assert got.shape == expected.shape
    difference = ((got - expected).abs().max() / expected.abs().max()).item()
    print(f"{difference:.1e} of the largest number")
    assert difference <= bound


@torch.no_grad()
def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def apply_deltas(deltas: Tensor, boxes: Tensor, scale: tuple[float, ...]) -> Tensor:
    """... 4 and ... 4 -> ... 4."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x, y = boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height
    limit = math.log(1000.0 / 16)
    x, y = deltas[..., 0] / scale[0] * width + x, deltas[..., 1] / scale[1] * height + y
    width = torch.exp((deltas[..., 2] / scale[2]).clamp(max=limit)) * width
    height = torch.exp((deltas[..., 3] / scale[3]).clamp(max=limit)) * height
    return torch.stack(
        [x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], dim=-1
    )


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """To the image without its padding."""
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def suppress_by(groups: Tensor, boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of those that stay, best first, each group apart."""
    kept = []
    for group in groups.unique():
        here = (groups == group).nonzero()[:, 0]
        kept.append(here[torchvision.ops.nms(boxes[here], scores[here], threshold)])
    kept = torch.cat(kept)
    return kept[scores[kept].argsort(descending=True)]


def proposals_of(
    anchors: list[Tensor], logits: list[Tensor], deltas: list[Tensor], height: int, width: int
) -> tuple[Tensor, Tensor]:
    """1000 a level enter suppression at 0.7, level by level; 1000 leave it."""
    boxes, scores, levels = [], [], []
    for level, (a, score, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
        score, best = score.sort(descending=True)
        score, best = score[:1000], best[:1000]
        boxes.append(clip(apply_deltas(delta[best], a[best], (1, 1, 1, 1)), height, width))
        scores.append(score)
        levels.append(torch.full((len(score),), level))
    box, score, level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
    there = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
    box, score, level = box[there], score[there], level[there]
    kept = suppress_by(level, box, score, 0.7)[:1000]
    return box[kept], score[kept]


def detect(
    logits: Tensor, deltas: Tensor, proposals: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores, classes: above 0.05, suppressed at 0.5 class by class, the best 100."""
    scores = logits.softmax(dim=1)[:, :-1]
    boxes = clip(apply_deltas(deltas, proposals[:, None], (10, 10, 5, 5)), height, width)
    region, label = (scores > 0.05).nonzero(as_tuple=True)
    boxes, scores = boxes[region, label], scores[region, label]
    kept = suppress_by(label, boxes, scores, 0.5)[:100]
    return boxes[kept], scores[kept], label[kept]


def deformed(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, stride: int) -> Tensor:
    """A deformable 3x3 convolution with padding 1, of channels in one group: at p, the sum over the
    nine points of w_k m_k x(p + p_k + d_k), bilinear, and zero outside of the map. offset: y0, x0,
    y1, x1, ...
    """
    (height, width), (rows, columns) = x.shape[2:], offset.shape[2:]
    result = torch.zeros(len(x), len(weight), rows, columns)
    for k in range(9):
        down = torch.arange(rows)[:, None] * stride - 1 + k // 3 + offset[:, 2 * k]
        right = torch.arange(columns) * stride - 1 + k % 3 + offset[:, 2 * k + 1]
        read = torch.zeros(len(x), x.shape[1], rows, columns)
        for below, beside in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row, column = down.floor() + below, right.floor() + beside
            share = (1 - (down - row).abs()) * (1 - (right - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = index.long().flatten(1)[:, None].expand(-1, x.shape[1], -1)
            value = x.flatten(2).gather(2, index).view_as(read)
            read += (share * inside)[:, None] * value
        factor = 1 if mask is None else mask[:, k, None]
        result += torch.einsum("oc,bchw->bohw", weight[:, :, k // 3, k % 3], read * factor)
    return result
