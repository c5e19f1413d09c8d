"""`maskrcnn-lit train` from end to end, on a few small pictures."""

import errno
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter
from tiny_commands import (
    BACKBONE,
    EPOCHS,
    MODEL,
    SCHEDULE,
    SIZE,
    STEPS,
    TINY,
    TRAIN_IMAGES,
    VAL_IMAGES,
    checkpoint,
    coco_data,
    environment,
    ground_truth,
    metric_rows,
    one_sentence,
    refused,
    result,
    run_command,
    run_script,
    same,
    script,
    shapes_data,
    whole_run,
)

from maskrcnn_lit import __version__
from maskrcnn_lit.config.stored import load_run_config
from maskrcnn_lit.data.datasets.shapes import NAMES
from maskrcnn_lit.launch.train import _new_folder
from maskrcnn_lit.runs.result import read_result, write_result
from maskrcnn_lit.storage.files import file_digest
from maskrcnn_lit.training import compile as compiling
from maskrcnn_lit.training.checkpoint_files import load_plain, save_plain
from maskrcnn_lit.training.module import DetectionModule
from maskrcnn_lit.training.optimizer import warmup_cosine

pytest_plugins = ("tiny_commands",)

LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")


@pytest.fixture(scope="module")
def trained(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of the model of the other runs, which are compared with it."""
    yield from whole_run(strange, tmp_path_factory.mktemp("whole"), BACKBONE)


# The run folder


def test_a_run_folder_is_whole(trained: Path):
    expected = {
        "config.yaml",
        "subset_ids.json",
        "checkpoints",
        "metrics.csv",
        "result.json",
    }
    names = {path.name for path in trained.iterdir()}
    (events,) = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names - {events} == expected | {
        "detections.json",
        "predictions.png",
        ".lock",
    }
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


def test_the_config_is_resolved(trained: Path, strange: Path):
    assert "${" not in (trained / "config.yaml").read_text()
    config = load_run_config(trained)
    assert config.run_dir == str(trained)
    assert config.data.root == str(strange)
    assert config.model.num_classes == 6


def test_the_chosen_images_are_recorded_by_their_ids(trained: Path, strange: Path):
    expected = {
        part: {image["id"] for image in ground_truth(strange, part)["images"]}
        for part in ("train", "val")
    }
    chosen = json.loads((trained / "subset_ids.json").read_text())
    assert {part: set(ids) for part, ids in chosen.items()} == expected
    assert [len(ids) for ids in chosen.values()] == [TRAIN_IMAGES, VAL_IMAGES]


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) in (str, int) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_hold_plain_types_the_config_and_the_classes(
    trained: Path, strange: Path, name: str
):
    saved = checkpoint(trained, name)  # loads with weights_only=True
    assert all(is_plain(value) for value in saved.values()), [
        key for key in saved if not is_plain(saved[key])
    ]
    assert saved["config"]["backbone"]["name"] == BACKBONE
    categories = sorted(
        (entry["name"], entry["id"]) for entry in ground_truth(strange)["categories"]
    )
    assert saved["categories"] == [[number, name] for name, number in categories]
    assert saved["global_step"] == STEPS or name == "best"


def test_tensorboard_has_the_names_that_stay(trained: Path, strange: Path):
    events = EventAccumulator(str(trained), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    names = {f"{part}/loss_{loss}" for part in ("train", "val") for loss in LOSSES}
    names |= {
        f"val/{kind}_{ap}"
        for kind in ("box", "mask")
        for ap in ("ap", "ap50", "ap75", "ap_small", "ar100")
    }
    names |= {
        "train/loss",
        "val/loss",
        "val/roi_accuracy",
        "lr/backbone",
        "lr/heads",
        "train/gradient_norm",
    }
    names |= {"speed/images_per_second", "speed/data_wait"}
    assert names <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss_mask")] == list(range(STEPS))
    assert [event.step for event in events.Scalars("val/mask_ap")] == [
        STEPS // EPOCHS - 1,
        STEPS - 1,
    ]
    assert all(0 <= event.value <= 1 for event in events.Scalars("speed/data_wait"))
    images = {f"val_images/{image['id']}" for image in ground_truth(strange)["images"]}
    plots = {f"val_plots/{name}" for name in ("class_ap", "confusion", "precision_recall")}
    assert images | plots == set(tags["images"])
    assert len(events.Images(min(images))) == EPOCHS


def test_tensorboard_has_the_hyperparameters_with_the_final_metrics(trained: Path):
    events = EventAccumulator(str(trained)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["backbone"].string_value == BACKBONE
    assert values["optimizer.lr"].number_value == 4e-3
    assert values["train_images"].number_value == TRAIN_IMAGES
    metrics = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    )
    assert "val/mask_ap" in {metric.name.tag for metric in metrics.experiment.metric_infos}


def test_metrics_csv_has_a_row_for_each_step_and_validation(trained: Path):
    rows = metric_rows(trained)
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    assert steps == list(range(STEPS))
    validations = [row for row in rows if row["val/mask_ap"]]
    assert [int(row["step"]) for row in validations] == [STEPS // EPOCHS - 1, STEPS - 1]
    for row in rows:
        part = "train" if row["train/loss"] else "val"
        assert float(row[f"{part}/loss"]) == pytest.approx(
            sum(float(row[f"{part}/loss_{name}"]) for name in LOSSES)
        )


def test_the_result_says_what_was_run_and_reached(trained: Path, strange: Path):
    found = result(trained)
    assert found["status"] == "finished"
    assert found["seed"] == 1
    assert "model=tiny" in found["overrides"]
    assert f"run_dir={trained}" in found["overrides"]
    assert found["versions"]["maskrcnn_lit"] == __version__
    assert found["versions"]["torch"] == str(torch.__version__)
    commit = {"hash", "dirty", "diff", "untracked"}  # none where the code is in no commit
    assert set(found["commit"] or commit) == commit
    assert found["machine"]["processes"] == 1
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["data"]["name"] == "coco_json"
    assert found["data"]["train"]["images"] == TRAIN_IMAGES
    assert found["data"]["val"]["images"] == VAL_IMAGES
    for part in ("train", "val"):
        assert {"images", "ids_sha256", "annotations_sha256", "images_sha256"} == set(
            found["data"][part]
        )
    ids = {entry["name"]: entry["id"] for entry in ground_truth(strange)["categories"]}
    assert {name: number for number, name in found["data"]["categories"]} == ids
    assert found["cost"]["parameters"] > 1e6
    assert found["cost"]["seconds"] > 0
    assert found["cost"]["images_per_second"] * found["cost"]["seconds"] == pytest.approx(STEPS * 2)
    assert found["cost"]["inference_size"] == [SIZE, SIZE]
    assert found["cost"]["inference_batch"] == 2
    assert found["cost"]["flops"] > 1e8
    assert found["cost"]["latency_seconds"] > 0
    assert found["cost"]["inference_images_per_second"] > 0
    assert found["cost"]["energy_joules"] is None
    for name in ("val/box_ap", "val/mask_ap"):
        low, high = found["intervals"][name]
        assert 0 <= low <= found["metrics"][name] <= high <= 1
    last = [row for row in metric_rows(trained) if row["val/loss"]][-1]
    for name in ("val/loss", "val/mask_ap", "val/box_ap50", "val/roi_accuracy"):
        assert found["metrics"][name] == pytest.approx(float(last[name]), rel=1e-6)


def test_pycocotools_reads_the_detections_and_scores_them_alike(trained: Path, strange: Path):
    """All twelve numbers. Masks without their boxes, as README says: pycocotools would size them by
    the box.
    """
    truth = COCO(strange / "annotations" / "instances_val.json")
    entries = json.loads((trained / "detections.json").read_text())
    assert len(entries) > 0
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    names += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
    for iou_type, kind, unread in (("bbox", "box", "segmentation"), ("segm", "mask", "bbox")):
        found = truth.loadRes(
            [{key: value for key, value in e.items() if key != unread} for e in entries]
        )
        scored = COCOeval(truth, found, iou_type)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        for name, expected in zip(names, scored.stats, strict=True):
            ours = result(trained)["metrics"][f"val/{kind}_{name}"]
            assert (ours is None and expected == -1) or ours == pytest.approx(expected, abs=1e-9), (
                name
            )


def test_predictions_are_drawn(trained: Path):
    picture = np.asarray(Image.open(trained / "predictions.png"))
    height, width, channels = picture.shape
    assert channels == 3
    assert width >= 4 * 64
    assert height >= 2 * 64  # three pairs of pictures in two columns
    assert len(np.unique(picture[::8, ::8].reshape(-1, 3), axis=0)) > 100


# Quick looks during training


@pytest.mark.long
def test_quick_looks_during_training_and_everything_at_the_end(
    trained: Path, strange: Path, run_dir: Path
):
    """The weights are those of the run with whole validations, and so are its final scores."""
    looks = ("evaluation.images=2", "evaluation.every_n_epochs=1")
    run_command("train", *coco_data(strange), *TINY, *SCHEDULE, *looks, f"run_dir={run_dir}")
    rows = [row for row in metric_rows(run_dir) if row["val/images"]]
    assert [float(row["val/images"]) for row in rows] == [2, 2, VAL_IMAGES]
    assert [int(row["step"]) for row in rows] == [STEPS // EPOCHS - 1, STEPS - 1, STEPS]
    assert same(checkpoint(run_dir)["state_dict"], checkpoint(trained)["state_dict"])
    ours, theirs = result(run_dir)["metrics"], result(trained)["metrics"]
    assert ours.pop("val/evaluation_seconds")
    assert theirs.pop("val/evaluation_seconds")
    assert ours == pytest.approx(theirs, nan_ok=True)
    assert ours["val/images"] == VAL_IMAGES
    assert (run_dir / "detections.json").read_bytes() == (trained / "detections.json").read_bytes()
    best = max(float(row["val/mask_ap"]) for row in rows[:2])  # by the quick looks
    assert checkpoint(run_dir, "best")["callbacks"]["RunCheckpoints"]["best"] == pytest.approx(best)
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0}).Reload()
    assert (
        len([tag for tag in events.Tags()["images"] if tag.startswith("val_images/")]) == 2
    )  # of those looked at
    for tag in ("val_plots/class_ap", "val_plots/precision_recall"):
        assert [event.step for event in events.Images(tag)] == [int(row["step"]) for row in rows]
    assert [event.step for event in events.Scalars("val/mask_ap")] == [
        int(row["step"]) for row in rows
    ]


@pytest.mark.long
def test_no_look_during_training(strange: Path, run_dir: Path):
    """Every third epoch of two: the end alone is scored."""
    run_command(
        "train",
        *coco_data(strange),
        *MODEL,
        *SCHEDULE,
        "evaluation.every_n_epochs=3",
        f"run_dir={run_dir}",
    )
    rows = [row for row in metric_rows(run_dir) if row["val/images"]]
    assert [(int(row["step"]), float(row["val/images"])) for row in rows] == [(STEPS, VAL_IMAGES)]
    assert not (run_dir / "checkpoints" / "best.ckpt").exists()


# The same numbers again


@pytest.mark.long
def test_a_seed_gives_the_same_weights_again_and_another_one_others(
    trained: Path, strange: Path, run_dir: Path
):
    run = ("train", *coco_data(strange), *MODEL, *SCHEDULE)
    run_command(*run, f"run_dir={run_dir}/b", "model.weights=none")  # as null
    run_command(*run, f"run_dir={run_dir}/c", "seed=2", "trainer.steps=1")
    a, b, c = (
        checkpoint(folder)["state_dict"] for folder in (trained, run_dir / "b", run_dir / "c")
    )
    assert same(a, b)
    assert metric_rows(trained) == metric_rows(run_dir / "b")
    first = next(name for name in a if name.startswith("model.backbone.body."))
    for name in (first, "model.box_head.fcs.0.weight"):
        assert not same(a[name], c[name]), name


@pytest.mark.long
def test_a_run_whose_model_is_compiled_is_the_same_and_resumes(
    strange: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """All of a run, as a GPU has it: captured in graphs of fixed shapes, which torch's own
    operators then run.
    """
    monkeypatch.setattr(
        compiling, "compile_regions", partial(compiling.compile_regions, backend="eager")
    )
    run = ("train", *coco_data(strange), *MODEL, *SCHEDULE, "trainer.epochs=1")
    run_command(*run, f"run_dir={run_dir}/plain")
    run_command(*run, f"run_dir={run_dir}/compiled", "trainer.compile=always")
    plain, compiled = (result(run_dir / name) for name in ("plain", "compiled"))
    assert plain["cost"]["flops"] == compiled["cost"]["flops"]
    for name in ("val/loss", "val/mask_ap", "val/box_ap"):
        assert compiled["metrics"][name] == pytest.approx(
            plain["metrics"][name], rel=1e-3, abs=1e-3
        ), name
    file = run_dir / "compiled" / "result.json"
    write_result(file, replace(read_result(file), status="failed"))  # as if killed at its end
    run_command("train", f"resume={run_dir}/compiled")
    assert result(run_dir / "compiled")["metrics"]["val/loss"] == pytest.approx(
        compiled["metrics"]["val/loss"]
    )


@pytest.mark.long
def test_any_numbering_of_the_data_trains_alike(
    trained: Path, strange: Path, shapes: Path, run_dir: Path
):
    """`strange` has the pictures of `shapes` under huge, shuffled ids, its lists in another
    order.
    """
    run_command("train", *shapes_data(shapes), *MODEL, *SCHEDULE, f"run_dir={run_dir}")
    assert metric_rows(run_dir) == metric_rows(trained)
    assert same(checkpoint(run_dir)["state_dict"], checkpoint(trained)["state_dict"])
    theirs, ours = result(trained)["metrics"], result(run_dir)["metrics"]
    assert theirs.pop("val/evaluation_seconds")
    assert ours.pop("val/evaluation_seconds")
    assert theirs == ours
    assert by_names(run_dir, ground_truth(shapes)) == by_names(trained, ground_truth(strange))


def by_names(run_dir: Path, truth: dict[str, Any]) -> list[Any]:
    """The detections of a run, told by file and class name instead of the ids of `truth`."""
    files = {image["id"]: image["file_name"] for image in truth["images"]}
    classes = {category["id"]: category["name"] for category in truth["categories"]}
    found = json.loads((run_dir / "detections.json").read_text())
    assert found
    assert {entry["image_id"] for entry in found} <= set(files)
    told = [
        [
            files[e["image_id"]],
            classes[e["category_id"]],
            e["score"],
            e["bbox"],
            e["segmentation"]["counts"],
        ]
        for e in found
    ]
    return sorted(told)


# Stopped runs

KILLED = """
import os, signal, sys
from maskrcnn_lit.cli.main import main
from maskrcnn_lit.training import compile as compiling
from maskrcnn_lit.training.module import DetectionModule
from maskrcnn_lit.training.optimizer import warmup_cosine

training_step = DetectionModule.training_step

def step_or_die(self, batch, batch_idx):
    if self.global_step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return training_step(self, batch, batch_idx)

DetectionModule.training_step = step_or_die
main(sys.argv[2:])
"""


def kill_in_step(step: int, *arguments: object) -> None:
    """Train, up to a SIGKILL at the start of optimizer step `step`, counted from 0."""
    command = [sys.executable, "-c", KILLED, str(step), "train", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


@pytest.mark.process
def test_resumed_after_a_kill_in_mid_epoch_it_ends_as_the_unbroken_run(
    trained: Path, strange: Path, run_dir: Path
):
    """Killed in the last step, with checkpoints every 2 steps: one step of the killed run is done
    again.
    """
    kill_in_step(STEPS - 1, *coco_data(strange), *TINY, *SCHEDULE, f"run_dir={run_dir}")
    assert result(run_dir)["status"] == "running"
    assert checkpoint(run_dir)["global_step"] == STEPS - 2
    assert len(metric_rows(run_dir)) == STEPS - 1 + 1
    run_command("train", f"resume={run_dir}")
    ours, theirs = checkpoint(run_dir), checkpoint(trained)
    for part in (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "global_step",
        "epoch",
        "position",
        "categories",
    ):
        assert same(ours[part], theirs[part]), part
    assert same(
        checkpoint(run_dir, "best")["state_dict"], checkpoint(trained, "best")["state_dict"]
    )
    assert metric_rows(run_dir) == metric_rows(trained)
    assert (run_dir / "detections.json").read_bytes() == (trained / "detections.json").read_bytes()
    assert (run_dir / "predictions.png").read_bytes() == (trained / "predictions.png").read_bytes()
    finished = result(run_dir)
    assert finished["overrides"] == [*result(trained)["overrides"][:-1], f"run_dir={run_dir}"]
    assert finished["status"] == "finished"
    assert finished["metrics"]["val/mask_ap"] == result(trained)["metrics"]["val/mask_ap"]
    trained_on = finished["cost"]["images_per_second"] * finished["cost"]["seconds"]
    assert trained_on == pytest.approx(STEPS * 2), "also before the kill, up to its last checkpoint"


@pytest.mark.process
def test_a_run_that_moved_goes_on_where_it_lies_now(strange: Path, run_dir: Path):
    """Killed before its first checkpoint, too: it begins anew."""
    old, new = run_dir / "old", run_dir / "new"
    kill_in_step(
        1,
        *coco_data(strange),
        *MODEL,
        *SCHEDULE,
        "trainer.steps=3",
        "logger.tensorboard=null",
        f"run_dir={old}",
    )
    old.rename(new)
    run_command("train", f"resume={new}")
    assert not old.exists()
    assert result(new)["status"] == "finished"
    assert [row["step"] for row in metric_rows(new) if row["train/loss"]] == ["0", "1", "2"]
    assert load_run_config(new).run_dir == str(new)
    assert (new / "detections.json").is_file()


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so(
    number: signal.Signals, strange: Path, run_dir: Path, tmp_path: Path
):
    """The other signals of a scheduler have the handler of SIGTERM
    (tests/training/test_stop.py).
    """
    endless = (*SCHEDULE, "trainer.epochs=1000", "evaluation.every_n_epochs=1000")
    command = [
        script(),
        "train",
        *coco_data(strange),
        *MODEL,
        *endless,
        "trainer.checkpoint_every_n_steps=null",
    ]
    traced = {"PYTHONFAULTHANDLER": "1"} if number == signal.SIGINT else {}
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            [*command, f"run_dir={run_dir}"],
            env=environment(number == signal.SIGTERM, **traced),
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        try:
            for _ in range(6000):  # ten minutes at most
                if process.poll() is not None or (run_dir / "metrics.csv").is_file():
                    break
                time.sleep(0.1)
            process.send_signal(number)
            code = process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # what its threads do
            process.wait(timeout=60)
            pytest.fail(f"it goes on after {number.name}:\n{(tmp_path / 'said').read_text()}")
        finally:
            process.kill()
    message = (tmp_path / "said").read_text()
    assert code == 130, message
    said = message.splitlines()[-1]
    assert "Traceback" not in message
    assert said.startswith("maskrcnn-lit: interrupted: resume with ")
    assert said.endswith(f"maskrcnn-lit train resume={run_dir}")
    assert result(run_dir)["status"] == "interrupted"
    if number != signal.SIGINT:  # what a scheduler sends saves a checkpoint
        saved = load_plain(run_dir / "checkpoints" / "last.ckpt")
        assert saved["global_step"] >= 1
        assert saved["position"]["batch"] >= 1


@pytest.mark.long
def test_a_run_that_fails_says_so(strange: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object) -> None:
        raise ArithmeticError("a bug")

    monkeypatch.setattr(DetectionModule, "training_step", fail)
    with pytest.raises(ArithmeticError, match="a bug"):  # with its traceback
        run_command("train", *coco_data(strange), *MODEL, *SCHEDULE, f"run_dir={run_dir}")
    assert result(run_dir)["status"] == "failed"
    monkeypatch.undo()
    run_command(
        "train",
        *coco_data(strange),
        *MODEL,
        *SCHEDULE,
        "trainer.epochs=1",
        f"run_dir={run_dir}",
    )
    assert result(run_dir)["status"] == "finished", (
        "nothing was lost, so its folder may be used again"
    )


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.long
def test_a_disk_that_fills_loses_nothing_that_was_complete(
    strange: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    save, saved = torch.save, []

    def save_two(value: Any, file: Any) -> None:
        if len(saved) == 2:
            file.write(b"half a checkpoint")
            full()
        saved.append(value["global_step"])
        save(value, file)

    options = (*coco_data(strange), *MODEL, *SCHEDULE, f"run_dir={run_dir}")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_two)
        said = refused("train", *options)
    assert f"the disk is full ({run_dir}/checkpoints/" in said
    assert said.endswith(f"train resume={run_dir}")
    assert not list((run_dir / "checkpoints").glob(".*")), "the half is gone: there is room again"
    assert checkpoint(run_dir)["global_step"] in saved
    assert result(run_dir)["status"] == "failed"
    run_command("train", f"resume={run_dir}")
    assert result(run_dir)["status"] == "finished"


@pytest.mark.long
def test_a_disk_that_fills_under_tensorboard_is_told_in_a_sentence(
    strange: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Its writer is a thread of its own, whose traceback would be printed."""
    write, written = RecordWriter.write, []

    def write_some(self: RecordWriter, data: bytes) -> None:
        written.append(data)
        if len(written) > 12:
            full()
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", write_some)
    options = (*coco_data(strange), *MODEL, *SCHEDULE, f"run_dir={run_dir}")
    run_command("train", *options, code=2)
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "Traceback" not in said
    assert result(run_dir)["status"] == "failed"


@pytest.mark.long
def test_a_run_finds_its_data_from_any_folder(
    strange: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(strange.parent)
    relative = [
        text.replace(f"data.root={strange}", f"data.root={strange.name}")
        for text in coco_data(strange)
    ]
    run_command("train", *relative, *MODEL, *SCHEDULE, "trainer.epochs=1", f"run_dir={run_dir}")
    assert OmegaConf.load(run_dir / "config.yaml").data.root == str(strange)
    monkeypatch.chdir("/")
    run_command("evaluate", f"run={run_dir}")


# Mistakes


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run_dir={run}"],
            "run_dir={run} contains a run: continue it with resume={run}, or give another run_dir",
        ),
        (
            ["resume={run}", "optimizer.lr=1.0"],
            "so optimizer.lr=1.0 cannot be given with it",
        ),
        (
            ["resume={run}", "trainer.epochs=3", "optimizer.lr=1.0"],
            "so optimizer.lr=1.0 cannot be given with it",
        ),
        (
            ["resume={run}"],
            "{run} is finished: to continue it in a new run with more epochs, add trainer.epochs=4",
        ),
        (
            ["resume={run}", "trainer.epochs=2"],
            "{run} has finished 2 epochs, but trainer.epochs=2 is not more",
        ),
        (
            ["resume={run}/none"],
            "{run}/none does not exist: give a run folder (run_dir) that `maskrcnn-lit train` "
            "wrote",
        ),
        (
            ["resume={run}/checkpoints"],
            "{run}/checkpoints has no config.yaml, so it is not a run folder",
        ),
        (["resume={run}/metrics.csv"], "{run}/metrics.csv is a file, so it is not a run folder"),
    ],
)
def test_another_run_is_left_alone(
    arguments,
    message,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    run_command("train", *(argument.format(run=trained) for argument in arguments), code=2)
    assert message.format(run=trained) in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
    assert not list(tmp_path.glob("outputs/*/*")), "a rejected command leaves no run folder"


# More epochs for a finished run


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): file_digest(path, "sha256")
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.long
def test_a_finished_run_gets_more_epochs_as_a_new_run(trained: Path, run_dir: Path):
    before = digests(trained)
    run_command("train", f"resume={trained}", "trainer.epochs=3", f"run_dir={run_dir}")
    assert digests(trained) == before
    longer = checkpoint(run_dir)
    assert longer["global_step"] == 3 * STEPS // EPOCHS
    assert longer["config"]["trainer"]["epochs"] == 3
    told = result(run_dir)
    assert told["status"] == "finished"
    assert told["overrides"][-2:] == ["trainer.epochs=3", f"run_dir={run_dir}"]
    assert [text for text in told["overrides"] if "trainer.epochs" in text] == ["trainer.epochs=3"]
    assert told["parent"] == {
        "run": str(trained),
        "checkpoint_sha256": before["checkpoints/last.ckpt"],
        "step": STEPS,
        "epoch": EPOCHS,
    }
    steps = [row["step"] for row in metric_rows(run_dir) if row["train/loss"]]
    assert steps == [str(step) for step in range(12)], (
        "the curve of the parent, and no gap after it"
    )
    first = next(row for row in metric_rows(run_dir) if row["step"] == str(STEPS))
    (rate,) = {float(value) for name, value in first.items() if name.startswith("lr/") and value}
    factor = warmup_cosine(STEPS, total=12, warmup=1, end_factor=0.01)
    peak = float(longer["optimizer_states"][0]["param_groups"][0]["initial_lr"])
    assert rate == pytest.approx(peak * factor), "the schedule is that of the new length at once"


