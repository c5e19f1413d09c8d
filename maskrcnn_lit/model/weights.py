"""Weights that others trained, by renaming: torchvision's `maskrcnn_resnet50_fpn` state dict -> ours."""

from collections.abc import Mapping

from torch import Tensor, nn

from maskrcnn_lit.errors import UserError

# torchvision's prefix -> ours. The levels of the FPN keep their order.
PREFIXES = {
    "backbone.body.": "backbone.body.",
    "rpn.head.conv.0.0.": "rpn.conv.",
    "rpn.head.cls_logits.": "rpn.objectness.",
    "rpn.head.bbox_pred.": "rpn.deltas.",
    "roi_heads.box_head.fc6.": "box_head.fc1.",
    "roi_heads.box_head.fc7.": "box_head.fc2.",
    "roi_heads.box_predictor.cls_score.": "box_head.classes.",
    "roi_heads.box_predictor.bbox_pred.": "box_head.deltas.",
    **{f"backbone.fpn.inner_blocks.{i}.0.": f"fpn.lateral.{i}." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.0.": f"fpn.output.{i}." for i in range(4)},
    **{f"roi_heads.mask_head.{i}.0.": f"mask_head.convs.{i}." for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask.": "mask_head.deconv.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "mask_head.logits.",
}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one of `torchvision.models.detection.maskrcnn_resnet50_fpn` (any ResNet, any class count).

    The numbers stay. torchvision keeps deltas and masks for background too, which no loss and no detection reads:
    those rows (the first) are left out.

    Raises:
        UserError: a name that the architecture has not.
    """
    renamed = {}
    for name, value in state.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None:
            raise UserError(
                f"weight '{name}' is none of torchvision's maskrcnn_resnet50_fpn; give a state dict of that model"
            )
        renamed[PREFIXES[prefix] + name[len(prefix) :]] = value
    for name, rows in {"box_head.deltas": 4, "mask_head.logits": 1}.items():
        for kind in ("weight", "bias"):
            if (key := f"{name}.{kind}") in renamed:  # `load` says what is missing
                renamed[key] = renamed[key][rows:]
    # theirs reads a region's features by channel, row, column; ours by row, column, channel
    if (key := "box_head.fc1.weight") in renamed:
        renamed[key] = renamed[key].unflatten(1, (-1, 7, 7)).permute(0, 2, 3, 1).flatten(1)
    return renamed


def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a whole state dict into the model.

    Raises:
        UserError: names or shapes differ; the first few are named.
    """
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own.keys() - state.keys()]
    faults += [f"{name} is not of this model" for name in state.keys() - own.keys()]
    faults += [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if faults:
        raise UserError(
            f"the weights do not fit the model in {len(faults)} places ({'; '.join(sorted(faults)[:3])}); "
            "use the model, backbone and classes that they were trained with"
        )
    model.load_state_dict(state)
