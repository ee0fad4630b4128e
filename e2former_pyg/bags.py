"""Weighted sums of rows of a table."""

from __future__ import annotations

import torch
from torch import Tensor


def bag_sums(table: Tensor, rows: Tensor, start: Tensor, weights: Tensor) -> Tensor:
    """``out[n]`` sums ``weights[k] table[rows[k]]`` over ``k`` from ``start[n]`` to
    ``start[n + 1]``. No gathered rows are stored.

    For use without autograd. Graphs traced from it may be run with autograd all the same, which
    the operator that ``embedding_bag`` takes without gradients does not allow.
    """
    return torch._embedding_bag(table, rows, start, False, 0, False, weights, True)[0]
