"""`maskrcnn-lit bench`: speed of the loader, the training step and inference on this machine, the
bottleneck, and what to change.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from maskrcnn_lit.config.compose import build, to_dict
from maskrcnn_lit.config.stored import load_run_config
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.loaders import choose_workers
from maskrcnn_lit.errors import UserError, check_whole, plural
from maskrcnn_lit.export.runtime import is_exported, open_exported
from maskrcnn_lit.launch.budget import Row, read_budget, shown_size, within_budget
from maskrcnn_lit.launch.certificate import first_images, latency, of_exported, val_index
from maskrcnn_lit.measure.cost import count_parameters
from maskrcnn_lit.measure.timing import (
    StageTimes,
    time_calls,
    time_inference,
    time_loading,
    time_training,
)
from maskrcnn_lit.measure.torchvision_reference import (
    check_ours,
    reference_inputs,
    torchvision_reference,
)
from maskrcnn_lit.model.backbone import choose
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.model.mask_head import check_takes_void
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.report.budget_plot import budget_plot
from maskrcnn_lit.report.format import number
from maskrcnn_lit.report.theme import LIGHT, render
from maskrcnn_lit.runs.folder import check_output_file
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.storage.files import atomic_write
from maskrcnn_lit.terminal.table import text_table
from maskrcnn_lit.training.compile import compile_regions, obstacle, should_compile
from maskrcnn_lit.training.devices import (
    device_name,
    peak_memory_bytes,
    resolve_accelerator,
    resolve_precision,
)
from maskrcnn_lit.training.optimizer import Length

MOST_WORKERS = 16


def run(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print, and write a line of JSON; `config` is conf/bench.yaml composed with
    `overrides`.
    """
    check_output_file(config.out, overwrite=config.overwrite)
    check_whole(1, steps=config.steps)
    check_whole(0, warmup=config.warmup, seed=config.seed)
    if config.latency is not None:
        _within_budget(config)
        return
    if config.run is not None:
        _write(_exported(config), {}, config)
        return
    if config.against not in (None, "torchvision"):
        raise UserError(
            f"against={config.against} is unknown: use against=torchvision, or leave it out"
        )
    if config.against is not None:
        check_ours(to_dict(config.model))
    accelerator = resolve_accelerator(config.trainer.accelerator, 1)
    precision = resolve_precision(config.trainer.precision, accelerator)
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    torch.manual_seed(config.seed)
    data, workers = _data(config, device)
    config.model.num_classes = len(data.categories)
    counts = {"warmup": config.warmup, "steps": config.steps}
    rows, batches = time_loading(_endless(data), **counts)
    batches = [
        {key: value.to(device) for key, value in batch.items()}
        for batch in batches[-config.steps :]
    ]
    report: dict[str, Any] = {
        "benchmark": "bench",
        "date": time.strftime("%Y-%m-%d"),
        "device": device_name(device),
        "cores": cores(),
        "workers": workers,
        "precision": precision,
        "images": list(batches[0]["images"].shape),
        "loader": summary(rows, data.batch_size),
    }
    settings = {"precision": precision, "device": device, **counts}
    report |= _ours(config, batches, settings)
    if config.against is not None:
        report["torchvision"] = _theirs(config, batches, settings)
    report["bottleneck"], report["change"] = advice(
        report, cuda=device.type == "cuda", memory=_gpu_memory(device)
    )
    report |= {"versions": package_versions(), "commit": package_commit(), "overrides": overrides}
    print("\n".join(table(report)))
    _write(report, {"config": to_dict(config)}, config)


def _write(report: dict[str, Any], more: dict[str, Any], config: DictConfig) -> None:
    """A line of JSON: printed, or with `more` into the file `out`."""
    line = json.dumps(report | more)
    if config.out is None:
        print(f"\n{json.dumps(report)}")
    else:
        atomic_write(Path(config.out), line + "\n")
        print(f"\nWritten to {config.out}")


def _exported(config: DictConfig) -> dict[str, Any]:
    """The stages of an exported model, from a decoded image to COCO RLEs."""
    if not is_exported(config.run):
        raise UserError(
            f"run={config.run} is not an exported file: export the run, or leave run out and give "
            "experiment=, model=, data= to time what trains"
        )
    model = open_exported(config.run, provider=config.provider, trust=config.trust)
    folder = Path(config.run) if Path(config.run).is_dir() else Path(config.run).parent
    stored = load_run_config(folder, [name for name in config.trust if name != "pt2"])
    data: CocoDataModule = build(stored.data)
    data.prepare_data()
    data.setup("validate")
    images = first_images(val_index(data))
    size = model.metadata.image_size
    times = latency({"exported": of_exported(model)}, images, size, config.steps)
    report: dict[str, Any] = {"benchmark": "bench", "date": time.strftime("%Y-%m-%d")}
    report |= {"run": config.run, "device": device_name(torch.device("cpu")), "cores": cores()}
    report |= {"format": model.metadata.format, "precision": model.metadata.precision}
    report |= {"latency_milliseconds": times, "versions": model.metadata.versions}
    print(f"\n{report['format']}, {report['precision']}, {report['device']}: milliseconds an image")
    for stage, (median, late) in times["exported"].items():
        print(f"  {stage:10} median {median:8.1f}   95 % {late:8.1f}")
    return report