@pytest.mark.long
def test_more_epochs_go_on_after_a_kill(
    trained: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And end as the new run would have ended without it."""
    whole = tmp_path / "whole"
    words = ("train", f"resume={trained}", "trainer.epochs=3")
    run_command(*words, f"run_dir={whole}")

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DetectionModule, "on_train_batch_end", die)
        run_command(*words, f"run_dir={run_dir}", code=130)
    assert result(run_dir)["status"] == "interrupted"
    run_command("train", f"resume={run_dir}")
    assert same(checkpoint(run_dir)["state_dict"], checkpoint(whole)["state_dict"])
    assert result(run_dir)["parent"] == result(whole)["parent"]
    assert metric_rows(run_dir) == metric_rows(whole)
    shutil.rmtree(whole)


@pytest.mark.long
def test_more_epochs_that_cannot_begin_leave_no_copies(
    trained: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ("train", f"resume={trained}", "trainer.epochs=3", f"data.root={tmp_path}/none")
    assert "there is no" in refused(*words)
    assert not list(tmp_path.glob("outputs/*/*"))
    assert "there is no" in refused(*words, f"run_dir={run_dir}")
    assert {path.name for path in run_dir.iterdir()} == {".lock", "config.yaml", "result.json"}
    assert result(run_dir)["status"] == "failed"


@pytest.mark.long
def test_a_run_that_stopped_in_mid_epoch_gets_more_steps(
    strange: Path, run_dir: Path, tmp_path: Path
):
    words = (*coco_data(strange), *MODEL, *SCHEDULE, "trainer.steps=6")
    run_command("train", *words, f"run_dir={run_dir}")
    assert "trainer.steps=6 is not more" in refused(
        "train", f"resume={run_dir}", "trainer.epochs=9"
    )
    longer = tmp_path / "longer"
    run_command(
        "train", f"resume={run_dir}", "trainer.steps=11", "trainer.epochs=9", f"run_dir={longer}"
    )
    assert checkpoint(longer)["global_step"] == 11
    steps = [row["step"] for row in metric_rows(longer) if row["train/loss"]]
    assert steps == [str(step) for step in range(11)]
    epochs = [row["epoch"] for row in metric_rows(longer) if row["train/loss"]]
    assert epochs == ["0"] * 4 + ["1"] * 2 + ["2"] * 4 + ["3"]
    shutil.rmtree(longer)


@pytest.mark.long
def test_a_run_that_stopped_without_progress_goes_on(strange: Path, run_dir: Path, tmp_path: Path):
    words = (*coco_data(strange), *MODEL, *SCHEDULE, "trainer.patience=1")
    run_command("train", *words, "trainer.epochs=9", "optimizer.lr=1e-9", f"run_dir={run_dir}")
    stopped = checkpoint(run_dir)["global_step"]
    assert stopped < 36
    longer = tmp_path / "longer"
    run_command("train", f"resume={run_dir}", "trainer.patience=2", f"run_dir={longer}")
    assert checkpoint(longer)["global_step"] >= stopped + 4
    shutil.rmtree(longer)


@pytest.mark.long
def test_a_damaged_checkpoint_is_not_resumed(
    trained: Path, run_dir: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(trained, run_dir)
    write_result(
        run_dir / "result.json", replace(read_result(trained / "result.json"), status="running")
    )
    last = run_dir / "checkpoints" / "last.ckpt"
    with open(last, "r+b") as file:
        file.truncate(last.stat().st_size // 2)
    run_command("train", f"resume={run_dir}", code=2)
    said = capsys.readouterr().err
    assert str(last) in said
    assert "damaged" in said
    assert result(run_dir)["status"] != "finished"


@pytest.mark.long
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_trained_on(
    trained: Path, run_dir: Path, capsys: pytest.CaptureFixture, value: float
):
    """Neither by resume, where best.ckpt is offered if it is sound, nor by a longer run. (For
    `model.weights=` see tests/runs/test_trained_model.py.)
    """
    shutil.copytree(trained, run_dir)
    last, best = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    saved = load_plain(last)
    name = "model.box_head.classes.bias"
    saved["state_dict"][name][1] = value
    save_plain(last, saved)
    run_command("train", f"resume={run_dir}", "trainer.epochs=9", code=2)
    assert f"{last} are not finite (NaN or infinite in {name})" in capsys.readouterr().err
    sound = read_result(trained / "result.json")
    write_result(run_dir / "result.json", replace(sound, status="interrupted"))
    run_command("train", f"resume={run_dir}", code=2)
    said = capsys.readouterr().err
    step = load_plain(best)["global_step"]
    assert f"{last} has weights that are not finite, but best.ckpt of step {step} is intact" in said
    assert f"cp {best} {last}" in said
    save_plain(best, saved)
    run_command("train", f"resume={run_dir}", code=2)
    assert f"the weights of {last} are not finite" in capsys.readouterr().err
    assert result(run_dir)["status"] == "interrupted"


@pytest.mark.long
def test_a_record_that_was_changed_is_not_resumed(
    trained: Path, run_dir: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(trained, run_dir)
    finished = read_result(trained / "result.json")
    assert set(finished.files) == {"metrics.csv", "detections.json", "subset_ids.json"}
    write_result(run_dir / "result.json", replace(finished, status="interrupted"))
    config, table = run_dir / "config.yaml", run_dir / "metrics.csv"
    sound = config.read_text()
    config.write_text(sound.replace("seed: ", "seed: 1"))
    run_command("train", f"resume={run_dir}", code=2)
    assert "config.yaml does not match its checksum" in capsys.readouterr().err
    config.write_text(sound)
    table.write_text(table.read_text().replace("0", "1"))
    run_command("train", f"resume={run_dir}", code=2)
    assert f"{table} does not match its checksum" in capsys.readouterr().err
    write_result(run_dir / "result.json", replace(finished, status="interrupted", files={}))
    table.write_text("step,epoch\nx,1\n")  # of a run that was killed, which has no digests
    run_command("train", f"resume={run_dir}", code=2)
    assert f"{table} is damaged" in capsys.readouterr().err
    table.unlink()
    run_command("train", f"resume={run_dir}")
    assert result(run_dir)["status"] == "finished"


@pytest.fixture
def spoilt(shapes: Path, tmp_path: Path) -> Path:
    """The data set with faults: no validation image is listed in empty.json, and other.json has
    another class.
    """
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    truth = ground_truth(root)
    other = [c | {"name": "heart"} if c["name"] == "star" else c for c in truth["categories"]]
    for name, content in (
        ("empty", truth | {"images": [], "annotations": []}),
        ("other", truth | {"categories": other}),
    ):
        (root / f"{name}.json").write_text(json.dumps(content))
    return root


@pytest.mark.process
def test_a_mistake_ends_in_one_sentence(strange: Path, run_dir: Path, tmp_path: Path):
    options = (
        *coco_data(strange),
        *MODEL,
        *SCHEDULE,
        f"run_dir={run_dir}",
        "trainer.accelerator=gpu",
    )
    said = one_sentence(run_script("train", *options, cwd=tmp_path, CUDA_VISIBLE_DEVICES=""))
    assert "trainer.accelerator=gpu" in said
    assert "use trainer.accelerator=cpu" in said
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.val_image=3"], ["data.val_image", "did you mean data.val_images?"]),
        (["data.val.annotations=none.json"], ["there is no annotation file {root}/none.json"]),
        (
            ["data.val.annotations=empty.json"],
            ["{root}/empty.json has 0 usable images, but 1 are needed"],
        ),
        (
            ["data.val.annotations=other.json"],
            [", ".join(sorted(NAMES)), ", ".join(sorted({*NAMES, "heart"} - {"star"}))],
        ),
    ],
)
def test_wrong_data_are_told(arguments, words, spoilt: Path, run_dir: Path):
    said = refused("train", *coco_data(spoilt), *MODEL, *SCHEDULE, f"run_dir={run_dir}", *arguments)
    for word in words:
        assert word.format(root=spoilt) in said
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.num_classes=3"], ["model.num_classes=3, but the data have", "leave it out"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9] must be two numbers"]),
        (
            ["optimizer.weight_decay=-1.0"],
            ["optimizer.weight_decay=-1.0 must be a number from 0"],
        ),
        (["data.batch_size=2.5"], ["data.batch_size=2.5 must be a whole number"]),
        (["seed=null"], ["seed=null must be a whole number"]),
        (["trainer.epochs=1.5"], ["trainer.epochs=1.5 must be a whole number"]),
        (["evaluation.images=0"], ["evaluation.images=0 must be a whole number, 1 or more"]),
        (
            ["evaluation.every_n_epochs=0"],
            ["evaluation.every_n_epochs=0 must be a whole number, 1 or more"],
        ),
        (
            ["metrics.roi_accuracy.boxes=first"],
            ["metrics.roi_accuracy.boxes=first must be one of all, study"],
        ),
        (["data.mask_size=0"], ["data.mask_size=0 must be a whole number from 1"]),
        (["data.workers=1.5"], ["data.workers=1.5 must be a whole number from 0 to 1024, or auto"]),
        (["model.fpn.channels=0"], ["model.fpn.channels=0 must be a whole number from 1"]),
        (
            ["model.anchors.sizes=[8,16]"],
            ["model.anchors.sizes has 2 numbers, but the pyramid has 5 levels"],
        ),
        (["model.rpn.nms_iou=5.0"], ["model.rpn.nms_iou=5.0 must be a number from 0 to 1"]),
        (
            ["model.mask_head.depth=0"],
            ["model.mask_head.depth=0 must be a whole number from 1 to 100"],
        ),
        (["run_dir={root}/empty.json"], ["empty.json cannot be created", "give another run_dir"]),
        (["run_dir=/proc/foo"], ["/proc/foo cannot be used", "check the path"]),
    ],
)
def test_a_wrong_value_is_told(
    arguments, words, spoilt: Path, run_dir: Path, capsys: pytest.CaptureFixture
):
    given = [argument.format(root=spoilt) for argument in arguments]
    run_command(
        "train", *coco_data(spoilt), *MODEL, *SCHEDULE, f"run_dir={run_dir}", *given, code=2
    )
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("maskrcnn-lit: ")
    for word in words:
        assert word in said
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.process
def test_sync_batch_norm_in_two_processes_says_that_it_needs_cuda(
    strange: Path, run_dir: Path, tmp_path: Path
):
    options = (
        *coco_data(strange),
        *MODEL,
        *SCHEDULE,
        "backbone.norm=sync",
        "trainer.devices=2",
        f"run_dir={run_dir}",
    )
    done = run_script("train", *options, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (
        "norm=sync needs CUDA for 2 processes, but these are on the CPU: use group or batch"
        in done.stderr
    )


@pytest.mark.long
def test_sync_batch_norm_in_one_process_is_batch_norm(strange: Path, run_dir: Path):
    options = (*coco_data(strange), *MODEL, *SCHEDULE, "trainer.epochs=1")
    for norm in ("sync", "batch"):
        run_command("train", *options, f"backbone.norm={norm}", f"run_dir={run_dir}/{norm}")
    sync, batch = (checkpoint(run_dir / norm)["state_dict"] for norm in ("sync", "batch"))
    assert all(torch.allclose(sync[name].float(), batch[name].float(), atol=1e-4) for name in batch)


def test_runs_that_start_at_one_time_have_folders_of_their_own(tmp_path: Path):
    made = [_new_folder(tmp_path / "10-00-00", given=False).name for _ in range(3)]
    assert made == ["10-00-00", "10-00-00_2", "10-00-00_3"]
