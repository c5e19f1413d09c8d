"""Exported files of a tiny model, made once for all tests of a process."""

from maskrcnn_lit.export.metadata import VERSION, Metadata

METADATA = Metadata(
    version=VERSION,
    format="onnx",
    precision="f32",
    size=(64, 96),
    batch_size=1,
    image_size=96,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    classes=((7, "circle"), (9, "square")),
    slots=100,
    mask_side=28,
    score_threshold=0.05,
    nms_iou=0.5,
    thresholds=None,
    config_sha256="0" * 64,
    commit="abc",
    versions={"torch": "2"},
)
