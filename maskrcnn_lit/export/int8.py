"""Static quantisation of an exported ONNX file: 8 bits for the layers that compute the most.

Convolutions and linear layers get 8-bit weights, of a scale for each output channel, and 8-bit
inputs, of a scale from the calibration images. Decoding, suppression and the last layers, whose
outputs are numbers and no features, stay in float32.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.export.graph import INPUTS
from maskrcnn_lit.export.metadata import Metadata
from maskrcnn_lit.export.onnx_file import write_with_metadata
from maskrcnn_lit.export.packages import package
from maskrcnn_lit.model.mask_rcnn import MaskRCNN

# The names of weights in a file; ONNX Runtime puts a batch norm, or the scale of a frozen one, into
# the convolution before it.
FUSED = re.compile(r"(?:Conv(?:Bn|Mul)Fusion_W_)?model\.(.+)\.weight")
LAST = (
    *("rpn.objectness", "rpn.deltas", "box_head.classes", "box_head.deltas", "mask_head.logits"),
    *("mask_iou.ious", "mask_refine.logits"),
)
KINDS = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip")


def layers(onnx_file: Path, model: MaskRCNN) -> dict[str, list[str]]:
    """The layers of `model` that can be quantised: their name -> names of their nodes in the file.
    The RPN's convolution has one for each level.
    """
    onnx = package("onnx", "precision=int8")
    content = onnx.load(str(onnx_file))
    weights = {value.name: value for value in content.graph.initializer if len(value.dims) > 1}
    by_values = {
        _values(layer.weight.numpy(force=True)): name
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    }
    nodes: dict[str, list[str]] = {}
    for node in content.graph.node:
        weight = weights.get(node.input[1]) if node.op_type in KINDS else None
        if weight is None:
            continue
        named = FUSED.fullmatch(weight.name)
        name = named[1] if named else by_values.get(_values(onnx.numpy_helper.to_array(weight)))
        # The RPN's outputs, joined into one, are no layer of the model.
        if name is not None and re.sub(r"^box_head\.later\.\d+\.", "box_head.", name) not in LAST:
            nodes.setdefault(name, []).append(node.name)
    return nodes


def _values(weight: NDArray[Any]) -> bytes:
    """The same for a weight that is transposed or reshaped."""
    return np.sort(weight, axis=None).tobytes()


def quantise(
    onnx_file: Path, path: Path, metadata: Metadata, batches: Sequence[Batch], nodes: Sequence[str]
) -> None:
    """Write `onnx_file` with these nodes in 8 bits, calibrated on `batches` of its padded size."""
    if not nodes:  # the quantiser would take all
        onnx = package("onnx", "precision=int8")
        write_with_metadata(onnx.load(str(onnx_file)), path, replace(metadata, precision="int8"))
        return
    tools = package("onnxruntime.quantization", "precision=int8")

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {key: batch[key].numpy() for key in INPUTS}

    with TemporaryDirectory() as folder, _quiet():
        second = Path(folder) / "int8.onnx"
        tools.quantize_static(
            str(onnx_file),
            str(second),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_quantize=[*nodes, *_activations_after(onnx_file, nodes)],
            op_types_to_quantize=[*KINDS, *ACTIVATIONS],
            extra_options={"ActivationSymmetric": False},
        )
        content = package("onnx", "precision=int8").load(str(second))
    write_with_metadata(content, path, replace(metadata, precision="int8"))


def _activations_after(onnx_file: Path, nodes: Iterable[str]) -> list[str]:
    """The activations of these nodes. Rounding to the range of their outputs does their work, so
    the quantiser removes them, and runtimes see a layer between numbers of 8 bits.
    """
    graph = package("onnx", "precision=int8").load(str(onnx_file), load_external_data=False).graph
    own = set(nodes)
    outputs = {node.output[0] for node in graph.node if node.name in own}
    return [
        node.name for node in graph.node if node.op_type in ACTIVATIONS and node.input[0] in outputs
    ]


@torch.no_grad()
def harm(model: MaskRCNN, batches: Iterable[Batch], names: Iterable[str]) -> dict[str, float]:
    """Of each of these layers how much its own quantisation changes its output: the squared error
    over the squared output, 0 to infinity. The most harmful first.
    """
    errors: dict[str, list[float]] = {}
    hooks = [
        layer.register_forward_hook(_measure(errors.setdefault(name, [])))
        for name in names
        if isinstance(layer := _layer(model, name), (nn.Conv2d, nn.Linear))
    ]
    try:
        for batch in batches:
            model.infer(batch["images"], batch["image_sizes"], True)
    finally:
        for hook in hooks:
            hook.remove()
    means = {name: sum(values) / max(1, len(values)) for name, values in errors.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _layer(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _measure(errors: list[float]) -> Any:
    def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        exact = layer.weight
        layer.weight = nn.Parameter(_rounded_weight(exact), requires_grad=False)
        try:  # not layer(...), which would call this hook again
            approximate = layer.forward(_rounded(inputs[0]))
        finally:
            layer.weight = exact
        power = float(output.square().sum())
        errors.append(float((approximate - output).square().sum()) / max(power, 1e-30))

    return hook


def _rounded(values: Tensor) -> Tensor:
    """To 256 steps from the least to the largest number, with 0 among them."""
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-30)
    zero = (-low / step).round()
    return ((values / step).round() + zero).clamp(0, 255).sub(zero) * step


def _rounded_weight(weight: Tensor) -> Tensor:
    """To 8 bits with a sign, of a scale for each output channel."""
    step = (weight.flatten(1).abs().amax(1) / 127).clamp(min=1e-30)
    step = step.view(-1, *[1] * (weight.ndim - 1))
    return (weight / step).round() * step


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs through the root logger, which gives that a handler."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers
