"""A process that reads COCO jsons and results with values of every kind and size in them.

    python coco_fuzz.py annotations|results FOLDER FIRST COUNT

Case n is a function of n. Whatever is not a UserError ends the process with a traceback; a signal
ends it without. The last line is a json of what was counted.
"""

import copy
import io
import json
import random
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from coco_file import coco_dict, write_coco

from maskrcnn_lit.cli.main import main
from maskrcnn_lit.data.batch import check_batch
from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.coco.learnable import describe_unlearnable, unlearnable
from maskrcnn_lit.data.coco.reading import load_entries
from maskrcnn_lit.data.collate import collate
from maskrcnn_lit.data.dataset import CocoDataset
from maskrcnn_lit.data.inspection.checks import cleaned, find_faults, notes
from maskrcnn_lit.data.inspection.summary import read_objects, summarize
from maskrcnn_lit.data.transforms import Augment
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.analysis.analyze import analyze
from maskrcnn_lit.evaluation.coco.results import read_results
from maskrcnn_lit.evaluation.coco.scores import MAX_DETECTIONS, match_all, score_matches
from maskrcnn_lit.storage.files import write_json

AUGMENT = Augment(flip=0.5, scale=(0.5, 1.6), crop=0.5)


def any_value(rng: random.Random) -> Any:
    """nan, infinite, of every magnitude, of every type, nested."""
    nested: Any = rng.choice([1, 1e300, "x", None])
    for _ in range(rng.choice([1, 2, 40, 200])):
        nested = [nested]
    numbers = [float("nan"), float("inf"), -float("inf"), 0, -1, 1e-300, -1e300, 0.5, 1.0]
    numbers += [2**31, 2**32 + 1, 2**53 + 1, -(2**63), 2**63, 2**64 - 1, 10**400, 10**18]
    texts = [
        "0",
        "1",
        "-1",
        "nan",
        "1e5",
        "abc",
        "",
        "\0",
        "\ud800",
        "../x.jpg",
        "x" * 300,
        "1" * 30,
    ]
    others = [True, False, None, [], [[]], {}, {"size": [1, 1]}, nested, [1, 2], [[1] * 6]]
    size = rng.choice([-1, 1]) * 10 ** rng.uniform(-300, 300)
    near = rng.choice([-1, 1]) * 10 ** rng.uniform(-12, 12)
    runs = {"size": [70, 95], "counts": [rng.choice(numbers) for _ in range(rng.randint(0, 4))]}
    packed = {
        "size": [70, 95],
        "counts": "".join(rng.choices("0123OPQo_`n]", k=rng.randint(0, 20))),
    }
    plain = [size, near, near, rng.choice(numbers), rng.choice(texts), rng.choice(others)]
    return copy.deepcopy(rng.choice([*plain, runs, packed, [near] * rng.randint(0, 8)]))


