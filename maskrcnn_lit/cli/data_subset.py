"""`maskrcnn-lit data subset`: write a COCO json of some images or classes."""

from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.overrides import typed
from maskrcnn_lit.data.coco.reading import load_entries
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.inspection.checks import Findings, cleaned
from maskrcnn_lit.data.inspection.parts import PARTS, fill_parts
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.runs.folder import check_output_file
from maskrcnn_lit.storage.files import write_json


def run(config: DictConfig, overrides: list[str]) -> None:
    """Write the json; `config` is conf/data_subset.yaml composed with `overrides`."""
    check_output_file(config.out, overwrite=config.overwrite)
    if config.part not in PARTS:
        raise UserError(f"part={config.part} is unknown: use {' or '.join(PARTS)}")
    given = fill_parts(config.data)
    data: CocoDataModule = build(config.data)
    if config.part not in (given or data.parts):
        raise UserError(f"the data have no part '{config.part}': give it, or part=...")
    data.prepare_data()
    data.setup_part(config.part)
    index = data.train_index if config.part == "train" else data.val_index
    if index is None:
        raise RuntimeError("setup_part leaves an index")
    annotations, images = data.paths(config.part)
    out = Path(config.out).absolute()
    if out == Path(annotations).absolute():
        raise UserError(f"out={config.out} would overwrite the original: give another file")
    content = cleaned(load_entries(Path(annotations)), Findings(index))
    write_json(out, content, indent=None)
    counts = plural(len(content["images"]), "image")
    print(
        f"{counts}, {plural(len(content['annotations']), 'annotation')} in {out}; their images: "
        f"{typed('data.images', str(Path(images).absolute()))}"
    )
