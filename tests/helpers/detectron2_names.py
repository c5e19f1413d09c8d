"""Detectron2's COCO Mask R-CNN on a ResNet with FPN: the names and shapes of its weights as it
publishes them, and its config.
"""

from pathlib import Path

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
Shapes = dict[str, tuple[int, ...]]


BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RPN:
    IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"]
    PRE_NMS_TOPK_TRAIN: 2000
    PRE_NMS_TOPK_TEST: 1000
    POST_NMS_TOPK_TRAIN: 1000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 4, POOLER_RESOLUTION: 14}
SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.02, STEPS: "(60000, 80000)", MAX_ITER: 90000}
INPUT: {MIN_SIZE_TRAIN: "(640, 672, 704, 736, 768, 800)"}
"""

R50 = """
_BASE_: "base.yaml"
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  MASK_ON: True
  RESNETS: {DEPTH: 50}
"""


def write_yaml_config(folder: Path, changes: str = "") -> Path:
    """Write changed.yaml: the config of a Mask R-CNN on ResNet-50, with `changes`."""
    (folder / "base.yaml").write_text(BASE)
    (folder / "r50.yaml").write_text(R50)
    (folder / "changed.yaml").write_text(f'_BASE_: "r50.yaml"\n{changes}\n')
    return folder / "changed.yaml"


def published_shapes(
    depth: int = 50, classes: int = 80, cascade: bool = False, dconv: bool = False
) -> Shapes:
    """Name -> shape of everything that the model of
    configs/COCO-InstanceSegmentation/mask_rcnn_R_*_FPN_*.yaml learns or keeps frozen, in its order;
    cascade: of configs/Misc/cascade_mask_rcnn_R_50_FPN_*.yaml; dconv: of
    mask_rcnn_R_50_FPN_*_dconv_c3-c5.yaml there.
    """
    shapes: Shapes = {}
    inputs = 256
    for level, width in zip((2, 3, 4, 5), (256, 512, 1024, 2048), strict=True):
        shapes |= _affine(f"backbone.fpn_lateral{level}", (256, width, 1, 1))
        shapes |= _affine(f"backbone.fpn_output{level}", (256, 256, 3, 3))
    shapes |= _normed("backbone.bottom_up.stem.conv1", (64, 3, 7, 7))
    inputs = 64
    for stage, (blocks, width) in enumerate(
        zip(BLOCKS[depth], (64, 128, 256, 512), strict=True), start=2
    ):
        for block in range(blocks):
            name = f"backbone.bottom_up.res{stage}.{block}"
            if block == 0:
                shapes |= _normed(f"{name}.shortcut", (4 * width, inputs, 1, 1))
            shapes |= _normed(f"{name}.conv1", (width, inputs, 1, 1))
            shapes |= _normed(f"{name}.conv2", (width, width, 3, 3))
            if dconv and stage > 2:
                shapes |= _affine(f"{name}.conv2_offset", (18, width, 3, 3))
            shapes |= _normed(f"{name}.conv3", (4 * width, width, 1, 1))
            inputs = 4 * width
    shapes |= _affine("proposal_generator.rpn_head.conv", (256, 256, 3, 3))
    shapes |= _affine("proposal_generator.rpn_head.objectness_logits", (3, 256, 1, 1))
    shapes |= _affine("proposal_generator.rpn_head.anchor_deltas", (12, 256, 1, 1))
    if cascade:
        shapes |= cascade_shapes(classes)
    else:
        shapes |= _affine("roi_heads.box_head.fc1", (1024, 256 * 7 * 7))
        shapes |= _affine("roi_heads.box_head.fc2", (1024, 1024))
        shapes |= _affine("roi_heads.box_predictor.cls_score", (classes + 1, 1024))
        shapes |= _affine("roi_heads.box_predictor.bbox_pred", (4 * classes, 1024))
    for layer in (1, 2, 3, 4):
        shapes |= _affine(f"roi_heads.mask_head.mask_fcn{layer}", (256, 256, 3, 3))
    shapes |= _affine("roi_heads.mask_head.deconv", (256, 256, 2, 2))
    shapes |= _affine("roi_heads.mask_head.predictor", (classes, 256, 1, 1))
    return shapes


def cascade_shapes(classes: int, channels: int = 256, width: int = 1024) -> Shapes:
    """The box heads of a cascade: three, whose deltas are of no class."""
    shapes: Shapes = {}
    for stage in range(3):
        shapes |= _affine(f"roi_heads.box_head.{stage}.fc1", (width, channels * 7 * 7))
        shapes |= _affine(f"roi_heads.box_head.{stage}.fc2", (width, width))
        shapes |= _affine(f"roi_heads.box_predictor.{stage}.cls_score", (classes + 1, width))
        shapes |= _affine(f"roi_heads.box_predictor.{stage}.bbox_pred", (4, width))
    return shapes


def constants() -> Shapes:
    """What older files hold besides: buffers that the configuration gives."""
    cells = {
        f"proposal_generator.anchor_generator.cell_anchors.{level}": (3, 4) for level in range(5)
    }
    return {"pixel_mean": (3, 1, 1), "pixel_std": (3, 1, 1), **cells}


def _affine(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _normed(name: str, shape: tuple[int, ...]) -> Shapes:
    norm = {
        f"{name}.norm.{part}": shape[:1]
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    return {f"{name}.weight": shape, **norm}
