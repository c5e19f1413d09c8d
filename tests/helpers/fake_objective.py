"""A job of a search without a training: `python fake_objective.py RUN SECONDS OVERRIDE ...` writes
a result.json whose mask AP is a smooth function of optimizer.lr and backbone.
"""

import json
import math
import os
import sys
import time
from pathlib import Path


def main(run: Path, seconds: float, words: list[str]) -> None:
    typed = dict(word.split("=", 1) for word in words)
    time.sleep(seconds)
    distance = math.log10(float(typed["optimizer.lr"])) + 3
    score = 0.5 - 0.1 * distance**2 + 0.05 * (typed["backbone"] == "resnet34")
    run.mkdir(parents=True, exist_ok=True)
    content = {"status": "finished", "metrics": {"val/mask_ap": score}, "cost": {"seconds": 1.0}}
    part = run / f"part.{os.getpid()}"
    part.write_text(json.dumps(content))
    part.replace(run / "result.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
