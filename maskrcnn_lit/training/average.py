"""`trainer.ema`: an exponential moving average of the weights, which a run scores and leaves.

Polyak and Juditsky 1992; of detectors for example EfficientDet (Tan et al. 2020: 0.9998).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from maskrcnn_lit.errors import check_within


def decay_after(updates: int, decay: float) -> float:
    """The weight of the average in an update after `updates` others: less at first, so that a
    short run forgets its first weights (TensorFlow's ExponentialMovingAverage with num_updates).
    """
    return min(decay, (1 + updates) / (10 + updates))


def scored_weights(trainer: Mapping[str, Any]) -> str:
    """The kind of weights that the checkpoints of a run have, from `trainer` of its config."""
    ema = trainer.get("ema")  # a run of an earlier version has none
    return "as trained" if ema is None else f"moving average (trainer.ema={ema})"


class MovingAverage(WeightAveraging):
    """Averages parameters and buffers after each optimizer step. Lightning's callback validates
    with the average, writes it as the `state_dict` of each checkpoint (beside it the weights to
    resume from, `current_model_state`), and leaves it in the model at the end of training.

    Args:
        decay: of the average, in (0, 1); see `decay_after`.

    Raises:
        UserError: decay is out of range.
    """

    def __init__(self, decay: float) -> None:
        check_within(0, 1, trainer__ema=decay)
        super().__init__(multi_avg_fn=self._blend)
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The module moves to its device later, where the average has to be, too; the count stays
        where the host reads it without waiting.
        """
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    @torch.no_grad()
    def _blend(self, averages: Sequence[Tensor], current: Sequence[Tensor], _: Any) -> None:
        """Update `averages` in place. Equal values stay exactly equal, such as frozen weights;
        integers are copied.
        """
        if self._average_model is None:
            raise RuntimeError("setup makes the average")
        share = 1 - decay_after(int(self._average_model.n_averaged), self.decay)
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(current), share)
        else:
            torch._foreach_copy_(list(averages), list(current))
