"""`bench latency=33ms`: which models, image sizes and runtimes are fast enough on this machine.

Models of a grid have random weights and fill every slot of detections, which is the most work that
they can have. Trained runs and exported files are timed on their validation images.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.config.stored import load_run_config
from maskrcnn_lit.data.buckets import Shape, bucket_shapes
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.dataset import image_batch
from maskrcnn_lit.data.image_size import fitted_sizes, read_image_size
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.graph import plain_graph
from maskrcnn_lit.export.int8 import layers, quantise
from maskrcnn_lit.export.metadata import VERSION, Metadata
from maskrcnn_lit.export.onnx_file import write_onnx
from maskrcnn_lit.export.other_files import write_openvino
from maskrcnn_lit.export.packages import package
from maskrcnn_lit.export.runtime import is_exported, open_exported
from maskrcnn_lit.launch.certificate import (
    Detect,
    first_images,
    latency,
    of_exported,
    of_model,
    val_index,
)
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.runs.result import read_result
from maskrcnn_lit.runs.trained_model import read

# The packages of each way to run a model.
RUNTIMES = {
    "pytorch": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx_int8": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "openvino_int8": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}
CLASSES = 80  # of models with random weights, as COCO has
CALIBRATION = 4  # images of noise: they set the scales of 8 bits, not the time

_UNITS = {"ms": 1.0, "s": 1000.0, "": 1.0}
_log = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """images: decoded images to time it on, H W 3. detectors: by runtime."""

    name: str
    image_size: Any
    mask_ap: float | None
    box_ap: float | None
    images: Sequence[NDArray[np.uint8]]
    detectors: Mapping[str, Detect]


class Row(NamedTuple):
    """The time of one candidate in one runtime, from a decoded image to COCO RLEs.

    Attributes: milliseconds: median, 95th percentile. mask_ap, box_ap: of the run, or None.
    """

    name: str
    image_size: Any
    runtime: str
    milliseconds: tuple[float, float]
    mask_ap: float | None
    box_ap: float | None
    fits: bool


def read_budget(text: Any) -> float:
    """Milliseconds of "33ms", "0.033s" or 33.

    Raises: UserError: it is no such time.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|s|)", str(text))
    budget = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if budget <= 0:
        raise UserError(f"latency={str(text)[:60]} must be a time over 0, such as 33ms or 0.5s")
    return budget


def within_budget(config: DictConfig) -> list[Row]:
    """Time each candidate of `config` (conf/bench.yaml) in each runtime, the fastest first.

    Raises: UserError: a choice of the grid does not exist, a package is missing, a run cannot be
        read.
    """
    budget = read_budget(config.latency)
    runtimes = installed(config.grid.runtime)
    rows = []
    for candidate in _candidates(config, runtimes):
        times = latency(candidate.detectors, candidate.images, candidate.image_size, config.steps)
        for runtime, stages in times.items():
            median, late = stages["all"]
            name, size = candidate.name, candidate.image_size
            aps = candidate.mask_ap, candidate.box_ap
            rows.append(Row(name, size, runtime, (median, late), *aps, median <= budget))
            _log.info(f"  {name}, {shown_size(size)} px, {runtime}: {median:.1f} ms")
    return sorted(rows, key=lambda row: row.milliseconds)


def installed(wanted: Sequence[str] | None) -> list[str]:
    """The runtimes to use: those of `wanted`, which must be installed, or all that are."""
    if wanted is not None:
        for runtime in wanted:
            for name in RUNTIMES[runtime]:
                package(name, f"grid.runtime={runtime}")
        return list(dict.fromkeys(wanted))
    there = {runtime: all(map(find_spec, names)) for runtime, names in RUNTIMES.items()}
    absent = [runtime for runtime, present in there.items() if not present]
    if absent:
        _log.info(
            f"not timed, because packages are missing: {', '.join(absent)}; to time them: "
            "pip install 'maskrcnn_lit[openvino]'"
        )
    return [runtime for runtime, present in there.items() if present]


def _candidates(config: DictConfig, runtimes: Sequence[str]) -> Iterator[Candidate]:
    grid = config.grid
    choices = [
        (model, backbone, size)
        for model in grid.model
        for backbone in grid.backbone
        for size in grid.image_size
    ]
    runs = [grid.runs] if isinstance(grid.runs, str) else list(grid.runs or [])
    for n, choice in enumerate(choices, 1):
        _log.info(f"{n} of {len(choices) + len(runs)}")
        with TemporaryDirectory() as folder:
            yield _random(*choice, runtimes, Path(folder), config.seed)
    for n, run in enumerate(runs, len(choices) + 1):
        _log.info(f"{n} of {len(choices) + len(runs)}")
        with TemporaryDirectory() as folder:
            yield _trained(Path(run), runtimes, Path(folder), config)


