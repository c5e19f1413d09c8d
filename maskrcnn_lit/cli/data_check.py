"""`maskrcnn-lit data check`: every fault of the data, by file and annotation id, and jsons without
them.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.overrides import typed
from maskrcnn_lit.data.coco.index import Fault, read_index
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.inspection.checks import (
    Findings,
    cleaned,
    cleaned_paths,
    find_faults,
    load_entries,
    mark_leaks,
    notes,
)
from maskrcnn_lit.data.inspection.parts import fill_parts, part_paths
from maskrcnn_lit.storage.files import write_json

SHOWN = 20  # faults of a kind in the terminal


def run(config: DictConfig, overrides: list[str]) -> int:
    """Look at everything and print what is wrong; `config` is that of conf/data_check.yaml with
    `overrides`.

    Returns:
        the exit code: 0 nothing is wrong, 1 something is.
    """
    parts = fill_parts(config.data)
    data: CocoDataModule = build(config.data)
    paths = {part: part_paths(config.data, part) for part in parts}
    originals = {part: annotations for part, (annotations, _) in paths.items()}
    targets = {} if config.cleaned is None else cleaned_paths(Path(config.cleaned), originals)
    data.prepare_data()
    findings = {part: _look(config, part, *paths[part]) for part in parts}
    if len(parts) == 2:
        mark_leaks(findings["train"], findings["val"])
    faults = {part: found.faults() for part, found in findings.items()}
    for part in parts:
        print("\n".join(told(part, findings[part], faults[part])))
    remarks = notes(findings)
    print("\n".join(f"note: {remark}" for remark in remarks), end="\n" if remarks else "")
    for part, target in targets.items():
        write_json(target, cleaned(load_entries(originals[part]), findings[part]), indent=None)
        print(f"{part} without them: {typed(f'data.{part}.annotations', target.absolute())}")
    total = sum(map(len, faults.values()))
    if config.out is not None:
        listed = [
            {"part": part, **fault._asdict()}
            for part, several in faults.items()
            for fault in several
        ]
        write_json(Path(config.out), {"faults": listed, "notes": remarks})
        print(f"All of it is in {config.out}")
    print(f"{total} fault{'s' * (total != 1)}" if total else "Nothing is wrong with the data.")
    return int(total > 0)


def _look(config: DictConfig, part: str, annotations: Path, images: Path) -> Findings:
    """Read a part and its files. The whole json, unless fewer images are asked for than it has."""
    take = config.data[f"{part}_images"]
    if take is not None and take >= len(load_entries(annotations)["images"]):
        take = None
    index = read_index(
        annotations,
        images,
        "skip",
        image_ids=config.data.image_ids,
        take=take,
        how=config.data.subset,
        seed=config.data.seed,
        max_pixels=config.data.max_pixels,
    )
    return find_faults(index, _progress(part))


def _progress(part: str) -> Callable[[int, int], None]:
    """Prints how far it is: over itself in a terminal about every second, else a line every 10
    seconds.
    """
    overwrites, shown = sys.stdout.isatty(), time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= (1.0 if overwrites else 10.0) and done < total:
            shown = time.monotonic()
            print(
                f"{part}: {done} of {total} images decoded",
                end="\r" if overwrites else "\n",
                flush=True,
            )

    return show


def told(part: str, found: Findings, faults: list[Fault]) -> list[str]:
    """Lines to print: what was looked at, then each kind of fault with its count and the first
    SHOWN of it.
    """
    index = found.index
    objects = int((index.spans[:, 1] - index.spans[:, 0]).sum())
    lines = [
        f"{part}: {len(index)} images decoded, {objects} annotations compared with their masks; {len(faults)} faults"
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
