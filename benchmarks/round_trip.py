"""Round trips of a data set through every form of `data convert`: the IoU of every mask.

python benchmarks/round_trip.py OUT NAME=VALUE ... (the options of the data, as for `data convert`)
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

from pycocotools import mask as coco_mask

from maskrcnn_lit.cli.main import main
from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.datasets.writers import WRITERS
from maskrcnn_lit.terminal.table import text_table

PARTS = ("train", "val")


def run(out: Path, source: list[str]) -> None:
    before = _read(source)
    rows = []
    for form in WRITERS:
        folder = out / form
        if main(["data", "convert", *source, f"to={form}", f"out={folder}"]):
            raise SystemExit(1)
        options = [f"data={form}", f"data.root={folder}"]
        if form == "coco":
            options = ["data=coco_json", f"data.root={folder}"]
            for part in PARTS:
                options += [
                    f"data.{part}.images={part}",
                    f"data.{part}.annotations=annotations/instances_{part}.json",
                ]
        after = _read(options)
        ious = [iou for part in PARTS for iou in best_ious(before[part], after[part])]
        below = [iou for iou in ious if 0 < iou < 1]
        exact = sum(iou == 1 for iou in ious)
        lowest = f"{min(below):.3f}" if below else "-"
        rows.append([form, len(ious), exact, len(below), lowest, sum(iou == 0 for iou in ious)])
    head = ["form", "objects", "IoU 1.0", "below", "lowest", "lost"]
    print("\n".join(text_table(head, [list(map(str, row)) for row in rows])))
    print(json.dumps({"benchmark": "round_trip", "columns": head, "rows": rows}))


def _read(options: list[str]) -> dict[str, AnnotationIndex]:
    data = build(compose("data stats", options).data)
    data.prepare_data()
    data.setup("fit")
    return {"train": data.train_index, "val": data.val_index}


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _masks(index: AnnotationIndex) -> dict[tuple[str, str], Counter[bytes]]:
    """(image, class) -> the RLEs of its objects, crowd regions left out."""
    masks: dict[tuple[str, str], Counter[bytes]] = {}
    for i in range(len(index)):
        found = index.annotations(i)
        for j, (label, crowd) in enumerate(zip(found["labels"], found["crowd"], strict=True)):
            if not crowd:
                key = _stem(index.file_name(i)), index.categories[label - 1].name
                masks.setdefault(key, Counter())[index.rle(i, j)["counts"]] += 1
    return masks


def best_ious(before: AnnotationIndex, after: AnnotationIndex) -> list[float]:
    """For each object, the IoU with the most alike one afterwards, of the same image and class."""
    sizes = {_stem(before.file_name(i)): list(before.size(i)) for i in range(len(before))}
    again = _masks(after)
    ious = []
    for (image, name), own in _masks(before).items():
        others = again.get((image, name), Counter())
        ious += [1.0] * sum((own & others).values())
        rles = [{"size": sizes[image], "counts": counts} for counts in others]
        for counts in (own - others).elements():
            one = [{"size": sizes[image], "counts": counts}]
            ious.append(float(coco_mask.iou(rles, one, [0]).max()) if rles else 0.0)
    return ious


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
