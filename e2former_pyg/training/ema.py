r"""An average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class ExponentialAverage(WeightAveraging):
    r"""Keeps an exponential moving average of the weights, which validation and tests use, and
    which checkpoints hold as the model's weights, beside those that training goes on with.

    At the beginning the average forgets faster: the new weights count
    :math:`\max(1 - \mathrm{decay}, 9 / (10 + t))` at step :math:`t`.

    Args:
        decay (float, optional): The part of the average that is kept at each step, 0 for no
            average. (default: :obj:`0.999`)
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must lie in [0, 1), got {decay}")

        def update(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
            torch._foreach_lerp_(averages, values, max(1 - decay, 9 / (10 + int(count))))

        # Buffers are no weights: they are copied.
        super().__init__(use_buffers=False, multi_avg_fn=update)
        self.decay = decay

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Checkpoints that are still to be written need the weights to go on with.
        pass

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # For tests the model's weights are the average already.
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
