"""`maskrcnn-lit data show`: one picture of samples as the model gets them, with boxes and masks."""

import math
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.inspection.parts import PARTS, fill_parts
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.report.draw import draw_instances, grid, titled
from maskrcnn_lit.report.panels import ground_truth_from_batch
from maskrcnn_lit.runs.folder import check_output_file
from maskrcnn_lit.storage.images import write_image

DEFAULT_OUT = "outputs/samples.png"

LONGEST = 640  # pixels of a sample in the picture; what the model gets may be larger


def run(config: DictConfig, overrides: list[str]) -> None:
    """Draw and write the picture; `config` is conf/data_show.yaml composed with `overrides`."""
    check_output_file(config.out, overwrite=config.overwrite)
    check_whole(1, count=config.count)
    check_whole(0, epoch=config.epoch, seed=config.seed)
    if config.part not in PARTS:
        raise UserError(f"part={config.part} is unknown: use {' or '.join(PARTS)}")
    given = fill_parts(config.data)
    config.data.batch_size = 1  # works for a set smaller than a batch, too
    data: CocoDataModule = build(config.data)
    given = given or data.parts
    data.prepare_data()
    if len(given) == 2 and config.part == "train":
        data.setup("fit")
    elif len(given) == 2:
        data.setup("validate")
    else:
        data.setup_part(config.part)
    dataset = data.train_dataset if config.part == "train" else data.val_dataset
    order = np.random.default_rng(config.seed).permutation(
        len(dataset)
    )  # the same images in every epoch
    names = [category.name for category in data.categories]
    pictures = []
    for position in sorted(order[: config.count].tolist()):
        batch = as_seen(
            {key: value[None] for key, value in dataset[config.epoch, position].items()}
        )
        image, target = ground_truth_from_batch(batch, 0, names)
        pictures.append(titled(draw_instances(image, **target), dataset.index.file_names[position]))
    out = Path(config.out or DEFAULT_OUT)
    write_image(out, grid(pictures, columns=math.ceil(math.sqrt(len(pictures)))))
    epoch = f"in epoch {config.epoch}" if config.part == "train" else "as in evaluation"
    print(f"{len(pictures)} {config.part} images {epoch}, as the model gets them: {out}")


def as_seen(batch: Batch) -> Batch:
    """The batch with its resized images in place of the original files, to draw them augmented,
    with no side over LONGEST.
    """
    sizes = batch["image_sizes"]
    factor = (LONGEST / sizes.max(dim=1, keepdim=True).values).clamp(max=1)  # B 1
    shown = (sizes * factor).round().to(torch.int64).clamp(min=1)
    return batch | {"original_sizes": shown, "scales": sizes / shown}
