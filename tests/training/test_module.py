import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from tiny_run import (
    BATCH,
    CATEGORIES,
    IMAGES,
    LOSSES,
    TinyData,
    TinyModel,
    image,
    tiny_module,
    tiny_trainer,
)
from torch.utils.data import default_collate

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import config_digest
from maskrcnn_lit.training import module as module_file
from maskrcnn_lit.training.module import DetectionModule


def batch_of(*image_ids: int) -> dict[str, torch.Tensor]:
    return default_collate([image(image_id) for image_id in image_ids])


class Watch(Callback):
    """Notes the parameters before and the gradients at each optimizer step (after clipping), and
    each step's output.
    """

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.norms: list[float] = []
        self.losses: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["losses"])
        learning = [p for p in pl_module.parameters() if p.requires_grad]
        self.gradients.append(torch.cat([p.grad.flatten() for p in learning]))
        if pl_module.gradient_norm is not None:
            self.norms.append(float(pl_module.gradient_norm))


def test_a_training_step_does_not_depend_on_what_was_drawn_before():
    batch, module = batch_of(100, 101), tiny_module()
    torch.manual_seed(1)
    first = module.training_step(batch, 4)["losses"]
    torch.rand(1000)
    again = module.training_step(batch, 4)["losses"]
    other = module.training_step(batch, 5)["losses"]
    assert all(torch.equal(first[name], again[name]) for name in LOSSES)
    assert not torch.equal(first["mask"], other["mask"])
    module.seed = 4
    assert not torch.equal(first["mask"], module.training_step(batch, 4)["losses"]["mask"])


def test_the_loss_is_the_sum_of_the_five():
    output = tiny_module().training_step(batch_of(100, 101), 0)
    assert list(output["losses"]) == list(LOSSES)
    assert output["loss"].item() == pytest.approx(
        sum(loss.item() for loss in output["losses"].values())
    )
    assert output["loss"].requires_grad
    assert not any(loss.requires_grad for loss in output["losses"].values())


def test_validation_gives_losses_and_detections_and_touches_nothing(tmp_path: Path):
    trainer, module, data = tiny_trainer(tmp_path), tiny_module(), TinyData()
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    found = trainer.validate(module, datamodule=data, verbose=False)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(value, before[name]) for name, value in module.state_dict().items()
    )  # BatchNorm too

    # The mean over images, not over batches: 4, 4, 4 and 2 of them.
    module.eval()
    total = dict.fromkeys(LOSSES, 0.0)
    for batch in data.val_dataloader():
        for name, loss in module.model(batch).losses.items():
            total[name] += loss.item() * len(batch["images"])
    expected = {f"val/loss_{name}": value / IMAGES for name, value in total.items()}
    assert found == pytest.approx(expected | {"val/loss": sum(expected.values())}, rel=1e-5)


def test_validation_without_targets_logs_no_loss(tmp_path: Path):
    module = tiny_module().eval()
    batch = {
        key: value
        for key, value in batch_of(100).items()
        if key in ("images", "labels", "valid", "readable")
    }
    output = module.model(
        {**batch, "boxes": torch.zeros(1, 2, 4), "seeds": torch.ones(1, dtype=torch.int64)}
    )
    assert output.losses
    assert output.detections is not None

    class NoTargets(TinyModel):
        def forward(self, batch: Any) -> Any:
            return super().forward(batch)._replace(losses={})

    module.model = NoTargets().eval()
    assert (
        module.validation_step(batch_of(100), 0).losses == {}
    )  # would raise on self.log: it has no trainer


def test_gradients_are_clipped_by_their_norm(tmp_path: Path):
    free, clipped = Watch(), Watch()
    for watch, limit in ((free, None), (clipped, 0.5)):
        tiny_trainer(tmp_path, [watch], steps=1, clip_norm=limit).fit(
            tiny_module(), datamodule=TinyData()
        )
    norm = free.gradients[0].norm().item()
    assert norm > 0.5
    assert free.norms == pytest.approx([norm])
    assert clipped.norms == pytest.approx([norm])  # what is logged is the norm before
    assert torch.allclose(clipped.gradients[0], free.gradients[0] * 0.5 / norm, rtol=1e-4)


def test_gradients_are_clipped_by_value(tmp_path: Path):
    free, clipped = Watch(), Watch()
    for watch, limit in ((free, None), (clipped, 0.05)):
        tiny_trainer(tmp_path, [watch], steps=1, clip_norm=None, clip_value=limit).fit(
            tiny_module(), datamodule=TinyData()
        )
    assert free.gradients[0].abs().max() > 0.05
    assert torch.equal(clipped.gradients[0], free.gradients[0].clamp(-0.05, 0.05))
    assert clipped.norms == free.norms  # what is logged is the norm before


def test_accumulated_batches_are_averaged(tmp_path: Path):
    watch = Watch()
    trainer = tiny_trainer(tmp_path, [watch], steps=1, accumulate=2, clip_norm=None)
    trainer.fit(tiny_module(), datamodule=TinyData())
    module, data = tiny_module(), TinyData()
    for i, batch in zip(range(2), data.train_dataloader(), strict=False):
        (module.training_step(batch, i)["loss"] / 2).backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad])
    assert len(watch.losses) == 2
    assert torch.allclose(watch.gradients[1], expected, rtol=1e-5)


