"""Seconds and memory to score a synthetic COCO val2017: boxes and masks, ours and pycocotools' in
turns.

    python benchmarks/scoring.py [--images 5000] [--detections 100] [--rounds 3] [--resamples 1000]

Images, objects and detections are drawn (seed 0) with COCO's statistics: 80 classes of very
different frequency, 7.3 objects an image, 41 % small, 34 % medium and 24 % large, one in a hundred
a crowd region, polygons of 20 corners; a detection has a box and a compressed mask. Each scoring is
a process of its own; the time is from the loaded lists to the twelve numbers of both, without
reading the files and without any inference; the memory is the peak of the process, the lists
included, before the intervals and after them. The intervals are ours alone. Prints one line of
JSON.
"""

import argparse
import contextlib
import io
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, OBJECTS, CROWD = 80, 7.3, 0.01
NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
NUMBERS += ("ar_small", "ar_medium", "ar_large")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument(
        "--score",
        choices=SCORERS,
        help="score DIR in this process; what the others are started with",
    )
    parser.add_argument("--folder", type=Path, help="DIR")
    arguments = parser.parse_args()
    if arguments.score:
        print(json.dumps(score(arguments.score, arguments.folder, arguments.resamples)))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), arguments.images, arguments.detections)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCORERS}
        for _ in range(arguments.rounds):
            for name in SCORERS:
                more = [
                    "--score",
                    name,
                    "--folder",
                    folder,
                    "--resamples",
                    str(arguments.resamples),
                ]
                done = subprocess.run(
                    [sys.executable, __file__, *more], check=True, stdout=subprocess.PIPE, text=True
                )
                rows[name].append(json.loads(done.stdout))
    print(json.dumps(report(arguments, rows)))


