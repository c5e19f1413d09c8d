"""A trained model as one function of fixed shapes: pixels -> boxes, scores, labels, masks, valid.

Two steps of the model have a form that runtimes are slow at, or refuse. `plain_graph` keeps them;
`operator_graph` puts the standard operators of ONNX in their place: RoiAlign, one call for all
levels, and NonMaxSuppression. Both write a deformable convolution as GridSample and a convolution.

Letters: B images, H W their padded size, D slots of detections, m mask side, C channels, R regions,
s output side, N boxes, K points of a kernel.
"""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.boxes import batched_nms
from maskrcnn_lit.model.deformable import DeformableConv
from maskrcnn_lit.model.fuse import IN_ORDER, fold_norms
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.norms import FrozenBatchNorm
from maskrcnn_lit.model.roi_align import RoIs, level_of, whole_cells

INPUTS = ("images", "image_sizes")
OUTPUTS = ("boxes", "scores", "labels", "masks", "valid")


def outputs(mask_side: int) -> tuple[str, ...]:
    """The names of the outputs of a model whose masks have this side; 0: it makes none."""
    return tuple(name for name in OUTPUTS if mask_side or name != "masks")


class Graph(nn.Module):
    """images B 3 H W uint8 and image_sizes B 2 int64 (height, width of the valid part) -> boxes
    B D 4 float32 in pixels of `images`, scores B D, labels B D int64 (1..K), masks B D m m
    probabilities (left out without a mask head), valid B D bool. Slots without a detection hold
    zeros, and any mask.
    """

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        detections = self.model.infer(images, image_sizes, True)
        return tuple(detections[name] for name in outputs(self.model.mask_size))


def plain_graph(model: MaskRCNN) -> Graph:
    """The steps of `model` as they are (but see `convolve_on_grid`): for `torch.export`.

    Raises: UserError: its shapes depend on the image (roi_align.points=0, kind=pool), or equal
        scores leave its detections undefined (fpn.connections=top_down).
    """
    if getattr(model.fpn, "connections", "both") == "top_down":
        raise UserError(
            "a model with model.fpn.connections=top_down cannot be exported: its finer maps repeat "
            "each cell of the coarsest one, so that many scores are equal, and runtimes differ in "
            "which of these they keep: train one with model.fpn.connections=both"
        )
    if model.points == 0 or model.kind == "pool":
        option = "kind=pool" if model.kind == "pool" else "points=0"
        raise UserError(
            f"a model with model.roi_align.{option} cannot be exported, since it takes as many "
            "samples as a region is large: train one with model.roi_align.points=2 and kind=align"
        )
    own = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    for part in (own.backbone, own.fpn, own.rpn, own.box_head, own.mask_head):
        if part is not None and type(part) in IN_ORDER:
            fold_norms(part)
    thaw_norms(own)
    layers: list[Any] = [m for m in own.backbone.modules() if isinstance(m, DeformableConv)]
    for layer in layers:
        layer.convolve = partial(convolve_on_grid, layer)
    return Graph(own)


def thaw_norms(module: nn.Module) -> None:
    """Make batch norms, in evaluation mode, of all frozen ones. Runtimes put a batch norm into the
    convolution before it; of a frozen one, a product and a sum, they would leave the sum, and
    8 bits would have to span what comes before it.
    """
    for parent in list(module.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, FrozenBatchNorm) and not norm.folded:
                batch_norm = nn.BatchNorm2d(len(norm.running_mean), norm.eps)
                batch_norm.load_state_dict(norm.state_dict(), strict=False)
                setattr(parent, name, batch_norm.eval().requires_grad_(False))