def _random(
    name: str, backbone: str, size: int, runtimes: Sequence[str], folder: Path, seed: int
) -> Candidate:
    options = [f"model={name}", f"backbone={backbone}", f"data.image_size={size}"]
    config = compose("bench", [*options, "model.box_head.score_threshold=0.0"])
    torch.manual_seed(seed)
    model: MaskRCNN = build(config.model, num_classes=CLASSES).eval().requires_grad_(False)
    side = -(-size // 32) * 32
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    detectors = in_runtimes(model, size, [(side, side)], [noise], runtimes, folder)
    return Candidate(f"{name}, {backbone}", size, None, None, [noise], detectors)


def _trained(run: Path, runtimes: Sequence[str], folder: Path, config: DictConfig) -> Candidate:
    """A run through every runtime in float32, or an exported file as it is."""
    own = run if run.is_dir() else run.parent
    metrics = read_result(own / "result.json").metrics
    aps = metrics.get("val/mask_ap"), metrics.get("val/box_ap")
    if is_exported(run):
        stored = load_run_config(own, [name for name in config.trust if name != "pt2"])
        exported = open_exported(run, provider=config.provider, trust=config.trust)
        known = exported.metadata
        images, _ = _validation(stored)
        through = f"{known.format}{'_int8' * (known.precision == 'int8')}"
        detectors = {through: of_exported(exported)}
        return Candidate(own.name, known.image_size, *aps, images, detectors)
    stored, categories, state = read(run, trust=config.trust)
    model: MaskRCNN = build(stored.model)
    weights.load(model, state)
    model.eval().requires_grad_(False)
    images, sizes = _validation(stored, categories)
    size = read_image_size(stored.data.image_size)
    exact = [runtime for runtime in runtimes if not runtime.endswith("int8")]
    if exact != ["pytorch"]:
        exact = possible_runtimes(own.name, model, exact)
    return Candidate(
        own.name, size, *aps, images, in_runtimes(model, size, sizes, images, exact, folder)
    )


def possible_runtimes(name: str, model: MaskRCNN, runtimes: Sequence[str]) -> list[str]:
    """Those of `runtimes` that `model` runs in. UserError: none, since it cannot be exported."""
    try:
        plain_graph(model)
    except UserError as error:
        if "pytorch" not in runtimes:
            raise
        _log.info(f"{name} is timed in PyTorch alone: {error}")
        return ["pytorch"]
    return list(runtimes)


def _validation(
    stored: DictConfig, categories: Sequence[Any] = ()
) -> tuple[list[NDArray[np.uint8]], list[Shape]]:
    """The first validation images of a run, and all sizes that these are padded to."""
    data: CocoDataModule = build(stored.data)
    data.use_categories(categories)
    data.prepare_data()
    data.setup("validate")
    index, size = val_index(data), read_image_size(stored.data.image_size)
    chains = bucket_shapes(fitted_sizes(index.sizes, size), size, data.lengths)
    return first_images(index), sorted({shape for chain in chains for shape in chain})


def in_runtimes(
    model: MaskRCNN,
    image_size: Any,
    sizes: Sequence[Shape],
    images: Sequence[NDArray[np.uint8]],
    runtimes: Sequence[str],
    folder: Path,
) -> dict[str, Detect]:
    """`model` in each of these runtimes."""
    detectors: dict[str, Detect] = {}
    with TemporaryDirectory() as temporary:
        sources = _onnx_files(model, image_size, sizes, images, runtimes, Path(temporary))
        for runtime in runtimes:
            if runtime != "pytorch":
                kind, _, precision = runtime.partition("_")
                own = folder / runtime
                own.mkdir(parents=True, exist_ok=True)
                for size in sizes:
                    path = own / f"model_{size[0]}x{size[1]}"
                    _place(sources[precision, size], kind, path, model, image_size, size)
                detectors[runtime] = of_exported(open_exported(own, provider="cpu"))
    if "pytorch" in runtimes:  # last, since `for_inference` changes the model
        detectors = {"pytorch": of_model(for_inference(model)), **detectors}
    return detectors


def _onnx_files(
    model: MaskRCNN,
    image_size: Any,
    sizes: Sequence[Shape],
    images: Sequence[NDArray[np.uint8]],
    runtimes: Sequence[str],
    folder: Path,
) -> dict[tuple[str, Shape], Path]:
    """The ONNX file of each precision ("", "int8") and padded size that these runtimes need."""
    precisions = {name.partition("_")[2] for name in runtimes if name != "pytorch"}
    files: dict[tuple[str, Shape], Path] = {}
    for size in sizes if precisions else ():
        metadata = _metadata(model, "onnx", image_size, size)
        source = files["", size] = folder / f"{size[0]}x{size[1]}.onnx"
        write_onnx(model, source, metadata)
        if "int8" in precisions:
            batches = [image_batch([image], [0], image_size) for image in images[:CALIBRATION]]
            nodes = [node for names in layers(source, model).values() for node in names]
            files["int8", size] = folder / f"{size[0]}x{size[1]}_int8.onnx"
            quantise(source, files["int8", size], metadata, batches, nodes)
    return files


def _place(
    source: Path, kind: str, path: Path, model: MaskRCNN, image_size: Any, size: Shape
) -> None:
    """The ONNX file `source` as a file of "onnx" or "openvino", for measuring alone: its names and
    ids are empty.
    """
    if kind == "openvino":
        metadata = _metadata(model, kind, image_size, size)
        write_openvino(source, path.with_suffix(".xml"), metadata)
    else:
        shutil.copyfile(source, path.with_suffix(".onnx"))


def _metadata(model: MaskRCNN, kind: str, image_size: Any, size: Shape) -> Metadata:
    return Metadata(
        version=VERSION,
        format=kind,
        precision="f32",
        size=size,
        batch_size=1,
        image_size=image_size,
        mean=tuple(map(float, model.mean.flatten())),
        std=tuple(map(float, model.std.flatten())),
        classes=tuple((n, str(n)) for n in range(1, model.box_head.num_classes + 1)),
        slots=model.box_head.max_detections,
        mask_side=model.mask_size,
        score_threshold=model.box_head.score_threshold,
        nms_iou=model.box_head.nms_iou,
        thresholds=None,
        config_sha256="0" * 64,
        commit=None,
        versions={},
    )


def shown_size(size: Any) -> str:
    """320, or 800 x 1333, of a resize rule."""
    return " x ".join(map(str, size)) if isinstance(size, (tuple, list)) else str(size)
