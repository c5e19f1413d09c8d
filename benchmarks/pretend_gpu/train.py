"""`maskrcnn-lit train` on the pretend GPU, from its start to its end.

    python benchmarks/pretend_gpu/pretend_gpu.py benchmarks/pretend_gpu/train.py OPTION=VALUE ...

The options are those of `maskrcnn-lit train`; the model finds nothing, as its values mean nothing.
Prints one line of JSON at the end: seconds and graphs of torch.compile, launches and waits of the
last training step and of the last validation batch, and the cost that result.json has.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pretend_gpu
import torch
from lightning.pytorch import Callback

from maskrcnn_lit.callbacks import coco_evaluation
from maskrcnn_lit.cli.main import main
from maskrcnn_lit.launch import run
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.report import pictures
from maskrcnn_lit.training.nonfinite import FiniteGuard


class Watch(Callback):
    """What the host does in the steps."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.answers: dict[str, Any] = {"steps": [], "waits": [], "run_dir": None}

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()
        pretend_gpu.reset()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.answers["run_dir"] = trainer.default_root_dir
        self.answers["steps"].append(round(time.perf_counter() - self.started, 3))
        self.answers["step"] = pretend_gpu.summary()
        self.answers["waits"].append(sum(self.answers["step"]["waits"].values()))
        self.answers["graphs_of_training"] = graphs()

    def on_validation_batch_start(self, *_: Any) -> None:
        pretend_gpu.reset()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.answers["validation_batch"] = pretend_gpu.summary()

    def on_fit_end(self, *_: Any) -> None:
        self.answers["graphs_of_fit"] = graphs()
        self.answers["seconds_of_fit"] = round(time.perf_counter() - self.began, 1)


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compiled() -> list[Any]:
    """Of each graph: the region, whether it is of a backward pass, seconds."""
    rows = torch._dynamo.utils.get_compilation_metrics()
    return [
        (row.co_name, row.is_forward is False, round((row.duration_us or 0) / 1e6, 1))
        for row in rows
    ]


def nothing_found(detections: dict[str, Any], batch: Any) -> list[dict[str, Any]]:
    """In the place of `to_original`: labels and boxes of a pretend GPU are any numbers."""
    empty = {key: torch.zeros(value.shape) for key, value in detections.items()}
    empty["valid"] = empty["valid"].bool()
    return to_original(empty, {key: value.cpu() for key, value in batch.items()})


def no_flags(guard: FiniteGuard) -> None:
    """In the place of reading whether a step was finite."""
    while guard._steps and (guard._steps[0].copied is None or guard._steps[0].copied.query()):
        guard._steps.popleft()


def watched(watch: Watch) -> Any:
    def build_trainer(*, callbacks: list[Any], **options: Any) -> Any:
        return plain(callbacks=[*callbacks, watch], **options)

    plain = run.build_trainer
    return build_trainer


if __name__ == "__main__":
    watch = Watch()
    run.build_trainer = watched(watch)
    FiniteGuard._first_bad = no_flags  # type: ignore[method-assign]
    coco_evaluation.to_original = pictures.to_original = nothing_found
    code = main(["train", *sys.argv[1:]])
    answers = watch.answers
    if code == 0:
        folder = Path(answers["run_dir"])
        answers["cost"] = json.loads((folder / "result.json").read_text())["cost"]
        answers["predictions"] = (folder / "predictions.png").is_file()
    answers |= {
        "graphs": graphs(),
        "graph_breaks": dict(torch._dynamo.utils.counters["graph_break"]),
        "compile_seconds": torch._dynamo.utils.calculate_time_spent(),
        "compiled": compiled(),
        "caches": {
            name: count
            for kind in ("inductor", "aot_autograd")
            for name, count in torch._dynamo.utils.counters[kind].items()
            if "cache" in name
        },
        "seconds": round(time.perf_counter() - watch.began, 1),
    }
    print(json.dumps(answers))
    sys.exit(code)