def change(value: Any, rng: random.Random) -> Any:
    """The same with something in it replaced, left out or scaled."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = change(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.75:
        small = all(isinstance(item, (int, float)) and abs(item) < 2**60 for item in value)
        if small and rng.random() < 0.3:
            factor = rng.choice([-1, 1]) * 10 ** rng.uniform(-9, 12)
            return [item * factor for item in value]
        place = rng.randrange(len(value))
        value[place] = change(value[place], rng)
        return value
    return any_value(rng)


def changed(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    content = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        kind = rng.choices(["annotations", "images", "categories", None], [12, 3, 1, 0.1])[0]
        if kind is None or not isinstance(content.get(kind), list) or not content[kind]:
            content = change(content, rng)
            if not isinstance(content, dict):
                break
        else:
            place = rng.randrange(len(content[kind]))
            content[kind][place] = change(content[kind][place], rng)
            if rng.random() < 0.1 and isinstance(content[kind][place], dict):
                content[kind][place][rng.choice(["ignore", "area", "extra"])] = any_value(rng)
    return content


def detections(truth: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [{key: a[key] for key in keys} | {"score": 0.5} for a in truth["annotations"]]


def evaluate(truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
    matches = match_all(truth, results)
    scores = score_matches(matches, truth["categories"])
    analyze(truth, results, scores=scores, max_detections=MAX_DETECTIONS[-1])


class Annotations:
    """Reads json, samples, evaluation, data check and data stats, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.content = folder, coco_dict()
        self.file, self.images = write_coco(folder, self.content)

    def run(self, n: int) -> str:
        rng = random.Random(n)
        self.file.write_text(json.dumps(changed(self.content, rng)))
        if n % 16 == 0:
            return f"exit code {self.data_check()}"
        index = read_index(
            self.file,
            self.images,
            "skip",
            keep_empty=rng.random() < 0.5,
            cache=self.folder / "cache",
        )
        dataset = CocoDataset(
            index=index, image_size=64, augment=AUGMENT, on_bad="skip", cache=self.folder / "cache"
        )
        samples = [dataset[(n, i)] for i in range(len(index))]
        check_batch(collate(samples, [(64, 64)]), len(index.categories))
        truth = index.coco_ground_truth()
        evaluate(json.loads(json.dumps(truth, allow_nan=False)), detections(truth))
        "\n".join(describe_unlearnable(index, unlearnable(index, 64, 112), 64)).encode()
        found = find_faults(index)
        "\n".join([*map(str, found.faults()), *notes({"train": found})]).encode()
        write_json(self.folder / "cleaned.json", cleaned(load_entries(self.file), found))
        summarize(read_objects(index, 64), [category.name for category in index.categories])
        again = read_index(
            self.folder / "cleaned.json", self.images, "error", cache=self.folder / "cache"
        )
        left = [fault for fault in find_faults(again).faults() if fault.kind not in MUTUAL]
        if left:
            raise AssertionError(f"the cleaned json has faults: {left}")
        return "read"

    def data_check(self) -> int:
        where = [f"data.train.images={self.images}", f"data.train.annotations={self.file}"]
        where += [
            f"cleaned={self.folder / 'by_command'}",
            f"out={self.folder / 'faults.json'}",
            "overwrite=true",
        ]
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with redirect_stdout(output), redirect_stderr(output):
            code = main(["data", "check", "data=coco_json", *where])
        output.flush()
        text = output.buffer.getvalue().decode()
        if code not in (0, 1, 2) or "Traceback" in text:
            raise AssertionError(f"data check: exit code {code}\n{text}")
        return code


# An annotation that is left out as a copy of one that has another fault, and the like.
MUTUAL = ("same annotation twice",)


class Results:
    """Reads and scores results of other tools."""

    def __init__(self, folder: Path) -> None:
        annotations, images = write_coco(folder, coco_dict())
        self.truth = read_index(
            annotations, images, "error", cache=folder / "cache"
        ).coco_ground_truth()
        self.results, self.file = detections(self.truth), folder / "results.json"

    def run(self, n: int) -> str:
        rng = random.Random(n)
        results: Any = copy.deepcopy(self.results[: rng.randint(1, len(self.results))])
        for _ in range(rng.choice([1, 1, 3])):
            if rng.random() < 0.02 or not isinstance(results, list):
                results = change(results, rng)
            else:
                place = rng.randrange(len(results) or 1)
                results[place:] = [
                    change(one, rng) for one in results[place : place + 1]
                ] + results[place + 1 :]
        self.file.write_text(json.dumps(results))
        evaluate(self.truth, read_results(self.file))
        return "scored"


def run(kind: str, folder: Path, first: int, count: int) -> dict[str, int]:
    cases = {"annotations": Annotations, "results": Results}[kind](folder)
    outcomes: Counter[str] = Counter()
    for n in range(first, first + count):
        (folder / "case").write_text(str(n))  # for whoever finds the process gone
        try:
            outcomes[cases.run(n)] += 1
        except UserError as error:
            if "\n" in str(error) or not str(error).encode():
                raise
            outcomes["refused in a sentence"] += 1
    return dict(outcomes)


if __name__ == "__main__":
    np.seterr(all="ignore")
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
