"""Seconds and memory of `maskrcnn-lit compare` over many run folders.

    python benchmarks/comparison.py --run RUN [--folders 1000] [--out DIR]

Copies a finished run into a grid of ten learning rates, ten weight decays and --seeds seeds each.
Twenty variants of its detections, each without another share of them, have scores of their own;
every folder has a config.yaml, a metrics.csv, a detections.json and a result.json that agree, as
`train` leaves them. Then `compare` runs in a process of its own, once without options and once with
a table of rows and columns. Prints one line of JSON.
"""

import argparse
import json
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_lit.config.stored import read_run_config
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.evaluation.bootstrap import intervals
from maskrcnn_lit.evaluation.coco.results import read_results, write_results
from maskrcnn_lit.evaluation.coco.scores import match_all, score_matches
from maskrcnn_lit.report.comparison.collect import read_runs, validation_index
from maskrcnn_lit.runs.result import RunResult, file_digests, read_result, write_result
from maskrcnn_lit.storage.files import config_digest

RATES, DECAYS, VARIANTS = 10, 10, 20

TABLE = ("rows=optimizer.weight_decay", "columns=optimizer.lr", "metric=val/mask_ap")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="keeps the folders, or takes those that it has")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.out or Path(temporary)
        if not (home / "runs").is_dir():
            copy_runs(arguments.run, home / "runs", arguments.folders, arguments.seeds)
        files = [file for file in (home / "runs").glob("*/*") if file.is_file()]
        report = {
            "benchmark": "comparison",
            "folders": len(list((home / "runs").iterdir())),
            "settings": min(RATES * DECAYS, -(-arguments.folders // arguments.seeds)),
            "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
            "report": compare(home / "runs", home / "report"),
            "table": compare(home / "runs", home / "table", *TABLE),
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        }
    print(json.dumps(report))


def copy_runs(run: Path, to: Path, folders: int, seeds: int) -> None:
    config, result = read_run_config(run), read_result(run / "result.json")
    (job,) = read_runs([run]).jobs
    index = validation_index(job)
    variants = [_variant(run, index, result, i, to.with_name("variants")) for i in range(VARIANTS)]
    for i in range(folders):
        seed, setting = i % seeds, i // seeds
        rate = 1e-4 * (1 + setting % RATES)
        decay = 1e-2 * (1 + setting // RATES)
        name = f"lr={rate:g},weight_decay={decay:g},seed={seed}"
        folder, scored = to / name, variants[(setting + seed) % VARIANTS]
        folder.mkdir(parents=True)
        shutil.copy(run / "metrics.csv", folder)
        shutil.copy(to.with_name("variants") / f"{(setting + seed) % VARIANTS}.json", folder)
        (folder / f"{(setting + seed) % VARIANTS}.json").rename(folder / "detections.json")
        own = _seeded(config, seed) | {"run_dir": str(folder)}
        own["optimizer"] = config["optimizer"] | {"lr": rate, "weight_decay": decay}
        (folder / "config.yaml").write_text(yaml.safe_dump(own, sort_keys=False))
        typed = [f"optimizer.lr={rate:g}", f"optimizer.weight_decay={decay:g}", f"seed={seed}"]
        write_result(
            folder / "result.json",
            replace(
                scored,
                seed=seed,
                overrides=[*result.overrides, *typed],
                config_sha256=config_digest(read_run_config(folder)),
                files=file_digests(folder),
            ),
        )


def _seeded(node: dict[str, Any], seed: int) -> dict[str, Any]:
    """A config in which every seed is this one."""
    return {
        key: seed if key == "seed" else _seeded(value, seed) if isinstance(value, dict) else value
        for key, value in node.items()
    }


def _variant(
    run: Path, index: AnnotationIndex, result: RunResult, number: int, home: Path
) -> RunResult:
    """The result of `run` with a share of its detections, which are written to home/NUMBER.json."""
    truth: dict[str, Any] = index.coco_ground_truth()
    drawn = random.Random(number)
    some = [one for one in read_results(run / "detections.json") if drawn.random() > number / 40]
    home.mkdir(parents=True, exist_ok=True)
    write_results(home / f"{number}.json", some)
    matches = match_all(truth, some, 100)
    metrics = score_matches(matches, truth["categories"], (1, 10, 100)).metrics
    return replace(result, metrics=result.metrics | metrics, intervals=intervals(matches))


def compare(runs: Path, out: Path, *options: str) -> dict[str, float]:
    """Wall seconds, processor seconds and peak memory of the command."""
    command = [sys.executable, "-m", "maskrcnn_lit", "compare", f"runs={runs}", f"out={out}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    subprocess.run([*command, "overwrite=true", *options], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "peak_mb": round(after.ru_maxrss / 1024),  # of the largest child so far
    }


if __name__ == "__main__":
    main()
