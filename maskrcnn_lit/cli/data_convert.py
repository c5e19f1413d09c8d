"""`maskrcnn-lit data convert`: write the data in another form, and list what is lost."""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.overrides import typed
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.datasets.writers import WRITERS, Loss, Written
from maskrcnn_lit.data.inspection.parts import fill_parts
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.runs.folder import check_output_folder
from maskrcnn_lit.storage.files import atomic_folder, write_json

SHOWN = 20  # objects in the terminal

LOSSES = "losses.json"  # in the new folder: each object and void region that it cannot hold


def run(config: DictConfig, overrides: list[str]) -> None:
    """Write the parts of the data; `config` is conf/data_convert.yaml composed with `overrides`."""
    check_output_folder(config.out, overwrite=config.overwrite, option="out")
    if config.to not in WRITERS:
        raise UserError(f"to={config.to} is unknown: use {', '.join(WRITERS)}")
    parts = fill_parts(config.data)
    data: CocoDataModule = build(config.data)
    parts = parts or data.parts
    divided = len(parts) > 1
    data.prepare_data()
    for part in parts:
        data.setup_part(part)
    out = Path(config.out).absolute()
    written: dict[str, Written] = {}
    with atomic_folder(out, replace=config.overwrite, durable=False) as new:
        for part in parts:
            index = data.train_index if part == "train" else data.val_index
            if index is None:
                raise RuntimeError("setup_part leaves an index")
            name = part if divided else ""
            written[part] = WRITERS[config.to](index, new, name, config.copy_images)
        losses = [{"part": p, **one._asdict()} for p, w in written.items() for one in w.losses]
        if losses:
            write_json(new / LOSSES, losses)
    for part, counts in written.items():
        print("\n".join(message(part, counts)))
    if losses:
        print(f"The full list is in {out / LOSSES}")
    print(f"Written to {out}: {' '.join(how_to_read(config, data, divided, out))}")


def message(part: str, written: Written) -> list[str]:
    """Lines to print: the counts, and what the new form does not hold fully."""
    objects = plural(written.objects, "object")
    whole = written.objects - sum(loss.annotation is not None for loss in written.losses)
    lines = [
        f"{part}: {plural(written.images, 'image')}, {objects}, {whole:,} of them without any loss"
    ]
    for why, count in Counter(loss.why for loss in written.losses).most_common():
        lines.append(f"  {count} x {why}")
    worst = sorted(written.losses, key=lambda loss: loss.iou)
    lines += [f"    {_of(loss)}" for loss in worst[:SHOWN]]
    if len(worst) > SHOWN:
        lines.append(f"    and {len(worst) - SHOWN} more")
    return lines


def _of(loss: Loss) -> str:
    lost = "left out" if loss.iou == 0 else f"IoU {loss.iou:.3f}"
    number = "" if loss.annotation is None else f", annotation {loss.annotation}"
    return f"{loss.image}{number}: {lost}, {loss.why}"


def how_to_read(config: DictConfig, data: CocoDataModule, divided: bool, out: Path) -> list[str]:
    """The options with which a command reads the new folder."""
    if config.to != "coco":
        return [f"data={config.to}", typed("data.root", str(out))]
    options = ["data=coco_json", typed("data.root", str(out))]
    if not divided:
        images = "images" if config.copy_images else _images(data, data.parts[0])
        return [*options, "data.annotations=instances.json", typed("data.images", images)]
    for part in ("train", "val"):
        images = part if config.copy_images else _images(data, part)
        options += [
            f"data.{part}.annotations=annotations/instances_{part}.json",
            typed(f"data.{part}.images", images),
        ]
    return options


def _images(data: CocoDataModule, part: str) -> str:
    where = data.paths(part)[1]
    return where if "://" in where else str(Path(where).absolute())
