"""The commands as Python functions: build a model, train, evaluate.

    from maskrcnn_lit import build_model, evaluate, train

    result = train("experiment=demo", "trainer.epochs=2")
    print(result.metrics["val/mask_ap"], result.run_dir)
    print(evaluate(f"run={result.run_dir}").metrics["val/mask_ap"])

Options are those of the command line (`maskrcnn-lit train --help`), as "NAME=VALUE" or, for names
without a dot, as keyword arguments.
"""

from pathlib import Path
from typing import Any

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.config.overrides import assign
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.launch import evaluate as evaluation
from maskrcnn_lit.launch import train as training
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.runs.result import RunResult, read_result


def build_model(*options: str, num_classes: int, **named: Any) -> MaskRCNN:
    """A new model with random weights, on the CPU, in training mode.

    Args:
        options: of `maskrcnn-lit train`, for example "backbone=resnet18", "model=tiny".
        num_classes: K, without background; labels are 1..K.

    In training mode `model(batch)` returns an Output with five losses, in evaluation mode one with
    detections; maskrcnn_lit/data/batch.py defines a batch.

    Raises:
        UserError: an unknown option or a value that is not allowed.
    """
    check_whole(1, num_classes=num_classes)
    config = compose("train", _words("train", options, named))
    config.model.num_classes = num_classes
    model: MaskRCNN = build(config.model)
    return model


def train(*options: str, **named: Any) -> RunResult:
    """Train, score and write a run folder, as `maskrcnn-lit train OPTIONS` does.

    Returns:
        the content of result.json: metrics by name (val/mask_ap, ...), intervals, cost, data,
        versions; and `run_dir`, the folder.

    Raises:
        UserError: wrong options or faulty data.
    """
    words = _words("train", options, named)
    run_dir = training.train(compose("train", words), words, ["maskrcnn-lit", "train", *words])
    return _with_folder(read_result(run_dir / "result.json"), run_dir)


def evaluate(*options: str, **named: Any) -> RunResult:
    """COCO AP, as `maskrcnn-lit evaluate OPTIONS` computes it: evaluate(run="outputs/...").

    Returns:
        metrics by name (val/mask_ap, ...), intervals, data; and `run_dir`, the folder of
        evaluation.json, detections.json and report.html.

    Raises:
        UserError: wrong options, an unusable run or faulty data.
    """
    words = _words("evaluate", options, named)
    return evaluation.evaluate(compose("evaluate", words), words)


def _words(command: str, options: tuple[str, ...], named: dict[str, Any]) -> list[str]:
    for text in options:
        if not isinstance(text, str):
            raise UserError(f"{command}({text!r}): give options as text, 'NAME=VALUE'")
    return [*options, *(assign(name, _typed(value)) for name, value in named.items())]


def _typed(value: Any) -> Any:
    """A Python value as a user would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value


def _with_folder(result: RunResult, run_dir: Path) -> RunResult:
    result.run_dir = str(run_dir)
    return result
