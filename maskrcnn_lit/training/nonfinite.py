"""Stops a run when a loss or the gradient is not finite, and writes a file to replay the step.

Before every optimizer step a flag on the device is set if a loss or the norm of the gradient is not
finite, and it stays set. On the CPU it is read at once. On a GPU reading it would make the host
wait, so it is copied asynchronously and read a step or two later; by then later batches have been
computed, but no weight has changed: fused optimizers skip the update while their `found_inf` is
set, as with torch's GradScaler. With 16-mixed the scaler itself skips steps, and non-finite
gradients are normal while it searches its scale, so only the losses count, and the weights in the
file may be a step or two newer.
"""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskrcnn_lit.data.batch import BLANK_ID, Batch
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training.checkpoint_files import load_plain, save_plain


class NonFiniteStep(UserError):
    """A step whose loss or gradient is not finite ended the run."""


class Part(NamedTuple):
    """One batch of an optimizer step (there are several where gradients are accumulated)."""

    batch: Batch
    losses: dict[str, Tensor]
    seed: int  # of torch's random state before the forward pass
    weights: Tensor  # of this process's losses, in order: 1 for a single process


class Step(NamedTuple):
    """All inputs of an optimizer step except the weights."""

    number: int
    epoch: int
    parts: list[Part]
    learning_rates: dict[str, float]
    gradient_norm: Tensor
    bad: Tensor  # on the host; valid once `copied` has finished
    copied: torch.cuda.Event | None


class Replay(NamedTuple):
    """The result of `replay`: the losses of each batch of the step, and the gradient norm of their
    mean.
    """

    losses: list[dict[str, float]]
    gradient_norm: float


class FiniteGuard:
    """Watches the steps: `record` every batch, then `check` before the optimizer step."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._steps: deque[Step] = deque()
        self._bad: Tensor | None = None

    def record(self, batch: Batch, losses: dict[str, Tensor], seed: int, weights: Tensor) -> None:
        """Keep a batch (on its device) until its flag is known."""
        self._parts.append(Part(batch, losses, seed, weights))

    def check(
        self,
        optimizer: Optimizer,
        *,
        number: int,
        epoch: int,
        learning_rates: dict[str, float],
        gradient_norm: Tensor,
        norm_counts: bool,
    ) -> Step | None:
        """Flag this step, and return the first non-finite step known so far, or None."""
        watched = [loss.float() for part in self._parts for loss in part.losses.values()]
        watched += [gradient_norm.float()] if norm_counts else []
        bad = ~torch.isfinite(torch.stack(watched)).all()
        self._bad = bad.float() if self._bad is None else torch.maximum(self._bad, bad.float())
        if norm_counts and getattr(optimizer, "_step_supports_amp_scaling", False):  # fused
            optimizer.found_inf = self._bad  # type: ignore[attr-defined]
        copied = None
        if self._bad.is_cuda:
            host = self._bad.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        else:
            host = self._bad
        self._steps.append(
            Step(number, epoch, self._parts, learning_rates, gradient_norm, host, copied)
        )
        self._parts = []
        return self._first_bad()

    def finish(self) -> Step | None:
        """As `check`, but wait for the flags of all steps so far; called before a checkpoint is
        written.
        """
        for step in self._steps:
            if step.copied is not None:
                step.copied.synchronize()
        return self._first_bad()

    def _first_bad(self) -> Step | None:
        while self._steps and (self._steps[0].copied is None or self._steps[0].copied.query()):
            step = self._steps.popleft()
            if step.bad:
                return step
        return None


def write_step(
    path: Path,
    step: Step,
    *,
    model: nn.Module,
    precision: str,
    accumulate: int,
    extra: Mapping[str, Any],
) -> str:
    """Write `step` and the weights of `model` to `path`, for `replay`; return the message for the
    user.

    The file contains tensors and plain data (`load_plain`): batches, image_ids, losses by name,
    seeds, weights, learning_rates, gradient_norm, step, epoch, precision, accumulate, model (state
    dict; running statistics of a trained BatchNorm include the step) and the entries of `extra`.
    """
    losses = [{name: float(loss) for name, loss in part.losses.items()} for part in step.parts]
    image_ids = [part.batch["image_ids"].tolist() for part in step.parts]
    content = {
        "step": step.number,
        "epoch": step.epoch,
        "image_ids": image_ids,
        "losses": losses,
        "learning_rates": step.learning_rates,
        "gradient_norm": float(step.gradient_norm),
        "seeds": [part.seed for part in step.parts],
        "weights": [part.weights.cpu() for part in step.parts],
        "precision": precision,
        "accumulate": accumulate,
        "batches": [{key: value.cpu() for key, value in part.batch.items()} for part in step.parts],
        "model": {key: value.cpu() for key, value in model.state_dict().items()},
        **extra,
    }
    save_plain(path, content)
    terms = "; ".join(
        ", ".join(f"{name} {value:.4g}" for name, value in part.items()) for part in losses
    )
    rates = ", ".join(f"{name} {value:.3g}" for name, value in step.learning_rates.items())
    ids = ", ".join(str(number) for part in image_ids for number in part if number != BLANK_ID)
    return (
        f"training stopped at step {step.number} (epoch {step.epoch}), because the loss or its "
        "gradient is not finite: losses "
        f"{terms}; gradient norm {content['gradient_norm']:.4g}; learning rate {rates}; images "
        f"{ids}. Run `maskrcnn-lit replay file={path}` to recompute the step; then try a lower "
        "optimizer.lr, a lower "
        "trainer.clip_norm or trainer.precision=32-true"
    )


def replay(path: str | Path, model: nn.Module) -> Replay:
    """Recompute the non-finite step from the file at `path` that a stopped run wrote.

    model: built from the run's config, on any device. Afterwards it has the weights of the file and
    the gradients of the step (of this process's share, for several processes).
    """
    saved = load_plain(Path(path))
    model.load_state_dict(saved["model"])
    model.train()
    model.zero_grad()
    device = next(model.parameters()).device
    kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(saved["precision"])
    losses = []
    for batch, seed, weights in zip(
        saved["batches"], saved["seeds"], saved["weights"], strict=True
    ):
        torch.manual_seed(seed)
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            losses_by_name = model({key: value.to(device) for key, value in batch.items()}).losses
        own = torch.stack(list(losses_by_name.values())) * weights.to(device)
        (own.sum() / saved["accumulate"]).backward()
        losses.append(dict(zip(losses_by_name, own.tolist(), strict=True)))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return Replay(losses, float(torch.nn.utils.get_total_norm(gradients)))
