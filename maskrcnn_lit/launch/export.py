"""`export`: a trained run as files for a runtime, with the proof that they do the same."""

import copy
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import build, to_dict
from maskrcnn_lit.config.stored import read_run_config
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.buckets import Shape, bucket_shapes
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco_data import depth_of
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.dataset import CocoDataset
from maskrcnn_lit.data.image_size import ImageSize, fitted_sizes, read_image_size
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.results import write_results
from maskrcnn_lit.evaluation.coco.scores import MAX_DETECTIONS, check_limits
from maskrcnn_lit.evaluation.thresholds import has_thresholds, read_thresholds
from maskrcnn_lit.export import client, int8
from maskrcnn_lit.export.graph import plain_graph
from maskrcnn_lit.export.metadata import VERSION, Metadata
from maskrcnn_lit.export.onnx_file import write_onnx
from maskrcnn_lit.export.other_files import write_openvino, write_pt2
from maskrcnn_lit.export.packages import package
from maskrcnn_lit.export.parity import Parity
from maskrcnn_lit.export.runtime import (
    FILE,
    ExportedModel,
    file_bytes,
    open_exported,
    refuse_exported,
)
from maskrcnn_lit.export.web_runtime import WebRuntime, read_web_runtime
from maskrcnn_lit.launch import certificate
from maskrcnn_lit.launch.certificate import Scored
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.report.certificate import certificate_page, certificate_table
from maskrcnn_lit.report.web import check_models_fit, web_page
from maskrcnn_lit.runs.folder import check_output_folder, new_output_folder
from maskrcnn_lit.runs.own_validation import check_own_validation, warn_of_other_division
from maskrcnn_lit.runs.provenance import describe_datamodule, package_commit, package_versions
from maskrcnn_lit.runs.result import RunResult, write_result
from maskrcnn_lit.runs.trained_model import read, set_suppression
from maskrcnn_lit.storage.files import atomic_write, config_digest, file_digest
from maskrcnn_lit.storage.sealed import write_sealed_json
from maskrcnn_lit.training.devices import device_name

SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "web": ".onnx"}
COMPILERS = ("c++", "g++", "clang++")
RUNTIME = {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch", "web": "onnxruntime"}
PAGE = "index.html"

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What is exported, and the data that it is proved on. plain: the config as it was written.
    changed: the suppression, if it is not the run's own.
    """

    config: DictConfig
    plain: dict[str, Any]
    categories: Sequence[Category]
    state: dict[str, Any]
    model: MaskRCNN
    data: CocoDataModule
    changed: dict[str, Any] | None


class Proof(NamedTuple):
    """parities: by the name of the images; ap: of PyTorch and the exported files."""

    parities: dict[str, Parity]
    ap: dict[str, Any]


class Written(NamedTuple):
    """float_layers: those that went back to float, the most harmful first; tries: mask AP with so
    many of them.
    """

    exported: ExportedModel
    scored: Scored
    float_layers: list[str]
    tries: list[dict[str, Any]]


def export(config: DictConfig, overrides: list[str]) -> int:
    """Write the files, and prove them; `config` is that of conf/export.yaml with `overrides`.
    Returns the exit code: 1 where a bound is broken.
    """
    _check(config)
    trained = _read(config)
    plain_graph(trained.model)  # what cannot be exported is told before any work
    dataset = trained.data.val_dataset
    index = certificate.val_index(trained.data)
    sizes = _sizes(config, trained)
    web_runtime = _web_runtime(config, trained, sizes)
    real = list(certificate.batches(dataset, sizes, certificate.REAL_IMAGES))
    _log.info(f"validation with PyTorch, {min(len(index), config.images or len(index))} images")
    original = _score(trained, trained.model, sizes, config.images)
    folder = new_output_folder(config.run, config.run_dir, "exports")
    written = _write(config, trained, sizes, folder, original)
    _log.info("parity and latency")
    fast = for_inference(_fresh(trained))
    proof, library_proof = _prove(trained, original, written, real), None
    image_size = read_image_size(trained.config.data.image_size)
    named = {"exported": certificate.of_exported(written.exported)}
    if config.library:
        library = _scored(config, trained, sizes, folder, library=True)
        library_proof = _prove(trained, original, library, real)
        named["library"] = certificate.of_exported(library.exported)
    named["pytorch"] = certificate.of_model(trained.model)
    named["load_model"] = certificate.of_model(fast)
    files = sorted(folder.glob(f"*{SUFFIX[config.format]}"))
    pages = [] if web_runtime is None else [_write_page(files, web_runtime)]
    rows = certificate.bounds(config.precision, proof.parities, proof.ap)
    if library_proof is not None:
        own = certificate.bounds(config.precision, library_proof.parities, library_proof.ap)
        rows += [{**row, "name": f"library, {row['name']}"} for row in own]
    record = {
        "version": VERSION,
        "run": str(config.run),
        "checkpoint": config.checkpoint,
        "format": config.format,
        "precision": config.precision,
        "config_sha256": written.exported.metadata.config_sha256,
        "overrides": overrides,
        "files": [_describe(file) for file in [*files, *pages]],
        "images": written.scored.images,
        "bounds": rows,
        "holds": all(row["holds"] for row in rows),
        "parity": certificate.parity_record(proof.parities),
        "ap": proof.ap,
        "library": library_proof
        and {
            "parity": certificate.parity_record(library_proof.parities),
            "ap": library_proof.ap,
        },
        "latency_milliseconds": certificate.latency(
            named, certificate.first_images(index), image_size
        ),
        "peak_bytes": certificate.peak_bytes(files[0], index.decode(0)[0], folder),
        "float_layers": written.float_layers,
        "tries": written.tries,
        "threads": torch.get_num_threads(),
        "processor": device_name(torch.device("cpu")),
        "versions": written.exported.metadata.versions,
        "commit": package_commit(),
    }
    _finish(config, trained, folder, record, written.scored)
    for line in certificate_table(record):
        _log.info(line)
    _log.info(
        f"\nWritten to {folder}: {', '.join(row['name'] for row in record['files'])}, {FILE}, "
        "report.html"
    )
    return 0 if record["holds"] else 1


def _prove(trained: Trained, original: Scored, written: Written, real: Sequence[Batch]) -> Proof:
    return Proof(
        certificate.parity(trained.model, written.exported, real),
        certificate.compare_ap(original, written.scored),
    )


def _check(config: DictConfig) -> None:
    check_output_folder(config.run_dir, overwrite=config.overwrite)
    refuse_exported(config.run, "run")
    if config.precision == "int8" and config.format == "pt2":
        raise UserError("precision=int8 needs format=onnx, openvino or web, and this is pt2")
    if config.format == "web" and config.batch_size != 1:
        raise UserError(
            f"format=web takes one picture at a time: leave batch_size={config.batch_size} out"
        )
    if config.web_runtime is not None and config.format != "web":
        raise UserError(f"web_runtime needs format=web, and this is {config.format}")
    if config.library and config.format != "pt2":
        raise UserError(f"library=true needs format=pt2, and this is {config.format}")
    if config.library and not any(map(shutil.which, COMPILERS)):
        raise UserError(
            f"library=true needs a C++ compiler ({', '.join(COMPILERS)}), and there is none: "
            "install one, or leave library out"
        )
    onnx = ("onnx", "onnxscript", "onnxruntime")
    names = {"onnx": onnx, "openvino": (*onnx, "openvino"), "pt2": (), "web": onnx}
    for name in names[config.format]:
        package(name, f"export format={config.format}")


def _read(config: DictConfig) -> Trained:
    trained, categories, state = read(config.run, config.checkpoint, config.trust)
    changed = set_suppression(trained, config.run, config.model, config.checkpoint)
    described = copy.deepcopy(trained.data)
    if config.get("data") is not None:
        described = config.data
        described.image_size = trained.data.image_size
        if None in described.train.values():
            described.train = described.val
    parts = ["train", "val"] if config.precision == "int8" else ["val"]
    if OmegaConf.select(described, "prepare.parts") is not None:
        described.prepare.parts = parts
    data: CocoDataModule = build(described)
    data.use_categories(categories)
    data.prepare_data()
    data.setup("fit" if config.precision == "int8" else "validate")
    if config.get("data") is None:
        check_own_validation(config.run, data, ", or name other images for the proof, data=...")
    else:
        warn_of_other_division(config.run, data)
    model = build(trained.model)
    weights.load(model, state)
    model.eval().requires_grad_(False)
    folder = Path(config.run)
    there = (folder / "config.yaml").is_file()  # a checkpoint has its own
    plain = read_run_config(folder) if there else to_dict(trained)
    return Trained(trained, plain, categories, state, model, data, changed)


def _fresh(trained: Trained) -> MaskRCNN:
    model = build(trained.config.model)
    weights.load(model, trained.state)
    return model


def _sizes(config: DictConfig, trained: Trained) -> list[Shape]:
    """The padded sizes to export: those asked for, or the ones of the validation images; for a
    page, which any picture may come to, those that any picture fits into.
    """
    wanted, image_size = config.sizes, read_image_size(trained.config.data.image_size)
    if wanted is None and config.format == "web":
        return sizes_for_any(image_size)
    if wanted is None:
        sizes = fitted_sizes(certificate.val_index(trained.data).sizes, image_size)
        chains = bucket_shapes(sizes, image_size, trained.data.lengths)
        return sorted({shape for chain in chains for shape in chain})
    texts = [wanted] if isinstance(wanted, str) else list(wanted)
    return sorted({parse_size(str(text)) for text in texts})


def sizes_for_any(image_size: ImageSize) -> list[Shape]:
    """The padded sizes that every image fits into after the resize, the smallest first."""
    rule = (image_size, image_size) if isinstance(image_size, int) else image_size
    short, long = (-(-side // 32) * 32 for side in rule)
    return sorted({(short, long), (long, short)})


def _web_runtime(config: DictConfig, trained: Trained, sizes: Sequence[Shape]) -> WebRuntime | None:
    """What a page needs besides the models, before any long work; None: no page is wanted."""
    if config.format != "web":
        return None
    weights = sum(p.numel() for p in trained.model.parameters())
    check_models_fit(weights * len(sizes) * (1 if config.precision == "int8" else 4))
    return read_web_runtime(config.web_runtime)


def _write_page(files: Sequence[Path], runtime: WebRuntime) -> Path:
    """The page beside the ONNX files."""
    models = [(open_exported(file, provider="cpu").metadata, file.read_bytes()) for file in files]
    page = files[0].with_name(PAGE)
    atomic_write(page, web_page(models, runtime))
    return page


def parse_size(text: str) -> Shape:
    """HEIGHTxWIDTH. Raises UserError unless both are multiples of 32 from 32 to 16384."""
    sides = text.split("x")
    good = len(sides) == 2 and all(side.isascii() and side.isdigit() for side in sides)
    if not good or not all(32 <= int(side) <= 16_384 and int(side) % 32 == 0 for side in sides):
        raise UserError(
            f"sizes={text[:60]} must be HEIGHTxWIDTH in pixels, multiples of 32 from 32 to 16384: "
            "sizes=[480x640,640x480]"
        )
    return int(sides[0]), int(sides[1])


def _score(
    trained: Trained, detector: MaskRCNN | ExportedModel, sizes: Sequence[Shape], images: Any
) -> Scored:
    if isinstance(detector, ExportedModel):
        detect = certificate.of_exported(detector)
    else:
        detect = certificate.of_model(detector)
    padded = certificate.batches(trained.data.val_dataset, sizes, images)
    index = certificate.val_index(trained.data)
    limits = check_limits(
        OmegaConf.select(trained.config, "metrics.max_detections") or MAX_DETECTIONS
    )
    return certificate.score(detect, padded, index, limits)


def _metadata(config: DictConfig, trained: Trained, size: Shape) -> Metadata:
    model, rule = trained.model, read_image_size(trained.config.data.image_size)
    names = [category.name for category in trained.categories]
    versions = package_versions()
    runtime = package(RUNTIME[config.format], "export") if config.format != "pt2" else torch
    versions[RUNTIME[config.format]] = str(runtime.__version__)
    best = has_thresholds(config.run, config.checkpoint, trained.changed)
    commit = package_commit() or {}
    return Metadata(
        version=VERSION,
        format="onnx" if config.format == "web" else config.format,  # a page has ONNX files in it
        precision="f32",
        size=size,
        batch_size=config.batch_size,
        image_size=rule,
        mean=tuple(round(float(value), 6) for value in model.mean.flatten()),
        std=tuple(round(float(value), 6) for value in model.std.flatten()),
        classes=tuple((category.id, category.name) for category in trained.categories),
        slots=model.box_head.max_detections,
        mask_side=model.mask_size,
        score_threshold=model.box_head.score_threshold,
        nms_iou=model.box_head.nms_iou,
        exclusive=model.suppression.exclusive,
        thresholds=tuple(read_thresholds(config.run, names, changed=trained.changed))
        if best
        else None,
        config_sha256=config_digest(trained.plain),
        commit=commit.get("hash"),
        versions=versions,
        bits=depth_of(trained.config.data.get("bits", "auto")),
    )


def _write(
    config: DictConfig, trained: Trained, sizes: Sequence[Shape], folder: Path, original: Scored
) -> Written:
    """The files of all sizes, and their score."""
    targets = [
        (
            _metadata(config, trained, size),
            folder / f"model_{size[0]}x{size[1]}{SUFFIX[config.format]}",
        )
        for size in sizes
    ]
    if config.format == "pt2":
        for metadata, path in targets:
            _log.info(f"writing {path}")
            write_pt2(trained.model, path, metadata, library=config.library)
        return _scored(config, trained, sizes, folder)
    with TemporaryDirectory() as temporary:
        sources = []
        for metadata, path in targets:
            _log.info(f"writing {path}")
            sources.append(Path(temporary) / f"{path.stem}.onnx")
            write_onnx(trained.model, sources[-1], metadata)
        if config.precision == "int8":
            return _quantised(config, trained, sizes, targets, sources, original)
        for (metadata, path), source in zip(targets, sources, strict=True):
            _place(config.format, source, path, metadata)
        return _scored(config, trained, sizes, folder)


def _scored(
    config: DictConfig,
    trained: Trained,
    sizes: Sequence[Shape],
    folder: Path,
    *,
    library: bool = False,
) -> Written:
    exported = open_exported(folder, provider=config.provider, trust=["pt2"], library=library)
    _log.info(f"validation with the {'libraries' if library else 'exported files'}")
    return Written(exported, _score(trained, exported, sizes, config.images), [], [])


def _place(format: str, source: Path, path: Path, metadata: Metadata) -> None:
    if format == "openvino":
        write_openvino(source, path, metadata)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)


def _quantised(
    config: DictConfig,
    trained: Trained,
    sizes: Sequence[Shape],
    targets: Sequence[tuple[Metadata, Path]],
    sources: Sequence[Path],
    original: Scored,
) -> Written:
    """All layers in 8 bits; while the AP is below its bound, 1, 2, 4, ... of them in float,
    the most harmful first.
    """
    every = int8.layers(sources[0], trained.model)
    images = _calibration(config, trained, sizes)
    order = list(int8.harm(trained.model, images[0][:4], every))
    order += [name for name in every if name not in order]
    tries: list[dict[str, Any]] = []
    count = 0
    while True:
        floats = order[:count]
        _log.info(f"quantising {len(every) - count} of {len(every)} layers")
        for (metadata, path), source, own in zip(targets, sources, images, strict=True):
            names = int8.layers(source, trained.model)
            nodes = [node for name in names if name not in floats for node in names[name]]
            with TemporaryDirectory() as temporary:
                small = Path(temporary) / "int8.onnx"
                int8.quantise(source, small, metadata, own, nodes)
                _place(config.format, small, path, replace(metadata, precision="int8"))
        written = _scored(config, trained, sizes, targets[0][1].parent)
        difference = certificate.compare_ap(original, written.scored)["differences"]
        value = difference.get(certificate.main_metric(difference), {}).get("value", 0.0)
        tries.append({"float_layers": count, "ap_difference": value})
        if not -value > certificate.INT8_MASK_AP_BOUND or count >= len(every):
            return written._replace(float_layers=floats, tries=tries)
        count = min(max(1, 2 * count), len(every))


def _calibration(config: DictConfig, trained: Trained, sizes: Sequence[Shape]) -> list[list[Batch]]:
    """Training images without augmentation, for each padded size: those that fit into it and into
    no smaller one, or, where there are none, all that fit.
    """
    index, data = trained.data.train_index, trained.data
    if index is None:
        raise RuntimeError("setup leaves a training index")
    plain = CocoDataset(index=index, image_size=data.image_size, mask_size=data.mask_size)
    count = min(config.calibration_images, len(index))
    rows = fitted_sizes(index.sizes[:count], data.image_size).tolist()
    result = []
    for size in sizes:
        fits = [i for i, (h, w) in enumerate(rows) if h <= size[0] and w <= size[1]]
        batches = [_repeated(certificate.one(plain, i, [size]), config.batch_size) for i in fits]
        if not batches:
            raise UserError(
                f"no training image fits into {size[0]}x{size[1]} pixels: leave that out of sizes"
            )
        result.append(batches)
    return result


def _repeated(batch: Batch, count: int) -> Batch:
    return {key: torch.cat([value] * count) for key, value in batch.items()}


def _describe(file: Path) -> dict[str, Any]:
    return {"name": file.name, "bytes": file_bytes(file), "sha256": file_digest(file, "sha256")}


def _finish(
    config: DictConfig, trained: Trained, folder: Path, record: dict[str, Any], scored: Scored
) -> None:
    """All that lies beside the files. With config.yaml, result.json and detections.json the folder
    is one that `evaluate` and `compare` read as a run.
    """
    if config.format != "pt2":
        shutil.copyfile(str(client.__file__), folder / "client.py")
    write_results(folder / "detections.json", scored.results)
    atomic_write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(trained.plain)))
    result = RunResult(
        status="finished",
        metrics=dict(scored.scores.metrics),
        intervals=record["ap"]["intervals"],
        overrides=record["overrides"],
        versions=record["versions"],
        commit=record["commit"],
        data=describe_datamodule(trained.data),
        seed=trained.config.seed,
        config_sha256=config_digest(trained.plain),
    )
    write_result(folder / "result.json", result)
    write_sealed_json(folder / FILE, record)
    atomic_write(folder / "report.html", certificate_page(record))
