"""What a job is made of: the data that its config names, and a model for their classes. (Whole
runs: test_train.py.)
"""

import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from tiny_commands import MODEL, TRAIN_IMAGES, VAL_IMAGES, coco_data, run_command, shapes_data

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.run import _next_steps, build_module, read_data
from maskrcnn_lit.runs.folder import freeze_config
from maskrcnn_lit.runs.provenance import describe_datamodule
from maskrcnn_lit.runs.result import RunResult, read_result

pytest_plugins = ("tiny_commands",)


def test_the_data_are_read_and_the_model_is_for_their_classes(strange: Path):
    config = freeze_config(compose("train", [*coco_data(strange), *MODEL, "run_dir=there"]))
    data = read_data(config)
    told = describe_datamodule(data)
    assert (told["train"]["images"], told["val"]["images"]) == (TRAIN_IMAGES, VAL_IMAGES)
    torch.manual_seed(0)
    module = build_module(config, data)
    assert module.categories == tuple(data.categories)
    assert (
        module.model.box_head.num_classes
        == len(data.categories)
        == module.config["model"]["num_classes"]
    )
    assert module.config["run_dir"] == "there"
    assert "sweep" not in module.config


def test_images_chosen_by_id_may_be_of_one_part_alone(test_data: Path, tmp_path: Path):
    ids = [223747, 318080, 346638, 416256]
    (tmp_path / "annotations").symlink_to(test_data / "coco_mini" / "annotations")
    (tmp_path / "train2017").mkdir()
    (tmp_path / "val2017").mkdir()
    for number in ids:
        shutil.copy(test_data / "coco_mini" / "val2017" / f"{number:012}.jpg", tmp_path / "val2017")
    config = freeze_config(compose("train", ["experiment=overfit", f"data.root={tmp_path}"]))
    assert read_data(config).subset_ids() == {"train": ids, "val": ids}


def test_another_number_of_classes_is_a_mistake(strange: Path):
    config = freeze_config(compose("train", [*coco_data(strange), *MODEL, "model.num_classes=80"]))
    with pytest.raises(
        UserError, match=r"model\.num_classes=80, but the data have \d+ categories: leave it out"
    ):
        read_data(config)


@pytest.mark.parametrize("folder", ["runs/a", "runs/a b", "runs/a,b"])
def test_after_own_data_the_next_steps_are_of_that_run(folder: str):
    result = RunResult("finished", data={"name": "mine", "val": {"images": 3}})
    lines = [shlex.split(line) for line in _next_steps(result, folder).splitlines()[1:]]
    assert [Path(words[0]).name for words in lines] == ["tensorboard", *["maskrcnn-lit"] * 3]
    assert [words[1] for words in lines] == ["--logdir", "evaluate", "predict", "compare"]
    for words in lines[1:]:
        composed = compose(words[1], words[2:])
        assert (composed.runs[0] if words[1] == "compare" else composed.run) == folder


def test_after_the_synthetic_data_the_next_steps_are_real_ones():
    result = RunResult("finished", data={"name": "shapes", "val": {"images": 3}})
    lines = _next_steps(result, "runs/a").splitlines()
    assert any("train experiment=finetune data.train.images=DIR" in line for line in lines)
    assert any("train data=coco2017 data.root=DIR" in line for line in lines)


@pytest.mark.long
def test_the_result_says_that_features_came_from_a_cache(
    strange: Path, run_dir: Path, tmp_path: Path
):
    """The run ends as any other: with a picture, and with weights that are evaluated on images."""
    options = ("augment=none", "augment.flip=0.5", "data.feature_cache=uint8", "trainer.epochs=1")
    where = (f"run_dir={run_dir}", f"data.cache_dir={tmp_path / 'cache'}")
    frozen = "backbone.freeze_at=all"
    run_command("train", *coco_data(strange), *MODEL, frozen, *options, *where)
    result = read_result(run_dir / "result.json")
    cache = result.cost["feature_cache"]
    assert cache["dtype"] == "uint8"
    assert cache["views"] == 2 * TRAIN_IMAGES + VAL_IMAGES
    assert cache["computed"] == cache["views"]
    assert cache["gigabytes"] > 0
    assert (run_dir / "predictions.png").is_file()
    assert result.cost["flops"] > 0
    run_command("evaluate", f"run={run_dir}", "checkpoint=last", "report=false")
    run_command("train", *coco_data(strange), *MODEL, *options, *where[1:], code=2)


@pytest.mark.long
@pytest.mark.process  # loaders
def test_a_check_runs_everything_and_counts_what_it_scored(
    shapes: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
):
    options = ("data.batch_size=1", "trainer.check=true", f"run_dir={run_dir}")
    run_command("train", *shapes_data(shapes), *MODEL, *options)
    printed = capsys.readouterr().out
    assert "Trained 2 steps" in printed
    assert "on 2 validation images of shapes" in printed
    assert {"result.json", "predictions.png", "detections.json"} <= set(os.listdir(run_dir))
