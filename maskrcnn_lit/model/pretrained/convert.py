"""Converts published weights to our names and layouts, and matches class rows by name.

`from_torchvision`, `from_detectron2` and `from_mmdetection` rename a state dict and convert its
values; `load` loads a full state dict into a model, `take_over` all of it except the rows of
classes that the model lacks.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.files import FORMS

State = dict[str, Tensor]

# Their name -> ours, the first match. Some names are from torchvision before 0.13; its first Mask
# R-CNN weights still have them.
TORCHVISION = (
    (r"backbone\.body\.", "backbone.body."),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.", r"fpn.lateral.\1."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.", r"fpn.output.\1."),
    (r"rpn\.head\.conv\.(\d)\.0\.", r"rpn.convs.\1."),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"rpn\.head\.bbox_pred\.", "rpn.deltas."),
    (r"roi_heads\.box_head\.fc6\.", "box_head.fcs.0."),
    (r"roi_heads\.box_head\.fc7\.", "box_head.fcs.1."),
    (r"roi_heads\.box_head\.5\.", "box_head.fcs.0."),  # after four convolutions and flatten
    (r"roi_heads\.box_head\.([0-3])\.", r"box_head.convs.\1."),
    (r"roi_heads\.box_predictor\.cls_score\.", "box_head.classes."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "box_head.deltas."),
    (r"roi_heads\.mask_head\.(\d+)\.", r"mask_head.convs.\1."),
    (r"roi_heads\.mask_head\.mask_fcn(\d+)\.", "mask_head.convs.{}."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.logits."),
)

BLOCK = r"backbone\.bottom_up\.res([2-5])\.(\d+)\."

# The box heads of Detectron2's models, and of those of its Cascade R-CNN.
DETECTRON2_STAGES = (
    ("", "box_head"),
    (r"\.0", "box_head"),
    *((rf"\.{n + 1}", f"box_head.later.{n}") for n in range(2)),
)

DETECTRON2 = (
    (r"backbone\.net\.", "backbone.body.model."),  # ViTDet
    *((rf"backbone\.simfp_{n + 2}\.", f"fpn.levels.{n}.") for n in range(4)),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.", r"rpn.convs.\1."),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"backbone\.bottom_up\.stem\.conv1\.", "backbone.body.conv1."),
    (BLOCK + r"shortcut\.norm\.", "backbone.body.layer{}.{}.downsample.1."),
    (BLOCK + r"shortcut\.", "backbone.body.layer{}.{}.downsample.0."),
    (BLOCK + r"conv2_offset\.", "backbone.body.layer{}.{}.conv2.conv_offset."),
    (BLOCK + r"conv([123])\.norm\.", "backbone.body.layer{}.{}.bn{}."),
    (BLOCK + r"conv([123])\.", "backbone.body.layer{}.{}.conv{}."),
    *((rf"backbone\.fpn_lateral{n + 2}\.", f"fpn.lateral.{n}.") for n in range(4)),
    *((rf"backbone\.fpn_output{n + 2}\.", f"fpn.output.{n}.") for n in range(4)),
    (r"proposal_generator\.rpn_head\.conv\.", "rpn.convs.0."),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn.objectness."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.deltas."),
    *(
        pair
        for theirs, ours in DETECTRON2_STAGES
        for pair in (
            (rf"roi_heads\.box_head{theirs}\.fc(\d+)\.", f"{ours}.fcs.{{}}."),
            (rf"roi_heads\.box_head{theirs}\.conv(\d+)\.", f"{ours}.convs.{{}}."),
            (rf"roi_heads\.box_predictor{theirs}\.cls_score\.", f"{ours}.classes."),
            (rf"roi_heads\.box_predictor{theirs}\.bbox_pred\.", f"{ours}.deltas."),
        )
    ),
    (r"roi_heads\.mask_head\.mask_fcn(\d+)\.", "mask_head.convs.{}."),
    (r"roi_heads\.mask_head\.deconv\.", "mask_head.deconv."),
    (r"roi_heads\.mask_head\.predictor\.", "mask_head.logits."),
)

# A convolution without a norm is `conv`, with one a pair, 0 and 1.
_PAIR = (("conv", "0"), ("bn", "1"), ("gn", "1"))

MMDETECTION = (
    (r"backbone\.(layer\d\.\d+\.conv2)_offset\.", r"backbone.body.\1.conv_offset."),  # older
    (r"backbone\.(layer\d\.\d+\.)?gn(\d)\.", r"backbone.body.\1bn\2."),  # group norm
    (r"backbone\.", "backbone.body."),
    *(
        (rf"{theirs}\.(\d+)\.{part}\.", rf"{ours}.\1.{number}.")
        for part, number in _PAIR
        for theirs, ours in (
            (r"neck\.lateral_convs", "fpn.lateral"),
            (r"neck\.fpn_convs", "fpn.output"),
            (r"neck\.downsample_convs", "fpn.down"),  # PAFPN
            (r"neck\.pafpn_convs", "fpn.joined"),
            (r"roi_head\.bbox_head\.shared_convs", "box_head.convs"),
            (r"roi_head\.mask_head\.convs", "mask_head.convs"),
        )
    ),
    (r"rpn_head\.rpn_conv\.(\d+)\.conv\.", r"rpn.convs.\1."),
    (r"rpn_head\.rpn_conv\.", "rpn.convs.0."),
    (r"rpn_head\.rpn_cls\.", "rpn.objectness."),
    (r"rpn_head\.rpn_reg\.", "rpn.deltas."),
    (r"roi_head\.bbox_head\.shared_fcs\.", "box_head.fcs."),
    (r"roi_head\.bbox_head\.fc_cls\.", "box_head.classes."),
    (r"roi_head\.bbox_head\.fc_reg\.", "box_head.deltas."),
    (r"roi_head\.mask_head\.upsample\.", "mask_head.deconv."),
    (r"roi_head\.mask_head\.conv_logits\.", "mask_head.logits."),
)

DETECTRON2_CONSTANTS = (
    "pixel_mean",
    "pixel_std",
    "proposal_generator.anchor_generator.",
)  # older files have them

POOL = 7  # side of the box head's region features in the published models

ROWS = {  # rows per class
    **{"box_head.classes": 1, "box_head.deltas": 4, "mask_head.logits": 1},
    **{"mask_iou.ious": 1, "mask_refine.logits": 1},
}

OPTIONAL = (
    "mask_head",
    "mask_iou",
    "mask_refine",
    "occluder",
)  # parts of a model that may start from random weights beside loaded ones


MASK_PARTS = tuple(f"{part}." for part in OPTIONAL)


def from_torchvision(state: Mapping[str, Tensor], pool: int = POOL) -> State:
    """Our state dict from one of torchvision's `maskrcnn_resnet50_fpn` or `_v2` (any ResNet, any
    class count).

    pool: side of the box head's region features. Values are unchanged. torchvision has unused
    deltas and masks for background; these (first) rows are dropped.

    Raises:
        UserError: a name that the architecture does not have.
    """
    renamed = _renamed(
        state, TORCHVISION, "torchvision's maskrcnn_resnet50_fpn or maskrcnn_resnet50_fpn_v2"
    )
    _without_pairs(renamed)
    for name in ("box_head.deltas", "mask_head.logits"):
        for kind in ("weight", "bias"):
            if (key := f"{name}.{kind}") in renamed:  # `load` reports missing names
                renamed[key] = renamed[key][ROWS[name] :]
    return _channels_last(renamed, pool)


def _without_pairs(renamed: State) -> None:
    """Our convolutions without a norm are not pairs: `fpn.lateral.0.0.bias` loses its second 0."""
    for name in list(renamed):
        alone = re.fullmatch(r"(fpn\.\w+\.\d|\w+_head\.convs\.\d+)\.0\.(weight|bias)", name)
        if alone and f"{alone[1]}.1.weight" not in renamed:
            renamed[f"{alone[1]}.{alone[2]}"] = renamed.pop(name)


def from_mmdetection(
    state: Mapping[str, Tensor],
    std: Sequence[float],
    their_std: Sequence[float],
    bgr: bool,
    pool: int = POOL,
) -> State:
    """Our state dict from one of MMDetection's Mask R-CNN on a ResNet or ResNeXt with FPN (any
    class count).

    Converted to give the same output: see `_convert_inputs` for `std`, `their_std` and `bgr`; the
    background row is first (theirs last). pool: side of the box head's region features.

    Raises:
        UserError: a name that the architecture does not have.
    """
    renamed = _renamed(state, MMDETECTION, "MMDetection's Mask R-CNN on a ResNet with FPN")
    _without_pairs(renamed)
    _convert_inputs(renamed, std, their_std, bgr)
    _background_first(renamed)
    return _channels_last(renamed, pool)


def _convert_inputs(
    state: State, std: Sequence[float], their_std: Sequence[float], bgr: bool
) -> None:
    """Make the first convolution read R G B divided by `std`, in place.

    Args: std: of our pixels from 0 to 1. their_std: of their pixels from 0 to 255, in their order
    of channels. bgr: that is B G R.
    """
    if (key := "backbone.body.conv1.weight") in state:
        weight = state[key].flip(1) if bgr else state[key]
        theirs = torch.tensor(list(their_std)[:: -1 if bgr else 1], dtype=weight.dtype)
        state[key] = weight * (torch.tensor(std, dtype=weight.dtype) * 255 / theirs).view(
            1, 3, 1, 1
        )


def _background_first(state: State) -> None:
    """Move the last row of class logits to the front, in place."""
    for key in state:
        if _first_stage(key).startswith("box_head.classes."):
            state[key] = state[key].roll(1, dims=0)


def from_detectron2(
    state: Mapping[str, Tensor],
    std: Sequence[float],
    their_std: Sequence[float] = (1.0, 1.0, 1.0),
    bgr: bool = True,
    pool: int = POOL,
) -> State:
    """Our state dict from one of Detectron2's Mask R-CNN or Cascade Mask R-CNN on a ResNet-50 or
    -101 with FPN, or of ViTDet (any class count).

    Converted to give the same output: see `_convert_inputs` for `std`, `their_std` and `bgr`;
    ViTDet's position embeddings are interpolated to the map that it was trained with; the
    background row is first (theirs last). pool: side of the box head's region features.
    Differences that cannot be converted are options: backbone.stride_in_1x1,
    model.anchors.round_corners, model.roi_align.aligned and .points (conf/model/detectron2.yaml,
    conf/backbone/resnet50_caffe.yaml).

    Raises:
        UserError: a name that the architecture does not have.
    """
    selected = {
        name: value for name, value in state.items() if not name.startswith(DETECTRON2_CONSTANTS)
    }
    renamed = _renamed(
        selected,
        DETECTRON2,
        "Detectron2's mask_rcnn_R_50_FPN, mask_rcnn_R_101_FPN, cascade_mask_rcnn_R_50_FPN or "
        "mask_rcnn_vitdet",
    )
    renamed = _positions(_pairs(renamed))
    _convert_inputs(renamed, std, their_std, bgr)
    _background_first(renamed)
    return _channels_last(renamed, pool)


def _renamed(state: Mapping[str, Tensor], names: Sequence[tuple[str, str]], whose: str) -> State:
    renamed = {}
    for name, value in state.items():
        for pattern, ours in names:
            if match := re.match(pattern, name):
                first, *others = match.groups() or ("",)
                # res2 is layer1, mask_fcn1 convs.0
                start = ours.format(int(first) - 1, *others) if "{}" in ours else match.expand(ours)
                renamed[start + name[match.end() :]] = value
                break
        else:
            raise UserError(
                f"weight '{name}' does not belong to {whose}: give one of that model ({FORMS})"
            )
    return renamed


def _pairs(state: State) -> State:
    """Names of a convolution and its norm, X.weight and X.norm.*, in our pairs: X.0 and X.1."""
    normed = {name.rpartition(".norm.")[0] for name in state if ".norm." in name}

    def ours(name: str) -> str:
        inside, norm, part = name.rpartition(".norm.")
        if norm:
            return f"{inside}.1.{part}"
        inside, _, part = name.rpartition(".")
        return f"{inside}.0.{part}" if inside in normed else name

    return {ours(name): value for name, value in state.items()}


def _positions(state: State) -> State:
    """ViTDet's position embeddings, 1 (1 + g g) C of the class token and a pretrained map, or 1 (g
    g) C, as 1 h w C of the map that its relative positions are of: with one number for each of the
    2 h - 1 distances.
    """
    key = "backbone.body.model.pos_embed"
    rows = [len(value) for name, value in state.items() if name.endswith(".attn.rel_pos_h")]
    if key not in state or state[key].ndim != 3 or not rows:
        return state
    count, side = state[key].shape[1], (max(rows) + 1) // 2
    cells = int(count**0.5)
    grid = state[key][:, count - cells**2 :].unflatten(1, (cells, cells)).permute(0, 3, 1, 2)
    if cells != side:
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return state | {key: grid.permute(0, 2, 3, 1)}


def _channels_last(state: State, pool: int) -> State:
    """Reorder a region's features from channel, row, column (theirs) to row, column, channel
    (ours).
    """
    for key, weight in state.items():
        fits = weight.ndim == 2 and weight.shape[1] % pool**2 == 0  # else `load` reports it
        if _first_stage(key) == "box_head.fcs.0.weight" and fits:
            state[key] = weight.unflatten(1, (-1, pool, pool)).permute(0, 2, 3, 1).flatten(1)
    return state


def _first_stage(name: str) -> str:
    """The name of a weight of a later stage of a cascade in the first one; others stay."""
    return re.sub(r"^box_head\.later\.\d+\.", "box_head.", name)


def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a full state dict into the model. The batch counters of batch norms may be missing.

    Raises:
        UserError: names or shapes differ; the message lists the first few.
    """
    own = model.state_dict()
    state = {
        key: value
        for key, value in state.items()
        if key in own or not key.endswith("num_batches_tracked")
    }
    counts = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    state = counts | state
    faults = [f"{name} is missing" for name in own.keys() - state.keys()]
    faults += [f"{name} is not in this model" for name in state.keys() - own.keys()]
    faults += [
        f"{name} is {tuple(state[name].shape)}, but the model has {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if faults:
        raise UserError(
            f"the weights do not fit the model in {len(faults)} places "
            f"({'; '.join(sorted(faults)[:3])}); "
            "use the model, backbone and classes of their training"
        )
    model.load_state_dict(state)


def take_over(
    model: nn.Module, state: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str]
) -> list[str]:
    """Load a state dict with the classes `theirs` into a model with the classes `ours`; return the
    classes whose rows were copied.

    Rows of the heads are matched by class name; rows of other classes keep the model's random
    values, and so do the parts of `new_parts`.

    Raises:
        UserError: names or shapes differ apart from the number of classes.
    """
    own, fitted = model.state_dict(), dict(state)
    if getattr(model, "mask_head", own) is None:  # boxes alone: masks are left behind
        fitted = {key: value for key, value in fitted.items() if not key.startswith(MASK_PARTS)}
    new = tuple(f"{part}." for part in new_parts(model, state))
    fitted |= {key: value for key, value in own.items() if key.startswith(new)}
    rows = {
        name: row for row, name in reversed(list(enumerate(theirs)))
    }  # for a duplicate name, the first
    known = [name for name in ours if name in rows]
    box_head, mask_head = (getattr(model, name, None) for name in ("box_head", "mask_head"))
    alike = {  # roles whose rows are those of no class
        "box_head.deltas": getattr(box_head, "cascade", None) is not None,
        "mask_head.logits": getattr(mask_head, "class_agnostic", False),
    }
    for head in sorted({key.rpartition(".")[0] for key in own}):
        role = _first_stage(head)
        if role not in ROWS or alike.get(role, False):
            continue
        size, background = _rows(role, mask_head)
        for kind in ("weight", "bias"):
            key = f"{head}.{kind}"
            fits = (background + len(theirs) * size, *own[key].shape[1:])
            if key not in state or state[key].shape != fits:
                continue  # `load` reports it
            fitted[key] = own[key].clone()
            fitted[key][:background] = state[key][:background]
            for name in known:
                target, source = (background + size * n for n in (ours.index(name), rows[name]))
                fitted[key][target : target + size] = state[key][source : source + size]
    load(model, fitted)
    return known


def _rows(role: str, mask_head: Any) -> tuple[int, int]:
    """The rows of each class in a layer, and those of the background, which are the first."""
    if role != "mask_head.logits":
        return ROWS[role], int(role == "box_head.classes")
    pixels = mask_head.mask_size**2 if len(getattr(mask_head, "fcs", ())) else 1
    return pixels, pixels * (getattr(mask_head, "activation", "") == "softmax")


def new_parts(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The OPTIONAL parts of the model that a state dict has no weights of."""
    return [
        part
        for part in OPTIONAL
        if any(name.startswith(f"{part}.") for name in model.state_dict())
        and not any(name.startswith(f"{part}.") for name in state)
    ]
