import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import IMAGES, Score, TinyData, detections, image, tiny_module, tiny_trainer
from torch.utils.data import default_collate

from maskrcnn_lit.callbacks.panels import IN_TENSORBOARD, Panels
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.report.panels import draw_panel
from maskrcnn_lit.report.pictures import choose

ALL = {"images": 0, "scalars": 0, "tensors": 0}


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance=ALL).Reload()


@pytest.mark.long
def test_the_same_images_every_epoch(tmp_path: Path):
    panels = Panels(images=3, seed=5, score_threshold=0.5)
    forwards: list[int] = []
    module = tiny_module()
    module.model.register_forward_hook(lambda model, *args: forwards.append(model.training))
    tiny_trainer(tmp_path, [panels, Score()], epochs=2).fit(module, datamodule=TinyData())
    chosen = choose(range(100, 100 + IMAGES), 3, 5)
    found = events(tmp_path)
    assert set(found.Tags()["images"]) == {f"val_images/{image_id}" for image_id in chosen}
    assert len(chosen) == 3
    for image_id in chosen:
        assert [event.step for event in found.Images(f"val_images/{image_id}")] == [
            6,
            13,
        ]  # those of val/mask_ap
    assert [event.step for event in found.Scalars("val/mask_ap")] == [6, 13]
    assert forwards.count(False) == 2 * 4  # the validation passes, and no forward for the panels


def test_the_panel_arrives_whole(tmp_path: Path):
    tiny_trainer(tmp_path, [Panels(images=1, seed=0, score_threshold=0.5)], epochs=1).fit(
        tiny_module(), datamodule=TinyData()
    )
    found = events(tmp_path)
    (tag,) = found.Tags()["images"]
    picture = np.array(Image.open(io.BytesIO(found.Images(tag)[0].encoded_image_string)))
    batch = default_collate([image(int(tag.split("/")[1]))])
    expected = draw_panel(
        batch, Output({}, {}, detections(batch), None), 0, ["circle", "square"], 0.5, IN_TENSORBOARD
    )
    assert max(picture.shape) == IN_TENSORBOARD
    assert np.array_equal(picture, expected)


def test_without_tensorboard_nothing_is_drawn(tmp_path: Path):
    panels = Panels(images=3, seed=5, score_threshold=0.5)
    trainer = tiny_trainer(tmp_path, [panels], epochs=1)
    trainer.loggers = []
    trainer.fit(tiny_module(), datamodule=TinyData())
    assert not (tmp_path / "tensorboard").exists()


class Stop(Callback):
    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 9:
            raise KeyError("stop")


def test_an_image_is_on_the_disk_before_its_checkpoint(tmp_path: Path):
    """Else a run that is killed after it would resume without it."""
    callbacks = [Panels(images=1, seed=0, score_threshold=0.5), Stop()]
    with pytest.raises(KeyError):
        tiny_trainer(tmp_path, callbacks, epochs=2).fit(tiny_module(), datamodule=TinyData())
    found = events(tmp_path)
    assert [event.step for event in found.Images(found.Tags()["images"][0])] == [6]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9
