"""AdamW with weight decay where it belongs, and its learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..optim import split_parameters

OPTIMIZERS = ("adamw", "muon")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    r"""The parameters that need gradients, those of norms and embeddings, biases and whatever has
    fewer than two dimensions without weight decay.
    """
    maps, rest = split_parameters(model)
    return [
        {"params": maps, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


class WarmupCosine:
    r"""The factor of the learning rate at each step: a linear rise from :obj:`start`, then half a
    cosine down to :obj:`end`,

    .. math::
        f(t) = f_\mathrm{end} + \frac{1 - f_\mathrm{end}}{2}
        \left(1 + \cos \pi \frac{t - t_w}{T - t_w}\right).

    Args:
        warmup_steps (int): Steps of the rise, :math:`t_w`.
        total_steps (int): All steps, :math:`T`.
        start (float): The first factor.
        end (float): The last factor.
    """

    def __init__(self, warmup_steps: int, total_steps: int, start: float, end: float) -> None:
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.start = start
        self.end = end

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.start + (1 - self.start) * step / self.warmup_steps
        rest = max(self.total_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / rest, 1.0)
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * progress))
