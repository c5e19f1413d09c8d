"""Tables of what `evaluate run=RUN nms=all` wrote, over several seeds.

    python experiments/09_occlusion/suppression.py 'RUNS/shapes_0.5_base_*' ...

One table for each pattern of run folders: a row is a kind of suppression within each class, and its
numbers are means over the runs. `p` is the largest of the runs, of the paired bootstrap against box
suppression.
"""

import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

METRICS = {
    "mask AP": "val/mask_ap",
    "recall, in front": "val/recall_hidden_0",
    "recall, 0.1 to 0.4 hidden": "val/recall_hidden_10",
    "recall, 0.4 to 0.6 hidden": "val/recall_hidden_40",
    "recall, 0.6 to 0.85 hidden": "val/recall_hidden_60",
    "merged": "val/merged",
    "split": "val/split",
}
KINDS = [
    (kind, only)
    for only in (False, True)
    for kind in ("box", "mask", "soft", "matrix", "containment")
]


def main() -> None:
    for pattern in sys.argv[1:]:
        runs = [found for folder in sorted(glob.glob(pattern)) if (found := rows(Path(folder)))]
        print(f"\n{Path(pattern).name}: {len(runs)} runs\n")
        print(table(runs))


def rows(run: Path) -> list[dict[str, Any]]:
    """Of the latest evaluation that compared them."""
    for file in sorted(run.glob("evaluations/*/evaluation.json"), reverse=True):
        kinds = json.loads(file.read_text()).get("suppression")
        if kinds:
            return kinds
    return []


def table(runs: Sequence[Sequence[dict[str, Any]]]) -> str:
    used = {
        title: name
        for title, name in METRICS.items()
        if runs[0][0]["metrics"].get(name) is not None
    }
    lines = [f"| suppression | {' | '.join(used)} | p |", "|---" * (len(used) + 2) + "|"]
    for kind, exclusive in KINDS:
        same = [
            next(
                row
                for row in run
                if (row["nms"], row["agnostic_nms"], row["exclusive"]) == (kind, False, exclusive)
            )
            for run in runs
        ]
        numbers = [mean(row["metrics"][name] for row in same) for name in used.values()]
        digits = [
            f"{n:.0f}" if name in ("merged", "split") else f"{n:.3f}"
            for name, n in zip(used, numbers, strict=True)
        ]
        tested = [row["difference"]["p_value"] for row in same if row.get("difference")]
        p = "" if not tested else "< 0.001" if max(tested) < 0.001 else f"{max(tested):.3f}"
        lines.append(f"| {kind}{', exclusive' if exclusive else ''} | {' | '.join(digits)} | {p} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
