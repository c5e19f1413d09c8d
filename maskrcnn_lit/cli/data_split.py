"""`maskrcnn-lit data split`: write two COCO jsons, for training and validation, of one set."""

from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.config.overrides import typed
from maskrcnn_lit.data.coco.faults import FINDINGS
from maskrcnn_lit.data.coco.reading import load_entries
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.runs.folder import check_output_folder
from maskrcnn_lit.storage.files import write_json


def run(config: DictConfig, overrides: list[str]) -> None:
    """Write train.json and val.json; `config` is conf/data_split.yaml composed with `overrides`."""
    check_output_folder(config.out, overwrite=config.overwrite, option="out")
    if config.data.val_share is None:
        raise UserError(
            "data split needs the share of the images that become validation: add "
            "data.val_share=0.2"
        )
    data: CocoDataModule = build(config.data)
    data.prepare_data()
    out = Path(config.out).absolute()
    options = ["data=coco_json"]
    for part in ("train", "val"):
        annotations, images = data.paths(part)
        content = load_entries(Path(annotations))
        content.pop(FINDINGS, None)
        file = out / f"{part}.json"
        write_json(file, content, indent=None)
        counts = plural(len(content["images"]), "image")
        print(f"{part}: {counts}, {plural(len(content['annotations']), 'annotation')}: {file}")
        options += [
            typed(f"data.{part}.annotations", str(file)),
            typed(f"data.{part}.images", str(Path(images).absolute())),
        ]
    print(f"Train with {' '.join(options)}")
