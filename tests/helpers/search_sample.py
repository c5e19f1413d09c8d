"""A search of made-up trials, as sweep.json describes it, and the jobs of its runs."""

import math
from pathlib import Path
from typing import Any

from maskrcnn_lit.report.comparison.search import SearchRecord, read_record
from maskrcnn_lit.report.comparison.settings import Job
from maskrcnn_lit.runs.result import RunResult

GOALS = ("val/mask_ap:max", "cost/latency_seconds:min")
NETS = ("resnet50", "mobilenet_v3_large")


def content(goals: int = 1, trials: int = 12) -> dict[str, Any]:
    """Of sweep.json: every third trial is pruned, the last one has failed."""
    tried = []
    for n in range(trials):
        lr = 1e-5 * 10 ** (3 * ((n * 7) % trials) / trials)
        net = NETS[n % 2]
        score = 0.4 - 0.05 * (math.log10(lr) + 3.5) ** 2 - 0.02 * (n % 2)
        state = "failed" if n == trials - 1 else "pruned" if n % 3 == 2 else "complete"
        tried.append(
            {
                "number": n,
                "name": f"{n:03d}",
                "state": state,
                "params": {"optimizer.lr": lr, "backbone": net, "model.fpn.channels": 64 + n},
                "values": [score, 0.04 - 0.03 * (n % 2)][:goals] if state == "complete" else None,
                "validations": [score / 3, score / 2] if state == "pruned" else [],
                "retry_of": None,
                "started": f"2026-11-29T10:{n:02d}:00",
                "ended": f"2026-11-29T10:{n:02d}:50",
            }
        )
    shares = {"optimizer.lr": 0.7, "backbone": 0.2, "model.fpn.channels": 0.1}
    return {
        "method": "tpe",
        "goals": list(GOALS[:goals]),
        "prune": [1, 3],
        "space": {
            "backbone": {"values": list(NETS)},
            "optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True, "whole": False},
            "model.fpn.channels": {"low": 64, "high": 256, "log": False, "whole": True},
        },
        "trials": tried,
        "importance": {goal.partition(":")[0]: shares for goal in GOALS[:goals]},
    }


def jobs(folder: Path, trials: int = 12) -> list[Job]:
    """Each trained for 50 seconds, the pruned ones for 20."""
    seconds = [20.0 if n % 3 == 2 else 50.0 for n in range(trials)]
    return [
        Job(f"{n:03d}", folder / f"{n:03d}", (), {}, RunResult("finished", cost={"seconds": own}))
        for n, own in enumerate(seconds)
    ]


def record(goals: int = 1, trials: int = 12) -> SearchRecord:
    return read_record(content(goals, trials), Path("there"), jobs(Path("there"), trials))
