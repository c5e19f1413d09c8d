"""Training steps of the real model on a GPU: close to float32 in every precision, and no waiting
between them.

What waits today, outside of the model's step: `TrainMeter` reads its sums every `log_every_n_steps`
steps, the progress line reads the losses for each line that it shows, `FiniteGuard.finish` waits
before a checkpoint, and with 16-mixed torch's GradScaler asks in every step whether to skip it (it
needs an optimizer that is not fused, see DetectionModule).
"""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from scenes import BATCH, STEPS, Held, Scenes, real_module
from tiny_run import LOSSES, tiny_trainer
from torch.utils.data import DataLoader

from maskrcnn_lit.callbacks.progress import ProgressLine
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.loaders import CudaPrefetcher
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.checkpoint_files import load_plain
from maskrcnn_lit.training.module import DetectionModule

pytestmark = pytest.mark.gpu


class Losses(Callback):
    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.kept.append(torch.stack([outputs["losses"][name].float() for name in LOSSES]))


def train(
    tmp_path: Path, *callbacks: Callback, module: DetectionModule, **trainer: Any
) -> torch.Tensor:
    """The losses of every step, steps x 5."""
    losses = Losses()
    settings: dict[str, Any] = {
        **{
            "accelerator": "gpu",
            "epochs": 1,
            "log_every_n_steps": 1000,
            "checkpoint_every_n_steps": None,
        },
        "compile": "off",
        **trainer,
    }
    tiny_trainer(tmp_path, [losses, *callbacks], **settings).fit(module, datamodule=Scenes())
    return torch.stack(losses.kept).cpu()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_are_finite_and_close_to_float32(
    tmp_path: Path, precision: str, channels_last: bool, **where: Any
):
    reference = train(
        tmp_path / "a", module=real_module(channels_last=False), precision="32-true", **where
    )
    module = real_module(channels_last=channels_last)
    found = train(tmp_path / "b", module=module, precision=precision, **where)
    assert found.isfinite().all()
    assert found.shape == (STEPS, len(LOSSES))
    assert all(value.isfinite().all() for value in module.state_dict().values())
    # The first step has equal weights. Rounding may change which proposals stay, so the losses of
    # the second stage are those of a slightly different sample; the RPN's sample depends on the
    # anchors alone.
    loose = precision != "32-true"
    assert torch.allclose(found[0, :2], reference[0, :2], rtol=0.02 if loose else 1e-3)
    assert torch.allclose(found[0, 2:], reference[0, 2:], rtol=0.15 if loose else 0.02, atol=0.02)
    assert found[-3:].sum() < found[:3].sum()
    if precision != "16-mixed":  # whose scaler skips some of the first steps
        assert torch.allclose(found.sum(1).mean(), reference.sum(1).mean(), rtol=0.15)


class Waiting(Callback):
    """From the end of step 3 to the end of step 13: what makes the host wait for the device raises,
    or warns.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # The steps before fill the caches (anchors, the layout of the pyramid, cuDNN's choices, the
        # optimizer's state) and compile.
        if trainer.global_step == 3:
            torch.cuda.set_sync_debug_mode(self.mode)
        if trainer.global_step == 13:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def no_debug_mode_left() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", ["off", "always"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.usefixtures("no_debug_mode_left")
def test_the_host_never_waits_between_two_steps(tmp_path: Path, precision: str, compile: str):
    line = ProgressLine(
        seconds_between_lines=1e9, out=io.StringIO()
    )  # it reads the losses for a line
    losses = train(
        tmp_path, line, Waiting("error"), module=real_module(), precision=precision, compile=compile
    )
    assert (
        len(losses) == STEPS
    )  # all of Lightning's loop is inside: loader, transfer, hooks, clipping, optimizer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_steps_have_the_losses_of_the_others(tmp_path: Path, precision: str):
    plain, compiled = (
        train(tmp_path / how, module=real_module(), precision=precision, compile=how)
        for how in ("off", "always")
    )
    loose = precision != "32-true"
    assert torch.allclose(compiled[0, :2], plain[0, :2], rtol=0.02 if loose else 1e-3)
    assert torch.allclose(compiled[0, 2:], plain[0, 2:], rtol=0.15 if loose else 0.02, atol=0.02)
    assert torch.allclose(compiled.sum(1).mean(), plain.sum(1).mean(), rtol=0.15)


def test_batches_that_are_copied_ahead_arrive_whole():
    """While the device is busy, so that a copy, or memory that is used again too early, would be
    seen.
    """
    sent = [{"images": torch.randint(0, 256, (2000, 2000), dtype=torch.uint8)} for _ in range(8)]
    loader = DataLoader(Held(sent), batch_size=None, pin_memory=True)
    busy = torch.ones(4000, 4000, device="cuda")
    sums = []
    for batch in CudaPrefetcher(loader, torch.device("cuda")):
        for _ in range(5):
            busy = busy @ busy / 4000
        sums.append(batch["images"].sum())
    assert [int(found) for found in sums] == [int(one["images"].sum()) for one in sent]


@pytest.mark.usefixtures("no_debug_mode_left")
def test_with_16_mixed_only_the_scaler_waits(tmp_path: Path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, Waiting("warn"), module=real_module(), precision="16-mixed")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message).lower()]
    assert (
        waits
    )  # or this test sees nothing, or the scaler no longer waits: then use "error" as above
    assert {Path(warning.filename).name for warning in waits} == {"grad_scaler.py"}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, precision: str):
    """The answer comes steps late, and yet the file has the step's own images and, but for
    16-mixed, its weights.
    """
    module, weights = real_module(), {}
    forward = module.model.forward

    def breaks(batch: Batch) -> Any:
        output = forward(batch)
        bad = (batch["image_ids"] == 5 * BATCH).any()  # of the sixth step
        output.losses["box"] = torch.where(bad, torch.nan, output.losses["box"])
        return output

    class Keep(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 5:
                weights.update(
                    {name: value.clone() for name, value in pl_module.model.named_parameters()}
                )

    module.model.forward = breaks  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"training stopped at step 5 .* box nan"):
        train(tmp_path, Keep(), module=module, precision=precision)
    saved = load_plain(tmp_path / "nonfinite_step5.pt")
    assert saved["image_ids"] == [[20, 21, 22, 23]]
    if precision != "16-mixed":
        assert all(
            torch.equal(saved["model"][name], value.cpu()) for name, value in weights.items()
        )
    assert all(value.isfinite().all() for value in saved["model"].values())