def operator_graph(model: MaskRCNN) -> Graph:
    """RoIAlign and suppression as standard operators: for ONNX and what reads it. Raises as
    `plain_graph`.
    """
    graph = plain_graph(model)
    own = graph.model
    attention: Any
    for attention in own.backbone.modules():
        if hasattr(attention, "rel_pos_h"):  # SAM's has three axes, the fused operator four
            attention.fused_attn = False

    def align(pyramid: Sequence[Tensor], wanted: Sequence[RoIs]) -> list[Tensor]:
        levels, strides = own.sources(pyramid)
        return align_on_canvas(levels, wanted, strides, own.points, own.aligned, own.kind)

    def align_points(finest: Tensor, points: RoIs) -> Tensor:
        return align_on_canvas([finest], [points], own.strides[:1], 1, True)[0]

    def suppress_levels(levels: Sequence[Tensor], static_shapes: bool = False) -> list[Tensor]:
        sizes = [boxes.shape[1] for boxes in levels]
        groups = torch.cat([torch.full((size,), 1 + n) for n, size in enumerate(sizes)])
        boxes = torch.cat(list(levels), dim=1)
        keep = suppress(boxes, groups.expand(len(boxes), -1), own.rpn.nms_iou, len(sizes))
        return list(keep.split(sizes, dim=1))

    def suppress_classes(boxes: Tensor, groups: Tensor, static_shapes: bool = False) -> Tensor:
        return suppress(boxes, groups, own.box_head.removed_iou, own.box_head.num_classes)

    for part, name, form in (
        (own, "align", align),
        (own, "align_points", align_points),
        (own.rpn, "suppress", suppress_levels),
        (own.box_head, "suppress", suppress_classes),
    ):
        setattr(part, name, form)
    return graph


def traced(graph: Graph, size: tuple[int, int], count: int) -> Any:
    """The program of `torch.export` for `count` images of a padded size (height, width).

    It runs once before: what the model makes once for a size, anchors for example, is then there,
    and no tensor of the tracing stays in its caches.
    """
    inputs = (torch.zeros(count, 3, *size, dtype=torch.uint8), torch.tensor([size] * count))
    with torch.inference_mode(False), torch.no_grad():
        graph(*inputs)
        return torch.export.export(graph, inputs)


def convolve_on_grid(
    layer: DeformableConv, x: Tensor, offset: Tensor, mask: Tensor | None
) -> Tensor:
    """As `DeformableConv.convolve`, of operators that every runtime has: GridSample reads the map
    at each of the K points of the kernel, and a 1x1 convolution joins them.
    """
    images, channels, *size = x.shape
    rows, columns = offset.shape[-2:]
    first, second = (
        torch.arange(count) * stride - padding + dilation * torch.arange(side)[:, None]
        for count, side, stride, padding, dilation in zip(
            (rows, columns),
            layer.weight.shape[2:],
            layer.stride,
            layer.padding,
            layer.dilation,
            strict=True,
        )
    )  # of each row and column of the kernel, where it is on the map: k h and k w
    shape = (len(first), len(second), rows, columns)
    down, right = first[:, None, :, None].expand(shape), second[None, :, None, :].expand(shape)
    plain = torch.stack([down.flatten(0, 1), right.flatten(0, 1)], dim=1)  # K 2 h w
    points = offset.view(images, layer.points, 2, rows, columns) + plain
    scaled = (2 * points + 1) / torch.tensor(size).view(2, 1, 1) - 1  # of GridSample: -1 to 1
    grid = scaled.flip(2).permute(0, 1, 3, 4, 2).reshape(images, -1, columns, 2)  # x first
    read = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)  # B C (K h) w
    read = read.view(images, channels, layer.points, rows, columns)
    if mask is not None:
        read = read * mask[:, None]
    weight = layer.weight.flatten(1)[..., None, None]  # D (C K) 1 1
    return F.conv2d(read.flatten(1, 2), weight, groups=layer.groups)


@torch.library.custom_op("maskrcnn_lit::suppress", mutates_args=())
def suppress(boxes: Tensor, groups: Tensor, threshold: float, count: int) -> Tensor:
    """Which boxes stay, B N bool: `batched_nms` of boxes B N 4, best first, in groups B N of
    1..count. ONNX has an operator for it (onnx_file.py).
    """
    return batched_nms(boxes, threshold, groups)


