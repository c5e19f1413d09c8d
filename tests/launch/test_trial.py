"""A trial measures a job without leaving anything behind."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_commands import MODEL, SCHEDULE, TRAIN_IMAGES, VAL_IMAGES, coco_data

from maskrcnn_lit.launch.grid import read_sweep
from maskrcnn_lit.launch.trial import main

pytest_plugins = ("tiny_commands",)


@pytest.mark.long
def test_a_trial_measures_steps_and_counts_images(strange: Path, tmp_path: Path):
    options = (
        *coco_data(strange),
        *MODEL,
        *SCHEDULE,
        "trainer.devices=2",
        "trainer.accumulate=auto",
        f"sweep_dir={tmp_path}/sweep",
    )
    (job,) = read_sweep([*options]).jobs
    (tmp_path / "job.yaml").write_text(OmegaConf.to_yaml(job.config, resolve=True))
    main(str(tmp_path / "job.yaml"), str(tmp_path / "out.json"), "2")
    told = json.loads((tmp_path / "out.json").read_text())
    assert (told["train_images"], told["val_images"]) == (TRAIN_IMAGES, VAL_IMAGES)
    assert (told["batch_size"], told["processes"]) == (2, 2), (
        "of one process, of which the job will have two"
    )
    assert told["accumulate"] == 4, "16 images a step, of two processes with two each"
    assert min(told["start_seconds"], told["step_seconds"], told["validation_step_seconds"]) > 0
    assert told["peak_memory_bytes"] > 1e8
    assert "thread" in told["device"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml", "out.json"], (
        "no run, no checkpoint"
    )
