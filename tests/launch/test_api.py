"""The commands from Python."""

from pathlib import Path

import pytest
import torch
from models import make_batch
from tiny_commands import MODEL, SCHEDULE

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.api import build_model, evaluate, train
from maskrcnn_lit.runs.result import RunResult

pytest_plugins = ("tiny_commands", "plain_plots")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("plain_plots")]


def test_a_model_is_built_from_options():
    model = build_model("backbone=resnet18", "model=tiny", num_classes=3)
    losses = model(make_batch()).losses
    assert all(torch.isfinite(value) for value in losses.values())
    with pytest.raises(UserError, match="num_classes=0"):
        build_model("backbone=resnet18", num_classes=0)
    with pytest.raises(UserError, match="did you mean resnet18"):
        build_model("backbone=resnet81", num_classes=1)


def test_training_and_evaluation_return_results(strange: Path, run_dir: Path):
    from tiny_commands import coco_data

    options = (*coco_data(strange), *MODEL, *SCHEDULE)
    trained = train(*options, run_dir=run_dir, seed=2)
    assert isinstance(trained, RunResult)
    assert (trained.status, trained.run_dir, trained.seed) == ("finished", str(run_dir), 2)
    scored = evaluate(run=run_dir, checkpoint="last", report=False)
    assert scored.metrics["val/mask_ap"] == trained.metrics["val/mask_ap"]
    assert Path(str(scored.run_dir), "evaluation.json").is_file()
    assert scored.data["val"] == trained.data["val"]


def test_a_mistake_is_an_exception():
    with pytest.raises(UserError, match=r"did you mean trainer.epochs"):
        train("trainer.epoch=3")
    with pytest.raises(UserError, match="give options as text"):
        train({"trainer": {"epochs": 3}})  # type: ignore[arg-type]
