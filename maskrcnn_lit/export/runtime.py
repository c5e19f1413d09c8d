"""An exported model that runs: an .onnx, .xml or .pt2 file, or the folder that `export` wrote with
one file for each padded size.

It takes batches and gives the model's Output, so what predicts, scores and times a model does the
same with it. Letters: B images, H W padded size, D slots.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.buckets import Shape
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.graph import INPUTS, outputs
from maskrcnn_lit.export.metadata import KEY, Metadata
from maskrcnn_lit.export.metadata import read as read_metadata
from maskrcnn_lit.export.other_files import is_library
from maskrcnn_lit.export.packages import openvino_core, package
from maskrcnn_lit.model.mask_rcnn import Output

Run = Callable[[NDArray[np.uint8], NDArray[np.int64]], Sequence[Any]]

SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
FILE = "export.json"


class Opened(Protocol):
    def __call__(self, path: Path, provider: str, threads: int) -> tuple[Metadata, Run]: ...


def is_exported(source: str | Path) -> bool:
    """Whether `source` is a folder or a file of an exported model, by its name alone."""
    path = Path(source)
    return path.suffix in SUFFIXES or (path / FILE).is_file()


def refuse_exported(source: str | Path, option: str) -> None:
    """Raise UserError where `source`, given as `option`, is an exported model and no run."""
    if is_exported(source):
        raise UserError(
            f"{option}={source} is an exported model, which has no weights to train or export: "
            "give the run that it came from"
        )


class ExportedModel(nn.Module):
    """Exported files of one model, one for each padded size.

    Attributes: metadata: of the first file; the others differ in their size alone.
    """

    def __init__(self, files: Sequence[tuple[Metadata, Run]]) -> None:
        super().__init__()
        self.metadata = files[0][0]
        self._runs = {metadata.size: run for metadata, run in files}
        self.eval()

    @property
    def sizes(self) -> list[Shape]:
        """Height, width of the padded images, the smallest first."""
        return sorted(self._runs, key=lambda size: (size[0] * size[1], size))

    def forward(self, batch: Batch) -> Output:
        """Detections of `batch`, on the CPU, as the runtime gives them. Targets are not read."""
        sizes = batch["image_sizes"].cpu()
        size = self._smallest(sizes)
        images = _resized(batch["images"].cpu(), size)
        count, rows = self.metadata.batch_size, []
        for first in range(0, len(images), count):
            own, shapes = images[first : first + count], sizes[first : first + count]
            missing = count - len(own)  # black images fill the last call
            inputs = F.pad(own, (0, 0) * 3 + (0, missing)), shapes.new_full((count, 2), 32)
            inputs[1][: len(own)] = shapes
            result = self._runs[size](np.ascontiguousarray(inputs[0].numpy()), inputs[1].numpy())
            rows.append([torch.as_tensor(np.asarray(values))[: len(own)] for values in result])
        joined = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        detections = dict(zip(outputs(self.metadata.mask_side), joined, strict=True))
        if self.metadata.exclusive:
            detections["exclusive"] = detections["valid"]
        return Output({}, {}, detections, None)

    def _smallest(self, sizes: Tensor) -> Shape:
        height, width = sizes.amax(0).tolist()
        for size in self.sizes:
            if height <= size[0] and width <= size[1]:
                return size
        known = ", ".join(f"{h}x{w}" for h, w in self.sizes)
        raise UserError(
            f"an image is {height}x{width} pixels after the resize, and the exported sizes are "
            f"{known}: export again with sizes=[{-(-height // 32) * 32}x{-(-width // 32) * 32}]"
        )


def _resized(images: Tensor, size: Shape) -> Tensor:
    """B 3 h w -> B 3 H W: padded with zeros, or cut where there is only padding."""
    height, width = size
    images = images[..., :height, :width]
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def open_exported(
    source: str | Path,
    *,
    provider: str = "auto",
    trust: Sequence[str] = (),
    threads: int | None = None,
    library: bool = False,
) -> ExportedModel:
    """An exported file, or all files of the folder of one export.

    Args: provider: of ONNX Runtime: auto (CUDA if it is there), cpu, cuda, tensorrt. trust: with
        "pt2" in it a .pt2 file may be opened. threads: of the CPU; None: as many as torch uses.
        library: of a folder, the packages of AOTInductor rather than the programs beside them.

    Raises: UserError: there is no such file, it is damaged or no export, a package or a provider is
        missing, or a .pt2 is not trusted.
    """
    path = Path(source)
    paths = [path]
    if path.is_dir():
        paths = [
            file
            for file in sorted(path.iterdir())
            if file.suffix in SUFFIXES and is_library(file) == library
        ]
        if not paths:
            raise UserError(
                f"{path} has no exported file (.onnx, .xml, .pt2): export the run again"
            )
    files = []
    for file in paths:
        if not file.is_file():
            raise UserError(f"{file} does not exist: give a file that `maskrcnn-lit export` wrote")
        kind = SUFFIXES[file.suffix]
        if kind == "pt2" and "pt2" not in trust:
            raise UserError(
                f"{file} is a program of PyTorch, which may do anything when it is opened: add "
                "trust=[pt2] if you know who made it"
            )
        opener = _open_library if is_library(file) else OPENERS[kind]
        files.append(opener(file, provider, threads or torch.get_num_threads()))
    first = files[0][0]
    for metadata, _ in files:
        alike = (metadata.config_sha256, metadata.classes, metadata.slots, metadata.precision)
        if alike != (first.config_sha256, first.classes, first.slots, first.precision):
            raise UserError(f"{path} has files of several exports: give one of them")
    return ExportedModel(files)


def choose_provider(provider: str, available: Sequence[str]) -> list[str]:
    """Names of ONNX Runtime's providers, the first one that it tries first.

    Raises: UserError: it does not have this one.
    """
    cpu = PROVIDERS["cpu"]
    if provider == "auto":
        provider = "cuda" if PROVIDERS["cuda"] in available else "cpu"
    name = PROVIDERS[provider]
    if name not in available:
        known = [short for short, long in PROVIDERS.items() if long in available]
        raise UserError(
            f"provider={provider} is not in this ONNX Runtime, which has {', '.join(known)}: "
            "pip install onnxruntime-gpu in place of onnxruntime, or choose another"
        )
    return list(
        dict.fromkeys([name, *([PROVIDERS["cuda"]] if provider == "tensorrt" else []), cpu])
    )


def _open_onnx(path: Path, provider: str, threads: int) -> tuple[Metadata, Run]:
    runtime = package("onnxruntime", str(path))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = choose_provider(provider, runtime.get_available_providers())
    try:
        session = runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its own classes, which differ from one version to the next
        raise _damaged(path, error) from error
    metadata = read_metadata(session.get_modelmeta().custom_metadata_map.get(KEY), str(path))
    names = list(outputs(metadata.mask_side))

    def run(images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Sequence[Any]:
        return session.run(names, dict(zip(INPUTS, (images, sizes), strict=True)))

    return metadata, run


def _open_openvino(path: Path, provider: str, threads: int) -> tuple[Metadata, Run]:
    package("openvino", str(path))
    core = openvino_core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where a processor has it
    }
    try:
        model = core.read_model(str(path))
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:  # its own classes
        raise _damaged(path, error) from error
    metadata = read_metadata(text, str(path))

    def run(images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Sequence[Any]:
        result = compiled(dict(zip(INPUTS, (images, sizes), strict=True)))
        return [result[name] for name in outputs(metadata.mask_side)]

    return metadata, run


def _open_pt2(path: Path, provider: str, threads: int) -> tuple[Metadata, Run]:
    extra = {KEY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        module = program.module()
    except Exception as error:  # of zip, JSON, pickle and torch
        raise _damaged(path, error) from error
    metadata = read_metadata(extra[KEY] or None, str(path))

    @torch.inference_mode()
    def run(images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Sequence[Any]:
        return list(module(torch.from_numpy(images), torch.from_numpy(sizes)))

    return metadata, run


def _open_library(path: Path, provider: str, threads: int) -> tuple[Metadata, Run]:
    try:
        module = torch._inductor.aoti_load_package(str(path))
        text = module.get_metadata().get(KEY)
    except Exception as error:  # of zip, of the loader of libraries and torch
        raise _damaged(path, error) from error
    metadata = read_metadata(text, str(path))

    @torch.inference_mode()
    def run(images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Sequence[Any]:
        return list(module(torch.from_numpy(images), torch.from_numpy(sizes)))

    return metadata, run


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path} is not an exported file, or damaged ({reason}): export the run again")


OPENERS: dict[str, Opened] = {"onnx": _open_onnx, "openvino": _open_openvino, "pt2": _open_pt2}


def file_bytes(path: Path) -> int:
    """Of an exported file, with the weights of an OpenVINO one beside it."""
    beside = path.with_suffix(".bin")
    weights = os.path.getsize(beside) if path.suffix == ".xml" and beside.is_file() else 0
    return os.path.getsize(path) + weights