@suppress.register_fake
def _(boxes: Tensor, groups: Tensor, threshold: float, count: int) -> Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def align_on_canvas(
    pyramid: Sequence[Tensor],
    wanted: Sequence[RoIs],
    strides: Sequence[int],
    points: int,
    aligned: bool,
    kind: str = "align",
) -> list[Tensor]:
    """As `roi_align` of model/roi_align.py, by one call of the operator for all levels: p2.., each
    B C h w -> R C s s for each of the `wanted`.

    The operator sees several maps of the finest level's size, as if they were images: that level,
    whose regions keep their coordinates and so all of their digits, and the others side by side. A
    point may lie half a cell outside of a level, where the level's edge counts: so each of these
    has a ring of its edge cells. The finest needs none: the operator knows the edge of a map. A
    region narrower than a cell, which counts as a cell wide, may reach further out, where nothing
    counts; it is too small for other levels.
    """
    finest, *coarser = pyramid
    height, width = finest.shape[-2:]
    rings = [F.pad(level, (1, 1, 1, 1), mode="replicate") for level in coarser]
    corners = pack([(ring.shape[-2], ring.shape[-1]) for ring in rings], height, width)
    canvas = torch.cat([finest, *_maps(rings, corners, height, width)])
    first = torch.tensor([0, *(len(finest) * (1 + corner.map) for corner in corners)])
    inside = [(0, 0), *((corner.x + 1, corner.y + 1) for corner in corners)]
    moved = torch.tensor([[x, y, x, y] for x, y in inside], dtype=finest.dtype)
    sides = torch.tensor(strides, dtype=finest.dtype)
    shifted = aligned and kind == "align"
    result = []
    for boxes, image, size in wanted:
        level = level_of(boxes, len(strides))
        scaled = boxes / sides[level][:, None]
        if kind == "warp":
            shapes = torch.tensor([list(features.shape[-2:]) for features in pyramid])[level]
            scaled = whole_cells(scaled, shapes[:, 0], shapes[:, 1])
        number = (image + first[level]).to(boxes.dtype)
        rois = torch.cat([number[:, None], scaled + moved[level]], 1)
        result.append(torchvision.ops.roi_align(canvas, rois, size, 1.0, points, shifted))
    return result


class Corner(NamedTuple):
    """Where a level lies: the number of its map, and its first column and row there."""

    map: int
    x: int
    y: int


def pack(sizes: Sequence[tuple[int, int]], height: int, width: int) -> list[Corner]:
    """Places for rectangles (height, width), the largest first, on maps of height x width: from
    left to right in rows, whose height is that of their first one.
    """
    corners: list[Corner] = []
    x = y = row = number = 0
    for tall, wide in sizes:
        if x + wide > width:
            x, y, row = 0, y + row, 0
        if y + tall > height:
            x, y, row, number = 0, 0, 0, number + 1
        corners.append(Corner(number, x, y))
        x, row = x + wide, row or tall
    return corners


def _maps(
    levels: Sequence[Tensor], corners: Sequence[Corner], height: int, width: int
) -> list[Tensor]:
    """Maps of height x width with these levels at their corners, and zeros elsewhere."""
    maps = []
    for _, own in groupby(zip(corners, levels, strict=True), lambda pair: pair[0].map):
        rows = []
        for _, in_row in groupby(own, lambda pair: pair[0].y):
            first, *others = [level for _, level in in_row]
            missing = [first.shape[-2] - level.shape[-2] for level in others]
            padded = [F.pad(n, (0, 0, 0, m)) for n, m in zip(others, missing, strict=True)]
            row = torch.cat([first, *padded], dim=-1)
            rows.append(F.pad(row, (0, width - row.shape[-1])))
        filled = torch.cat(rows, dim=-2)
        maps.append(F.pad(filled, (0, 0, 0, height - filled.shape[-2])))
    return maps