def test_the_effective_batch_sets_the_learning_rate_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "maskrcnn_lit")
    module = tiny_module(lr=0.01)
    tiny_trainer(tmp_path, epochs=1, accumulate=3).fit(module, datamodule=TinyData())
    assert (
        f"learning rate 0.01 x {BATCH * 3} / {BATCH} (batch / reference) = 0.03; AdamW"
        in caplog.text
    )
    assert module.learning_rates["backbone"] == pytest.approx(module.learning_rates["heads"] / 2)
    assert not module.trainer.optimizers[0].param_groups[0]["fused"]  # on the CPU


@pytest.mark.parametrize(
    ("batch_size", "steps", "comes"),
    [
        (14, 1, 14),
        (15, 1, 14),
        (64, 1, 14),
        (64, 3, 5),  # images of three shapes
        (13, 2, 13),  # the second step has one image
    ],
)
def test_a_batch_that_never_comes_does_not_set_the_learning_rate(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: Any,
    batch_size: int,
    steps: int,
    comes: int,
):
    caplog.set_level("INFO", "maskrcnn_lit")
    monkeypatch.setattr(module_file, "steps_per_epoch", lambda trainer: steps)
    data = TinyData()
    data.batch_size = batch_size
    tiny_trainer(tmp_path, steps=1).fit(tiny_module(lr=0.01), datamodule=data)
    told = caplog.text
    assert f"learning rate 0.01 x {comes} / {BATCH} (batch / reference)" in told
    says = f"a step has {comes} images, not {batch_size}: an epoch has {IMAGES} images in {steps} "
    assert (says in told) == (comes < batch_size)


def test_more_batches_to_accumulate_than_an_epoch_has_do_not_raise_the_learning_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "maskrcnn_lit")
    tiny_trainer(tmp_path, epochs=2, accumulate=20).fit(tiny_module(lr=0.01), datamodule=TinyData())
    told = caplog.text
    assert f"a step has {IMAGES} images, not 40: an epoch has {IMAGES} images in 1 step\n" in told
    assert f"learning rate 0.01 x {IMAGES} / {BATCH} (batch / reference) = 0.07; AdamW" in told


def test_frozen_parameters_stay(tmp_path: Path):
    module = tiny_module()
    before = copy.deepcopy(module.model.state_dict())
    tiny_trainer(tmp_path, steps=2).fit(module, datamodule=TinyData())
    after = module.model.state_dict()
    assert torch.equal(after["frozen.weight"], before["frozen.weight"])
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_what_a_module_refuses():
    common: dict[str, Any] = {"model": TinyModel(), "optimizer": None, "categories": CATEGORIES}
    with pytest.raises(UserError, match="seed=-1 must be a whole number, 0 or more"):
        DetectionModule(**common, config={}, seed=-1)
    with pytest.raises(TypeError, match="DictConfig is not JSON serializable"):
        DetectionModule(**common, config=OmegaConf.create({"a": 1}), seed=0)  # type: ignore[arg-type]


@pytest.mark.long
def test_the_real_model_trains_and_validates(tmp_path: Path):
    """The tiny Mask R-CNN for two steps and a validation: five finite losses in both, and a
    gradient everywhere.
    """
    config = compose("train", ["model=tiny", "backbone=resnet18", "data=shapes"])
    config.model.num_classes = len(CATEGORIES)
    module = DetectionModule(
        model=build(config.model),
        optimizer=build(config.optimizer),
        categories=CATEGORIES,
        config={},
        seed=1,
    )
    watch = Watch()
    trainer = tiny_trainer(tmp_path, [watch], steps=2)
    trainer.limit_val_batches = 1
    trainer.fit(module, datamodule=TinyData())
    assert [sorted(losses) for losses in watch.losses] == [sorted(LOSSES)] * 2
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert sorted(values) == ["val/loss", *sorted(f"val/loss_{name}" for name in LOSSES)]
    assert all(torch.isfinite(torch.tensor(list(values.values()))))
    assert all(
        gradient.isfinite().all() for gradient in watch.gradients
    )  # and there is one for every parameter


def test_a_process_with_another_config_than_the_first_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two ranks that composed for themselves trained with different learning rates elsewhere,
    without any error.
    """
    trainer = tiny_trainer(tmp_path)
    monkeypatch.setattr(
        trainer.strategy, "broadcast", lambda value: config_digest({"optimizer": {"lr": 0.1}})
    )
    with pytest.raises(
        UserError, match="process 0 has another config than process 0: start all of them with one"
    ):
        trainer.fit(tiny_module(), datamodule=TinyData())


def test_a_digest_is_of_the_values_not_of_their_order():
    assert (
        config_digest({"a": 1, "b": [2]})
        == config_digest({"b": [2], "a": 1})
        != config_digest({"a": 1, "b": [3]})
    )
