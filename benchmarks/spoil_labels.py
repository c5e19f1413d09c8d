"""Spoils 5 % of the labels of a COCO json, and restores those that `data check run=RUN` found.

    python benchmarks/spoil_labels.py spoil TRAIN_JSON OUT     # OUT/a.json, b.json, ...
    maskrcnn-lit data check run=RUN data=coco_json data.train.annotations=OUT/b.json ...
    python benchmarks/spoil_labels.py repair OUT --b PAGE/train       # OUT/repaired_b.json

Five ways in equal parts: objects removed; outlines shifted, shrunk or dilated (to an IoU of 0.2 to
0.6 with the true one); two neighbors merged into one. a and b are halves of the images. `repair`
prints the precision and restores the true labels of what was found among the first 300 of a page.
"""

import argparse
import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

SHARE = 0.05
WAYS = ("removed", "shifted", "shrunk", "dilated", "merged")
SCALE = {"shifted": 1.0, "shrunk": 0.6, "dilated": 1.6}  # of a side
SHIFT = 0.4  # of the diameter of a disk of equal area

Json = dict[str, Any]


def resampled(mask: NDArray[np.uint8], scale: float, shift: tuple[float, float]) -> NDArray[Any]:
    """`mask` scaled about its center of mass, then moved by `shift` (y, x pixels)."""
    y, x = np.nonzero(mask)
    center = np.array([y.mean(), x.mean()])
    grid = np.indices(mask.shape).transpose(1, 2, 0)
    source = np.rint((grid - center - np.array(shift)) / scale + center).astype(int)
    inside = ((source >= 0) & (source < mask.shape)).all(-1)
    source = source.clip(0, np.array(mask.shape) - 1)
    return (mask[source[..., 0], source[..., 1]] * inside).astype(np.uint8)


def with_mask(annotation: Json, mask: NDArray[Any]) -> Json:
    rle = rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
    return annotation | {
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": float(rle_tools.area(rle)),
        "bbox": rle_tools.toBbox(rle).tolist(),
    }


def decoded(annotation: Json) -> NDArray[Any]:
    return np.asarray(rle_tools.decode(annotation["segmentation"]))


def spoil(content: Json, seed: int = 1, share: float = SHARE) -> tuple[Json, list[Json]]:
    """The spoilt copy, and what was done: way, image_id, ids of the true annotations, and the id of
    the label that is left (null where it was removed).
    """
    random = np.random.default_rng(seed)
    by_id = {a["id"]: copy.deepcopy(a) for a in content["annotations"]}
    order = random.permutation(sorted(by_id)).tolist()
    wanted, touched, record = round(share * len(order)), set[int](), list[Json]()
    while len(touched) < wanted:
        number, way = order.pop(), WAYS[len(record) % len(WAYS)]
        if number in touched:
            continue
        own = by_id[number]
        ids, left = [number], number
        if way == "removed":
            del by_id[number]
            left = None
        elif way == "merged":
            other = neighbor(own, by_id, touched)
            if other is None:
                continue
            ids.append(other)
            by_id[number] = with_mask(own, decoded(own) | decoded(by_id.pop(other)))
        else:
            mask = decoded(own)
            angle, far = random.uniform(0, 2 * np.pi), 0.0
            if way == "shifted":
                far = SHIFT * 2 * float(np.sqrt(mask.sum() / np.pi))
            new = resampled(mask, SCALE[way], (far * np.sin(angle), far * np.cos(angle)))
            iou = (new & mask).sum() / (new | mask).sum()
            if not 0.2 <= iou <= 0.6:  # cut off by the border of the image, or tiny
                continue
            by_id[number] = with_mask(own, new)
        touched.update(ids)
        record.append({"way": way, "image_id": own["image_id"], "ids": ids, "left": left})
    return content | {"annotations": [by_id[n] for n in sorted(by_id)]}, record


def neighbor(own: Json, by_id: dict[int, Json], touched: set[int]) -> int | None:
    """The nearest object of the image that is not spoilt, at most two sides away."""
    center = np.array(own["bbox"][:2]) + np.array(own["bbox"][2:]) / 2
    others = [
        (float(np.abs(np.array(a["bbox"][:2]) + np.array(a["bbox"][2:]) / 2 - center).max()), n)
        for n, a in by_id.items()
        if a["image_id"] == own["image_id"] and n != own["id"] and n not in touched
    ]
    far, number = min(others, default=(np.inf, 0))
    return number if far <= 2 * max(own["bbox"][2:]) else None