def _within_budget(config: DictConfig) -> None:
    """What is fast enough: a table, and with `out` a line of JSON and a plot beside it."""
    plot = None if config.out is None else Path(config.out).with_suffix(".png")
    check_output_file(None if plot is None else str(plot), overwrite=config.overwrite)
    rows = within_budget(config)
    device = device_name(torch.device("cpu"))
    report: dict[str, Any] = {"benchmark": "latency", "date": time.strftime("%Y-%m-%d")}
    report |= {"device": device, "cores": cores(), "threads": torch.get_num_threads()}
    report |= {"budget_milliseconds": read_budget(config.latency)}
    report |= {"rows": [row._asdict() for row in rows], "commit": package_commit()}
    report |= {"versions": package_versions()}
    count = sum(row.fits for row in rows)
    print(
        f"\n{device}, {plural(report['threads'], 'thread')}: {count} of {len(rows)} take at most "
        f"{report['budget_milliseconds']:g} ms an image, from its pixels to its detections"
    )
    print("\n".join(budget_table(rows)))
    _write(report, {"config": to_dict(config)}, config)
    if plot is not None:
        atomic_write(plot, render(budget_plot, report, LIGHT))
        print(f"Written to {plot}")


def budget_table(rows: Sequence[Row]) -> list[str]:
    """Lines to print, the fastest first."""
    head = ["model", "image size", "runtime", "median ms", "95 %", "images/s"]
    head += ["mask AP", "box AP", "fits"]
    cells = [
        [
            row.name,
            shown_size(row.image_size),
            row.runtime,
            *_tenths([*row.milliseconds, 1000 / row.milliseconds[0]]),
            number(row.mask_ap),
            number(row.box_ap),
            "yes" if row.fits else "no",
        ]
        for row in rows
    ]
    return text_table(head, cells, indent=2)


def _data(config: DictConfig, device: torch.device) -> tuple[CocoDataModule, int]:
    """The data module, and its number of loader processes."""
    workers = choose_workers(config.data.workers, processes=1, cuda=device.type == "cuda")
    config.data.workers = workers
    data: CocoDataModule = build(config.data)
    data.prepare_data()
    data.setup("fit")
    return data, workers


def _endless(data: CocoDataModule) -> Any:
    loader = data.train_dataloader()
    while True:
        yield from loader


def _ours(config: DictConfig, batches: Sequence[Batch], settings: dict[str, Any]) -> dict[str, Any]:
    """Training step and inference of our model, from random weights."""
    model = build(config.model).to(device=settings["device"], memory_format=torch.channels_last)
    if "void" in batches[0] and model.mask_head is not None:
        check_takes_void(model.mask_head)
    counts = count_parameters(model)  # inference freezes them
    compiled = _compile(config.trainer.compile, model, settings["device"])
    # Warm up with each batch: every new shape is compiled.
    warmup = max(settings["warmup"], len(batches) + 1) if compiled else settings["warmup"]
    rows = _train(
        config,
        model,
        lambda n: model(batches[n % len(batches)]).losses,
        settings | {"warmup": warmup},
    )
    memory = {"training": _megabytes(settings["device"])}
    with torch.compiler.set_stance("force_eager"):  # compiled code has no separate stages to time
        inference, detections = time_inference(for_inference(model), batches, **settings)
    memory["inference"] = _megabytes(settings["device"])
    images = len(batches[0]["images"])
    return {
        **counts,
        "compiled": compiled,
        "training": summary(rows, images),
        "inference": summary(inference, images),
        "detections": round(detections / (settings["steps"] * images), 1),
        "peak_megabytes": memory,
    }


def _compile(how: str, model: MaskRCNN, device: torch.device) -> bool:
    """Compile as a long training does with trainer.compile=`how`; return whether it compiled."""
    if not should_compile(how, device):
        return False
    reason = obstacle(model, device)
    if reason is not None:
        print(f"trainer.compile={how}: not compiled, because {reason}")
        return False
    compile_regions(model)
    return True


