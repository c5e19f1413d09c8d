"""`maskrcnn-lit data merge`: write one COCO json of several."""

import os
from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.overrides import typed
from maskrcnn_lit.data.coco.merge import merge
from maskrcnn_lit.data.coco.reading import load_entries
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.runs.folder import check_output_file
from maskrcnn_lit.storage.files import write_json


def run(config: DictConfig, overrides: list[str]) -> None:
    """Write the json; `config` is conf/data_merge.yaml composed with `overrides`."""
    check_output_file(config.out, overwrite=config.overwrite)
    jsons, folders = (
        [value] if isinstance(value, str) else list(value)
        for value in (config.jsons, config.folders)
    )
    if len(folders) == 1:
        folders = folders * len(jsons)
    if len(folders) != len(jsons):
        raise UserError(
            f"jsons has {len(jsons)} files and folders {len(folders)}: give the folder of the "
            "images of each json, or one for all"
        )
    out = Path(config.out).absolute()
    if out in [Path(file).absolute() for file in jsons]:
        raise UserError(f"out={config.out} would overwrite an original: give another file")
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"the image folder {folder} does not exist: check folders")
    places = [os.path.abspath(folder) for folder in folders]
    images = os.path.commonpath(places)
    contents = [
        (file, load_entries(Path(file)), "" if place == images else os.path.relpath(place, images))
        for file, place in zip(jsons, places, strict=True)
    ]
    content, shared = merge(contents)
    write_json(out, content, indent=None)
    if shared:
        print(f"{plural(shared, 'image')} in several jsons: the annotations of all of them count")
    counts = plural(len(content["images"]), "image")
    print(
        f"{counts}, {plural(len(content['annotations']), 'annotation')}, "
        f"{plural(len(content['categories']), 'category', 'categories')} in {out}; "
        f"their images: {typed('data.images', images)}"
    )
