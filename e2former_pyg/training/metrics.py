"""Means over all batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """A sum and the number of its terms, in float64, since sums of many float32 numbers lose
    digits. (The ``MeanMetric`` of torchmetrics drops NaN, or else the weights.)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    def update(self, total: Tensor, count: int) -> None:
        self.total += total.double()
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count