def report(arguments: argparse.Namespace, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    import torch

    from maskrcnn_lit.runs.provenance import package_commit, package_versions
    from maskrcnn_lit.training.devices import device_name

    seconds = {
        name: statistics.median(row["seconds"] for row in found) for name, found in rows.items()
    }
    cpu = {
        name: statistics.median(row["cpu_seconds"] for row in found) for name, found in rows.items()
    }
    ours, theirs = rows["maskrcnn_lit"][0]["numbers"], rows["pycocotools"][0]["numbers"]
    versions = package_versions()
    return {
        "benchmark": "scoring",
        "device": device_name(torch.device("cpu")),
        "versions": {"numpy": np.__version__, "pycocotools": versions["pycocotools"]},
        "python": platform.python_version(),
        "commit": package_commit(),
        "images": arguments.images,
        "detections": arguments.detections,
        "rounds": arguments.rounds,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "cpu_seconds": {name: round(value, 2) for name, value in cpu.items()},
        "times_faster": round(seconds["pycocotools"] / seconds["maskrcnn_lit"], 2),
        "peak_mb": {name: max(row["peak_mb"] for row in found) for name, found in rows.items()},
        "largest_difference": max(abs(ours[name] - theirs[name]) for name in theirs),
        "numbers": {name: round(value, 4) for name, value in ours.items()},
        "resamples": arguments.resamples,
        "peak_mb_with_intervals": max(
            row["peak_mb_with_intervals"] for row in rows["maskrcnn_lit"]
        ),
        "interval_seconds": statistics.median(
            row["interval_seconds"] for row in rows["maskrcnn_lit"]
        ),
        "interval_cpu_seconds": statistics.median(
            row["interval_cpu_seconds"] for row in rows["maskrcnn_lit"]
        ),
        "intervals": rows["maskrcnn_lit"][0]["intervals"],
    }


def score(name: str, folder: Path, resamples: int) -> dict[str, Any]:
    """Numbers, seconds and peak memory of one scoring."""
    truth = json.loads((folder / "truth.json").read_bytes())
    results = json.loads((folder / "results.json").read_bytes())
    start, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        numbers, matches = SCORERS[name](truth, results)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    found = {
        "numbers": numbers,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": peak_mb(),
    }
    if matches:
        from maskrcnn_lit.evaluation.bootstrap import bootstrap_ap

        start, cpu = time.perf_counter(), time.process_time()
        intervals = {
            kind: bootstrap_ap(matches[kind], resamples=resamples).interval for kind in matches
        }
        found |= {"intervals": intervals, "interval_seconds": round(time.perf_counter() - start, 2)}
        found["interval_cpu_seconds"] = round(time.process_time() - cpu, 2)
        found["peak_mb_with_intervals"] = peak_mb()
    return found


def peak_mb() -> int:
    """Of this process, until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def ours(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[dict[str, float], Any]:
    from maskrcnn_lit.evaluation.coco.scores import match_all, score_matches

    matches = match_all(truth, results)
    metrics = score_matches(matches, truth["categories"]).metrics
    return {name.removeprefix("val/"): value for name, value in metrics.items()}, matches


def pycocotools(
    truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[dict[str, float], Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    api, numbers = COCO(), {}
    api.dataset = truth
    api.createIndex()
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        if kind == "mask":  # it would take the area of the box for that of the mask
            results = [
                {key: value for key, value in entry.items() if key != "bbox"} for entry in results
            ]
        evaluation = COCOeval(api, api.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        numbers |= {
            f"{kind}_{name}": value
            for name, value in zip(NUMBERS, evaluation.stats.tolist(), strict=True)
        }
    return numbers, None


SCORERS = {"maskrcnn_lit": ours, "pycocotools": pycocotools}


def draw(folder: Path, images: int, detections: int) -> None:
    """truth.json and results.json."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()
    truth: dict[str, Any] = {
        "images": [
            {"id": n, "height": 480, "width": 640, "file_name": f"{n}.jpg"}
            for n in range(1, images + 1)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
        "annotations": [],
    }
    with open(folder / "results.json", "w") as file:
        for n in range(1, images + 1):
            count = min(rng.geometric(1 / OBJECTS), 60)
            labels, boxes = rng.choice(CLASSES, count, p=frequency), random_boxes(rng, count)
            corners, masks = shapes(rng, boxes)
            for label, outline, mask in zip(labels.tolist(), corners, masks, strict=True):
                truth["annotations"].append(
                    {
                        "id": len(truth["annotations"]) + 1,
                        "image_id": n,
                        "category_id": label + 1,
                        **extent(mask),
                    }
                    | {"iscrowd": int(rng.random() < CROWD), "segmentation": [outline]}
                )
            entries = detect(rng, n, labels, boxes, detections, frequency)
            file.write(("[" if n == 1 else ",\n") + json.dumps(entries)[1:-1])
        file.write("]")
    (folder / "truth.json").write_text(json.dumps(truth))


def detect(
    rng: Any, image: int, labels: Any, boxes: Any, count: int, frequency: Any
) -> list[dict[str, Any]]:
    """Up to three detections of each object, the rest nowhere: half of them of the image's
    classes.
    """
    near = rng.permutation(np.repeat(np.arange(len(labels)), rng.integers(0, 4, len(labels))))[
        :count
    ]
    spread = rng.choice([0.03, 0.1, 0.3], (len(near), 1))
    near_boxes = boxes[near] + rng.normal(0, 1, (len(near), 4)) * spread * np.tile(
        boxes[near][:, 2:], 2
    )
    rest = count - len(near)
    elsewhere = np.where(
        rng.random(rest) < 0.5, rng.choice(labels, rest), rng.choice(CLASSES, rest, p=frequency)
    )
    found = np.concatenate([near_boxes, random_boxes(rng, rest)])
    found[:, 2:] = found[:, 2:].clip(4)
    classes = np.concatenate(
        [np.where(rng.random(len(near)) < 0.9, labels[near], 0), elsewhere]
    ).tolist()
    scores = np.concatenate([rng.beta(2, 2, len(near)), rng.beta(1, 8, rest)]).tolist()
    masks = shapes(rng, found)[1]
    return [
        {"image_id": image, "category_id": label + 1, "bbox": box, "score": score}
        | {"segmentation": {"size": mask["size"], "counts": mask["counts"].decode()}}
        for label, box, score, mask in zip(classes, found.tolist(), scores, masks, strict=True)
    ]


def random_boxes(rng: Any, count: int) -> Any:
    """count 4, x y w h, of COCO's sizes, in an image of 640 x 480."""
    kind = rng.choice(3, count, p=[0.42, 0.34, 0.24])
    side = np.exp(rng.uniform(np.log([8.0, 36.0, 108.0])[kind], np.log([36.0, 108.0, 420.0])[kind]))
    sides = np.stack([side, side], 1) * np.exp(rng.normal(0, 0.3, (count, 1)) * [1, -1])
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * ([640, 480] - sides).clip(1), sides], 1)


def shapes(rng: Any, boxes: Any) -> tuple[list[list[float]], list[dict[str, Any]]]:
    """Blobs of 20 corners inside the boxes: polygons, and compressed masks."""
    from pycocotools import mask as rle_tools

    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    radius = rng.uniform(0.75, 1.0, (len(boxes), 20)) / 2
    points = np.stack([0.5 + radius * np.cos(angles), 0.5 + radius * np.sin(angles)], 2)  # N 20 2
    points = (points * boxes[:, None, 2:] + boxes[:, None, :2]).clip(0, [640, 480])
    corners = points.reshape(len(boxes), 40).round(2).tolist()
    return corners, rle_tools.frPyObjects(corners, 480, 640) if corners else []


def extent(mask: dict[str, Any]) -> dict[str, Any]:
    from pycocotools import mask as rle_tools

    return {"bbox": rle_tools.toBbox(mask).tolist(), "area": int(rle_tools.area(mask))}


if __name__ == "__main__":
    main()
