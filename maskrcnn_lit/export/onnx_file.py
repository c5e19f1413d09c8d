"""A model as an ONNX file of operators of the standard domain alone."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from maskrcnn_lit.export.graph import INPUTS, operator_graph, outputs, traced
from maskrcnn_lit.export.metadata import KEY, Metadata
from maskrcnn_lit.export.packages import package
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.storage.files import atomic_write

OPSET = 20


def write_onnx(model: MaskRCNN, path: Path, metadata: Metadata) -> None:
    """Write `model` for images of metadata's size and batch size, weights inside.

    Raises: UserError: a package is missing, or the model cannot be exported.
    """
    wanted_for = "export format=onnx"
    for name in ("onnxscript", "onnxruntime"):
        package(name, wanted_for)
    onnx = package("onnx", wanted_for)
    with _silence(), torch.no_grad():
        program: Any = torch.onnx.export(
            traced(operator_graph(model), metadata.size, metadata.batch_size),
            dynamo=True,
            optimize=False,  # torch's takes twice as long as all the rest, most of it for rewrites
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(outputs(metadata.mask_side)),
            custom_translation_table={torch.ops.maskrcnn_lit.suppress.default: _suppression()},
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        optimizer: Any = package("onnxscript", wanted_for).optimizer
        optimizer.fold_constants(program.model, onnx_shape_inference=True)
        optimizer.remove_unused_nodes(program.model)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first.onnx"
        program.save(str(first), include_initializers=True)
        write_with_metadata(onnx.load(str(_with_constants(first))), path, metadata)


def write_with_metadata(content: Any, path: Path, metadata: Metadata) -> None:
    """Write an ONNX model with `metadata` inside, atomically."""
    del content.metadata_props[:]
    used = {node.domain for node in content.graph.node}
    for domain in [entry for entry in content.opset_import if entry.domain not in used]:
        content.opset_import.remove(domain)
    content.metadata_props.add(key=KEY, value=metadata.to_json())
    content.producer_name = "maskrcnn_lit"
    atomic_write(path, content.SerializeToString())


def _with_constants(path: Path) -> Path:
    """A copy of the file in which what depends on weights alone is computed; its operators are the
    standard ones.
    """
    runtime = package("onnxruntime", "export format=onnx")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_name("second.onnx"))
    runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return path.with_name("second.onnx")


def _suppression() -> Any:
    """`graph.suppress` as the operator NonMaxSuppression, in which a group is a class."""
    op: Any = package("onnxscript", "export format=onnx").opset20
    boolean, single, whole = 9, 1, 7  # onnx.TensorProto's numbers of types

    def translate(boxes: Any, groups: Any, threshold: float, count: int) -> Any:
        number = op.Squeeze(op.Shape(boxes, start=1, end=2))  # N
        rank = op.Cast(op.Range(number, 0, -1), to=single)  # the best box has N, the last one 1
        labels = op.Reshape(op.Cast(op.Range(1, count + 1, 1), to=whole), [1, -1, 1])
        own = op.Equal(op.Unsqueeze(groups, [1]), labels)  # B K N
        scores = op.Where(own, op.Reshape(rank, [1, 1, -1]), op.Constant(value_float=0.0))
        selected = op.NonMaxSuppression(
            boxes,
            scores,
            number,
            op.Constant(value_float=threshold),
            op.Constant(value_float=0.5),
        )  # any count of image, class, box
        where = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        none = op.Expand(op.Constant(value_float=0.0), op.Shape(boxes, start=0, end=2))
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(selected, start=0, end=1))
        return op.Cast(op.ScatterND(none, where, ones), to=boolean)

    return translate


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter says much that no user can act upon."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