def _theirs(
    config: DictConfig, batches: Sequence[Batch], settings: dict[str, Any]
) -> dict[str, Any]:
    """Time torchvision's model on the same batches; its inference returns masks of full images."""
    device, images = settings["device"], len(batches[0]["images"])
    plain = to_dict(config)["model"]
    pretrained = plain["backbone"]["weights"] not in (None, "none")
    norm, frozen = choose(
        plain["backbone"]["norm"], plain["backbone"]["freeze_at"], pretrained=pretrained
    )
    model = torchvision_reference(plain, plain["num_classes"], norm, frozen).to(device)
    inputs = [reference_inputs(batch) for batch in batches]
    rows = _train(config, model, lambda n: model(*inputs[n % len(inputs)]), settings)
    model.eval()
    counts = {key: settings[key] for key in ("device", "warmup", "steps")}
    inference = time_calls(lambda n: model(inputs[n % len(inputs)][0]), **counts)
    return {"training": summary(rows, images), "inference": summary(inference, images)}


def _train(
    config: DictConfig, model: nn.Module, losses: Any, settings: dict[str, Any]
) -> StageTimes:
    if settings["device"].type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    fused = settings["device"].type == "cuda"
    plan = build(config.optimizer)(
        model, batch_size=config.data.batch_size, steps=Length(1000, 100), fused=fused
    )
    return time_training(losses, plan.optimizer, **settings)


def summary(rows: StageTimes, images: int) -> dict[str, Any]:
    """Milliseconds per batch, for each stage and in total: [5th percentile, median, 95th
    percentile]; images per second.
    """
    total = np.sum([seconds for seconds in rows.values()], axis=0)
    stages = (
        {name: _percentiles(seconds) for name, seconds in rows.items()} if len(rows) > 1 else {}
    )
    return {
        "milliseconds": _percentiles(total),
        "images_per_second": float(f"{images / np.median(total):.4g}"),
        "stages": stages,
    }


def _percentiles(seconds: Any) -> list[float]:
    return [round(1000 * float(value), 2) for value in np.percentile(seconds, [5, 50, 95])]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _megabytes(device: torch.device) -> int | None:
    peak = peak_memory_bytes(device)
    return None if peak is None else round(peak / 2**20)


def _gpu_memory(device: torch.device) -> int | None:
    return (
        torch.cuda.get_device_properties(device).total_memory >> 20
        if device.type == "cuda"
        else None
    )


def advice(report: dict[str, Any], *, cuda: bool, memory: int | None) -> tuple[str, list[str]]:
    """The bottleneck of training, in a sentence, and changes to try. `memory`: of the GPU, in
    megabytes.
    """
    loading, step = (report[part]["milliseconds"][1] for part in ("loader", "training"))
    if loading > step:
        change = ["data.image_cache=on, if images fit into 512 px", "a smaller data.image_size"]
        most = min(report["cores"] - 1, MOST_WORKERS)
        if report["workers"] < most:
            change.insert(0, f"data.workers={most}")
        return (
            f"the loader: {loading:.0f} ms per batch, while a training step takes {step:.0f} ms",
            change,
        )
    stages = report["training"]["stages"]
    slowest = max(stages, key=lambda name: stages[name][1])
    message = (
        f"the training step: {step:.0f} ms per batch, most of it ({stages[slowest][1]:.0f} "
        f"ms) in the {slowest}"
    )
    if not cuda:
        return message, [
            "a GPU",
            "a smaller data.image_size",
            "model=mask_rcnn_light backbone=mobilenet_v3_large",
        ]
    change = ["a smaller data.image_size or backbone"]
    if report["precision"] == "32-true":
        change.insert(0, "trainer.precision=auto")
    if memory is not None and report["peak_megabytes"]["training"] < memory / 2:
        change.insert(
            0, f"data.batch_size={2 * report['images'][0]}: less than half of the memory is used"
        )
    return message, change


def table(report: dict[str, Any]) -> list[str]:
    """Lines to print."""
    how = "compiled, " if report.get("compiled") else ""
    count, _, height, width = report["images"]
    lines = [
        f"\n{report['device']}, {report['precision']}, {how}batches of {count} x {height} x "
        f"{width}, {report['workers']} loader processes; random weights, "
        f"{report['detections']} detections per image",
    ]
    rows = []
    for title, part in (("loader", report["loader"]), *_parts(report)):
        rows.append([title, *_tenths([*part["milliseconds"], part["images_per_second"]])])
        rows += [[f"  {name}", *_tenths(values)] for name, values in part["stages"].items()]
    head = ["milliseconds per batch", "5 %", "median", "95 %", "images/s"]
    lines += text_table(head, rows, indent=2)
    peak = ", ".join(f"{name} {value} MB" for name, value in report["peak_megabytes"].items())
    lines += [
        f"  peak memory: {peak}",
        f"\nBottleneck: {report['bottleneck']}.",
        "What to change:",
    ]
    return lines + [f"  {change}" for change in report["change"]]


def _parts(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    owners = [("", report)] + (
        [(", torchvision", report["torchvision"])] if "torchvision" in report else []
    )
    return [
        (f"{part}{whose}", of[part]) for part in ("training", "inference") for whose, of in owners
    ]


def _tenths(values: Sequence[float]) -> list[str]:
    return [f"{value:.1f}" for value in values]
