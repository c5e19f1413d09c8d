"""The speed table of docs/measured.md, from benchmarks/results/: a row for each
measurement.

    python benchmarks/table.py

It stands between the marks <!-- speed --> and <!-- /speed -->, and a test holds that it is what
this prints.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
HEAD = ("what", "ours", "torchvision's", "times as fast", "where, when")
SPOTS = {
    "matching": "matching of all anchors with 20 objects an image",
    "sampling": "sampling of 256 anchors an image",
    "suppression": "suppression in 1000 proposals an image, as in training",
    "roi_align": "RoIAlign over four levels, 512 regions an image",
    "roi_align_and_backward": "the same RoIAlign and its backward pass",
    "mask_targets": "mask targets of 64 regions an image",
    "mask_head": "mask head on 64 regions",
    "post_processing": "post-processing of 1000 regions an image",
}


def main() -> None:
    print("\n".join(lines()))


def lines() -> list[str]:
    reports = [
        json.loads(line)
        for path in sorted(RESULTS.glob("*.json"))
        for line in path.read_text().splitlines()
    ]
    rows = [row for report in reports for row in of(report)]
    return [f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *rows)]


def of(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows of a result; none if it is of another kind, or does not say when it was measured."""
    makers = {"inference": inference, "hot_spots": hot_spots, "train_step": train_step}
    if report["benchmark"] in makers and "date" in report:
        where = f"{report['device']}, {report['date']}"
        for row in makers[report["benchmark"]](report):
            yield (*row, where)


def inference(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    height, width = report["size"]
    counts = sorted(report["detections"])
    # The processor's time on the CPU, which others may use too; a GPU is waited for, so there it is
    # the clock's.
    times = report["milliseconds" if "thread" not in report["device"] else "cpu_milliseconds"]
    found = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else f"{counts[0]}"
    what = f"inference, R50-FPN, one image of {height} x {width}, {found} detections"
    yield what, *_both(times)


def hot_spots(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    height, width = report["size"]
    for name, times in report["milliseconds"].items():
        if name in report.get("differ", ()):
            continue
        yield f"{SPOTS[name]}, {report['batch']} x {height} x {width}", *_both(times)


def train_step(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    count, _, height, width = report["images"]
    key = "seconds" if "thread" not in report["device"] else "cpu_seconds"
    times = {who: 1000 * seconds for who, seconds in report[key].items()}
    ours, theirs = (report["regions"][who] for who in ("maskrcnn_lit", "torchvision"))
    regions = (
        f"{ours} regions an image"
        if ours == theirs
        else f"{ours} regions an image against {theirs}"
    )
    how = {"off": "", "auto": ", compiled", "graphs": ", compiled, CUDA graphs"}[report["compile"]]
    yield (
        f"training step, R50-FPN, {count} x {height} x {width}, {regions}, "
        f"{report['precision']}{how}",
        *_both(times),
    )


def _both(times: dict[str, float]) -> tuple[str, str, str]:
    ours, theirs = times["maskrcnn_lit"], times["torchvision"]
    return _shown(ours), _shown(theirs), f"{theirs / ours:.2f}"


def _shown(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


if __name__ == "__main__":
    main()