def halves(content: Json, seed: int = 1) -> dict[str, Json]:
    ids = np.random.default_rng(seed).permutation(sorted(i["id"] for i in content["images"]))
    return {
        name: content
        | {
            "images": [i for i in content["images"] if i["id"] in part],
            "annotations": [a for a in content["annotations"] if a["image_id"] in part],
        }
        for name, part in (
            ("a", set(ids[::2].tolist())),
            ("b", set(ids[1::2].tolist())),
        )
    }


def spoilt_by(
    suspicion: Json, record: list[Json], truth: dict[int, Json], results: Any
) -> Json | None:
    """The entry of the record that a suspicion names: by its label, or for a missing label by the
    removed object that its detection covers (IoU 0.5).
    """
    if suspicion["annotation"] is not None:
        return next((one for one in record if one["left"] == suspicion["annotation"]), None)
    if suspicion["kind"] != "missing":
        return None
    mask = results[suspicion["detections"][0]]["segmentation"]
    for one in record:
        if one["way"] == "removed" and one["image_id"] == suspicion["image_id"]:
            own = truth[one["ids"][0]]["segmentation"]
            if rle_tools.iou([mask], [own], [0])[0, 0] >= 0.5:
                return one
    return None


def restored(content: Json, entries: list[Json], truth: dict[int, Json]) -> Json:
    """`content` with the true labels of these entries of the record."""
    gone = {one["left"] for one in entries}
    back = [truth[number] for one in entries for number in one["ids"]]
    left = [a for a in content["annotations"] if a["id"] not in gone]
    return content | {"annotations": sorted([*left, *back], key=lambda a: a["id"])}


def repair(out: Path, pages: dict[str, Path], first: int) -> None:
    """Print the precision, and restore the true labels of what was found among the `first`."""
    record = json.loads((out / "spoilt.json").read_bytes())
    every = []
    for name, page in pages.items():
        results = json.loads((page / "detections.json").read_bytes())
        clean = json.loads((out / f"clean_{name}.json").read_bytes())
        truth = {a["id"]: a for a in clean["annotations"]}
        found = json.loads((page / "suspicious_labels.json").read_bytes())["suspicions"]
        judged = [(one, spoilt_by(one, record, truth, results)) for one in found]
        every += judged
        content = json.loads((out / f"{name}.json").read_bytes())
        hits = {id(entry): entry for _, entry in judged[:first] if entry is not None}
        write(out / f"repaired_{name}.json", restored(content, list(hits.values()), truth))
        images = {image["id"] for image in clean["images"]}
        own = sum(one["image_id"] in images for one in record)
        print(f"{name}: {own} spoilt; restored {len(hits)} of the first {first}")
        report(judged)
    print("both halves, by cost:")
    report(sorted(every, key=lambda pair: -pair[0]["cost"]))


def report(judged: list[tuple[Json, Json | None]]) -> None:
    for count in (25, 50, 100, 200, 300):
        top = judged[:count]
        hits = [entry for _, entry in top if entry is not None]
        ways = Counter(entry["way"] for entry in hits)
        print(f"  first {count}: precision {len(hits) / len(top):.2f}, {dict(ways.most_common())}")


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("spoil")
    one.add_argument("json", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--seed", type=int, default=1)
    other = commands.add_parser("repair")
    other.add_argument("out", type=Path)
    other.add_argument("--a", type=Path, help="the folder of the page of half a")
    other.add_argument("--b", type=Path)
    other.add_argument("--first", type=int, default=300)
    arguments = parser.parse_args()
    if arguments.command == "repair":
        pages = {name: getattr(arguments, name) for name in "ab" if getattr(arguments, name)}
        repair(arguments.out, pages, arguments.first)
        return
    content = json.loads(arguments.json.read_bytes())
    spoilt, record = spoil(content, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "spoilt.json", record)
    for name, part in halves(spoilt).items():
        write(arguments.out / f"{name}.json", part)
    for name, part in halves(content).items():
        write(arguments.out / f"clean_{name}.json", part)


if __name__ == "__main__":
    main()
