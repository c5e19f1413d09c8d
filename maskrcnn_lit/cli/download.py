"""`maskrcnn-lit download`: download or draw a data set before a run needs it."""

from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.storage.sources import join


def run(config: DictConfig, overrides: list[str]) -> None:
    """Prepare the data and print what exists; `config` is conf/download.yaml composed with
    `overrides`.
    """
    if "download" in config.data and not any(o.startswith("data.download=") for o in overrides):
        config.data.download = True
    data: CocoDataModule = build(config.data)
    if data.prepare is None:
        raise UserError(
            f"data={config.data.name} has nothing to download: it reads the files of data.train "
            "and data.val, or of data.root. Only data=coco2017, data=voc2012 and data=shapes can "
            "be downloaded"
        )
    data.prepare_data()
    if data.reader is not None:
        print(f"{', '.join(data.parts)}: read from {config.data.root}")
        return
    for part in ("train", "val"):
        print(f"{part}: {_there(join(config.data.root, config.data[part].images))}")


def _there(where: str) -> str:
    if "://" in where:
        return f"read from {where} during a run"
    if not Path(where).is_dir():
        return f"read from {where}.zip, in place"
    files = [path for path in Path(where).iterdir() if not path.name.startswith(".")]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    return f"{plural(len(files), 'image')}, {megabytes:.1f} MB in {where}"
