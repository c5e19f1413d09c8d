"""`maskrcnn-lit data check`: list every fault of the data by file and annotation id, and write
jsons without them; with a trained run, rank the labels that contradict it.
"""

from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.overrides import typed
from maskrcnn_lit.data.coco.classes import check_names, describe_choice
from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.coco.learnable import unlearnable
from maskrcnn_lit.data.coco.reading import load_entries
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.inspection.checks import (
    Findings,
    cleaned,
    cleaned_paths,
    find_faults,
    learning_fault,
    mark_leaks,
    notes,
)
from maskrcnn_lit.data.inspection.parts import fill_parts, same_images
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.check_labels import check_labels, own_data
from maskrcnn_lit.runs.folder import check_output_file, check_output_folder
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.terminal.progress import StatusLines

SHOWN = 20  # faults of a kind in the terminal


def run(config: DictConfig, overrides: list[str]) -> int:
    """Check all of the data and print the faults; `config` is conf/data_check.yaml composed with
    `overrides`.

    Returns:
        the exit code: 0 without faults, else 1.
    """
    check_output_file(config.out, overwrite=config.overwrite)
    if config.run is not None:
        check_output_folder(config.run_dir, overwrite=config.overwrite)
        config.data = own_data(config, overrides)
    leaks = same_images(config.data)
    parts = fill_parts(config.data)
    data: CocoDataModule = build(config.data)
    parts = parts or data.parts
    paths = {part: data.paths(part) for part in parts}
    originals = {part: Path(annotations) for part, (annotations, _) in paths.items()}
    targets = {} if config.cleaned is None else cleaned_paths(Path(config.cleaned), originals)
    data.prepare_data()
    findings = {part: _look(config, data, part, *paths[part]) for part in parts}
    check_names(data.classes, [one.index.packed for one in findings.values()])
    if len(parts) == 2:
        mark_leaks(findings["train"], findings["val"])
    faults = {part: one.faults() for part, one in findings.items()}
    if leaks:
        detail = "train and val are the same file: give other images with data.val.annotations"
        faults["train"].append(
            Fault(
                "training data given as validation data too", originals["train"].name, None, detail
            )
        )
    remarks = notes(findings, beside=data.reader is None)
    lost = {part: _unlearnable(data, one) for part, one in findings.items()}
    for part in parts:
        index = findings[part].index
        remarks += [f"{part}: {line}" for line in describe_choice(index.packed)]
        lines, nothing = learning_fault(index, lost[part], data.image_size, str(paths[part][0]))
        remarks += [f"{part}: {line.strip()}" for line in lines]
        faults[part] += [nothing] if nothing else []
        print("\n".join(message(part, findings[part], faults[part])))
    print("\n".join(f"note: {remark}" for remark in remarks), end="\n" if remarks else "")
    for part, target in targets.items():
        _write_cleaned(target, originals[part], findings[part])
        print(f"{part} without them: {typed(f'data.{part}.annotations', target.absolute())}")
    total = sum(map(len, faults.values()))
    if config.out is not None:
        listed = [
            {"part": part, **dict(list(fault._asdict().items())[:4])}
            for part, several in faults.items()
            for fault in several
        ]
        write_json(Path(config.out), {"faults": listed, "notes": remarks})
        print(f"The full list is in {config.out}")
    print(_last_line(total, sum(map(len, lost.values()))))
    if config.run is not None:
        looked_at = {part: (findings[part].index, Path(paths[part][0])) for part in parts}
        for part, page in check_labels(config, overrides, looked_at).items():
            print(f"{part}: suspicious labels, by the AP that they cost: {page}")
    return int(total > 0)


def _look(
    config: DictConfig, data: CocoDataModule, part: str, annotations: str, images: str
) -> Findings:
    """Read a part and its files: the full json, unless data.*_images asks for fewer images."""
    take = config.data[f"{part}_images"]
    if take is not None and take >= len(load_entries(Path(annotations))["images"]):
        take = None
    index = read_index(
        annotations,
        images,
        "skip",
        image_ids=config.data.image_ids,
        take=take,
        how=config.data.subset,
        seed=config.data.seed,
        cache=data.cache,
        cache_gb=data.cache_gb,
        max_pixels=config.data.max_pixels,
        bits=data.bits,
        ignore_void=data.ignore_void,
        classes=data.classes,
        where=data.where(part),
    )
    lines = StatusLines()

    def show(done: int, total: int) -> None:
        if lines.due() and done < total:
            lines.show(f"{part}: {done} of {total} images decoded")

    lines.start()
    try:
        return find_faults(index, show)
    finally:
        lines.clear()


def _last_line(faults: int, lost: int) -> str:
    if faults:
        return f"{faults} fault{'s' * (faults != 1)}"
    if lost:
        return f"0 faults, but {lost} object{'s' * (lost != 1)} cannot be learned: see the notes"
    return "No faults in the data."


def _unlearnable(data: CocoDataModule, findings: Findings) -> list[Fault]:
    """The objects that cannot be learned, without those that have a fault."""
    lost = unlearnable(findings.index, data.image_size, data.mask_size)
    return [fault for fault in lost if fault.annotation not in findings.annotations]


def _write_cleaned(target: Path, original: Path, findings: Findings) -> None:
    try:
        write_json(target, cleaned(load_entries(original), findings), indent=None)
    except RecursionError:
        raise UserError(
            f"{original} has values that are nested too deeply to write: remove them"
        ) from None


def message(part: str, findings: Findings, faults: list[Fault]) -> list[str]:
    """Lines to print: the checked counts, then each kind of fault with its count and the first
    SHOWN cases.
    """
    index = findings.index
    objects = int((index.spans[:, 1] - index.spans[:, 0]).sum())
    lines = [
        f"{part}: {len(index)} images decoded, {objects} annotations compared with their masks; "
        f"{len(faults)} faults"
    ]
    for kind in sorted({fault.kind for fault in faults}):
        same = [fault for fault in faults if fault.kind == kind]
        lines.append(f"  {len(same)} x {kind}")
        for fault in same[:SHOWN]:
            number = "" if fault.annotation is None else f", annotation {fault.annotation}"
            lines.append(f"    {fault.image}{number}: {fault.what}")
        if len(same) > SHOWN:
            lines.append(f"    and {len(same) - SHOWN} more: out=FILE lists them all")
    return lines
