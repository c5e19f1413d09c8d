"""A model as files of OpenVINO, read from the ONNX file, and of PyTorch (.pt2)."""

import tempfile
from pathlib import Path

import torch

from maskrcnn_lit.export.graph import plain_graph, traced
from maskrcnn_lit.export.metadata import KEY, Metadata
from maskrcnn_lit.export.packages import openvino_core, package
from maskrcnn_lit.model.mask_rcnn import MaskRCNN

LIBRARY = "_library"  # the end of the name of a package of AOTInductor


def library_of(program: Path) -> Path:
    """The package of AOTInductor beside a program (.pt2)."""
    return program.with_name(f"{program.stem}{LIBRARY}.pt2")


def is_library(path: Path) -> bool:
    """Whether `path` is a package of AOTInductor, by its name alone."""
    return path.stem.endswith(LIBRARY)


def write_openvino(onnx_file: Path, path: Path, metadata: Metadata) -> None:
    """Write the ONNX file as `path` (.xml) and the weights beside it (.bin), in float32.

    Raises: UserError: OpenVINO is missing.
    """
    openvino = package("openvino", "export format=openvino")
    model = openvino_core().read_model(str(onnx_file))
    model.set_rt_info(metadata.to_json(), KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, str(path), compress_to_fp16=False)


def write_pt2(model: MaskRCNN, path: Path, metadata: Metadata, *, library: bool = False) -> None:
    """Write the program of `torch.export`, and with `library` a package of AOTInductor beside it
    (`library_of`), which needs a C++ compiler. Both have the metadata inside.
    """
    program = traced(plain_graph(model), metadata.size, metadata.batch_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        own = Path(folder) / "model.pt2"
        torch.export.save(program, own, extra_files={KEY: metadata.to_json()})
        own.replace(path)
    if library:
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(library_of(path)),
            inductor_configs={"aot_inductor.metadata": {KEY: metadata.to_json()}},
        )
