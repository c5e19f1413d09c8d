"""`maskrcnn-lit data stats`: statistics of the data, and the recall of the model's anchors on
it.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from maskrcnn_lit.config.compose import build
from maskrcnn_lit.data.coco.learnable import describe_unlearnable, unlearnable
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.data.inspection.anchor_recall import (
    Choice,
    Grids,
    MakeGrids,
    improve,
    padded_sizes,
    reach,
    recalls,
)
from maskrcnn_lit.data.inspection.parts import fill_parts
from maskrcnn_lit.data.inspection.summary import MOST, TINY, Objects, read_objects, summarize
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.anchors import Anchors
from maskrcnn_lit.runs.folder import check_output_file
from maskrcnn_lit.storage.files import write_json
from maskrcnn_lit.terminal.table import text_table

LEVELS = 5  # p2..p6

GAIN = 0.05  # minimum gain in recall for suggesting other anchors

ChooseAnchors = Callable[[ImageSize], Choice]  # the model's anchors at an image size


def run(config: DictConfig, overrides: list[str]) -> None:
    """Count and measure; `config` is conf/data_stats.yaml composed with `overrides`."""
    check_output_file(config.out, overwrite=config.overwrite)
    parts = fill_parts(config.data)
    config.data.batch_size = 1  # works for a set smaller than a batch
    data: CocoDataModule = build(config.data)
    parts = parts or data.parts
    choose, make = _anchors(config)
    choose(data.image_size)  # reports invalid sizes before the annotations are read
    thresholds = sorted({0.5, float(config.model.rpn.object_iou)})
    data.prepare_data()
    if len(parts) == 2:
        data.setup("fit")
    else:
        data.setup_part(parts[0])
    report: dict[str, Any] = {}
    for part in parts:
        index = data.train_index if part == "train" else data.val_index
        if index is None:
            raise RuntimeError("setup leaves both indices")
        objects = read_objects(index, data.image_size)
        numbers = summarize(objects, [category.name for category in index.categories])
        lost = unlearnable(index, data.image_size, data.mask_size)
        numbers["objects_without_mask"] = len(index.without_mask)
        numbers["images_with_void"] = sum(len(index.void(i)) > 0 for i in range(len(index)))
        numbers["not_learnable"] = dict(Counter(fault.kind for fault in lost))
        if part == "val":  # the data module reports those of train
            data.announce(*describe_unlearnable(index, lost, data.image_size))
        print(
            f"\n{part} of {data.name}, image_size {_shown(data.image_size)}\n"
            + "\n".join(table(numbers))
        )
        alone = objects.without_crowd()
        if len(alone.image):
            numbers["anchors"] = fit(
                alone,
                data.image_size,
                choose,
                make,
                thresholds,
                seed=data.seed,
                search=part == parts[0],
            )
            print("\n".join(anchor_table(numbers["anchors"])))
        report[part] = numbers
    if config.out is not None:
        write_json(Path(config.out), report)
        print(f"\nWritten to {config.out}")


def _anchors(config: DictConfig) -> tuple[ChooseAnchors, MakeGrids]:
    """Two functions: image size -> sizes and ratios of the model's anchors; sizes and ratios -> its
    anchors.
    """

    def choose(image_size: ImageSize) -> Choice:
        at_size = config.copy()
        at_size.data.image_size = image_size
        node = at_size.model.anchors
        if len(node.sizes) != LEVELS:
            raise UserError(
                f"model.anchors.sizes has {len(node.sizes)} numbers, but the pyramid has {LEVELS} "
                "levels: give one size for each level"
            )
        return Choice(tuple(node.sizes), tuple(map(float, node.ratios)))

    def make(choice: Choice, padded: tuple[int, int]) -> Grids:
        return anchor_grids(
            build({**config.model.anchors, "sizes": choice.sizes, "ratios": choice.ratios}), padded
        )

    return choose, make


def anchor_grids(anchors: Anchors, padded: tuple[int, int]) -> Grids:
    """The anchors of p2..p6 for an image of this padded height and width, h w a 4 each.
    Convolutions and pooling with stride 2 round up: p2 has 1/4 of the pixels per side, each further
    level half.
    """
    cells = [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in (4, 8, 16, 32, 64)]
    pyramid = [torch.empty(1).expand(1, 1, *grid) for grid in cells]
    shapes = len(anchors.ratios)
    levels = anchors(pyramid, padded).split([h * w * shapes for h, w in cells])
    return [
        level.view(h, w, shapes, 4).numpy() for level, (h, w) in zip(levels, cells, strict=True)
    ]


def fit(
    alone: Objects,
    image_size: ImageSize,
    choose: ChooseAnchors,
    make: MakeGrids,
    thresholds: list[float],
    *,
    seed: int,
    search: bool,
) -> dict[str, Any]:
    """The best possible recall of the model's anchors and, with `search`, of better ones.

    Returns: the anchors, "searched", "now": their recalls, and "others": overrides -> recalls, for
    anchors that gain GAIN.
    """
    padded, sides = padded_sizes(alone.sizes, image_size), alone.sides()
    anchors = choose(image_size)

    def measured(objects: Objects, padded: Any, choice: Choice) -> dict[str, dict[str, float]]:
        return recalls(
            reach(objects, padded, choice, make), sides, thresholds
        )  # the same objects in each row

    now = measured(alone, padded, anchors)
    others: dict[str, dict[str, dict[str, float]]] = {}
    if search:
        better = improve(alone, padded, anchors, make, thresholds, seed)
        others[_typed(anchors, better)] = measured(alone, padded, better)
        if np.median(sides) < TINY:
            for factor in (2, 4):
                larger = _times(image_size, factor)
                grown = alone._replace(sizes=alone.sizes * factor, boxes=alone.boxes * factor)
                others[f"data.image_size={_shown(larger)}"] = measured(
                    grown, padded_sizes(grown.sizes, larger), choose(larger)
                )
    gains = {
        name: [row["all"][key] - share for key, share in now["all"].items()]
        for name, row in others.items()
    }
    worth = [name for name, gain in gains.items() if max(gain) >= GAIN and min(gain) > -GAIN]
    return {
        "model.anchors.sizes": list(anchors.sizes),
        "model.anchors.ratios": list(anchors.ratios),
        "searched": search,
        "now": now,
        "others": {name: others[name] for name in worth},
    }


def _times(image_size: ImageSize, factor: int) -> ImageSize:
    return (
        image_size * factor
        if isinstance(image_size, int)
        else (image_size[0] * factor, image_size[1] * factor)
    )


def _typed(now: Choice, better: Choice) -> str:
    """Overrides, quoted, because some shells interpret brackets."""
    changes = {
        name: getattr(better, name)
        for name in Choice._fields
        if getattr(better, name) != getattr(now, name)
    }
    return " ".join(f"'model.anchors.{name}={_shown(value)}'" for name, value in changes.items())


def _shown(value: Any) -> str:
    return (
        f"[{','.join(f'{number:g}' for number in value)}]"
        if isinstance(value, (tuple, list))
        else str(value)
    )


# Row of the table -> the key of its quantiles.
QUANTILES = {
    "height of the files, px": "file_height",
    "width of the files, px": "file_width",
    "height after the resize, px": "height",
    "width after the resize, px": "width",
    "object's side after the resize, px": "side",
    "object's height / width": "height_by_width",
}


def table(numbers: dict[str, Any]) -> list[str]:
    """Lines to print for the result of `summarize`."""
    per_image = numbers["objects_per_image"]
    over = per_image[f"share_of_images_over_{MOST}"]
    lines = [
        f"  images {numbers['images']}, of these without objects "
        f"{numbers['images_without_objects']}; objects "
        f"{numbers['objects']}, crowd regions {numbers['crowd_regions']}",
        f"  objects per image: mean {per_image['mean']:.1f}, median {per_image['median']:g}, "
        f"maximum {per_image['max']}; "
        f"{over:.1%} of the images have more than {MOST}, and COCO's AP counts {MOST} detections "
        "per image",
        "",
        *_classes(numbers["classes"]),
        "",
        *text_table(
            ["", "least", "5%", "25%", "median", "75%", "95%", "most"],
            [[title, *_rounded(numbers[name])] for title, name in QUANTILES.items()],
            indent=2,
        ),
        "",
        "  sizes after the resize (by 32 and 96 px): " + _shares(numbers["sizes"]),
        "  sizes as COCO's AP counts them, of masks in the files: "
        + _shares(numbers["sizes_in_file"]),
        "  share of a box under other boxes: " + _shares(numbers["crowding"]),
    ]
    if numbers["side"] and numbers["side"]["median"] < TINY:
        lines.append(
            f"  Warning: the side of the median object is {numbers['side']['median']:.0f} px after "
            f"the resize, below {TINY:.0f}, and the finest feature map has stride 4. Raise "
            "data.image_size"
        )
    return lines


def _classes(counts: dict[str, int]) -> list[str]:
    """Every class with its number of objects, most first, in three columns."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    cells = [[name, str(count)] for name, count in ranked]
    count = -(-len(cells) // 3)
    rows = [[text for cell in cells[row::count] for text in cell] for row in range(count)]
    return text_table([], rows, text=(0, 2, 4), indent=2)


def _rounded(values: dict[str, float] | None) -> list[str]:
    return [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in (values or {}).values()]


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def anchor_table(fitted: dict[str, Any]) -> list[str]:
    """Lines to print for the result of `fit`: a row of recalls for the current anchors, and for
    each alternative.
    """
    thresholds = " and ".join(fitted["now"]["all"])
    sizes, ratios = _shown(fitted["model.anchors.sizes"]), _shown(fitted["model.anchors.ratios"])
    rows = {"now": fitted["now"]} | {
        f"({n})": row for n, row in enumerate(fitted["others"].values(), 1)
    }
    lines = [
        "",
        f"  Share of objects with an anchor (sizes {sizes}, ratios {ratios}) of IoU {thresholds}:",
    ]
    head = [f"{size}\n{limit}" for size, row in fitted["now"].items() for limit in row]
    cells = [
        [name, *(f"{share:.3f}" for size in fitted["now"] for share in row[size].values())]
        for name, row in rows.items()
    ]
    lines += text_table(["", *head], cells, indent=2)
    lines += [f"  ({n}) add {typed}" for n, typed in enumerate(fitted["others"], 1)]
    if fitted["searched"] and not fitted["others"]:
        lines.append(f"  None of the other sizes and ratios tried gains {GAIN} or more.")
    return lines
