r"""Integer ranges of varying length, and their division into slices."""

from __future__ import annotations

import torch
from torch import Tensor


def expand_ranges(start: Tensor, length: Tensor, total: int) -> tuple[Tensor, Tensor]:
    r"""Lists the integers of the ranges :obj:`[start, start + length)`, one
    after the other, and the range that each belongs to.

    Args:
        start (torch.Tensor): The first integer of each range.
        length (torch.Tensor): The number of integers in each range.
        total (int): The sum of :obj:`length`.

    Returns:
        The range of each integer, and the integers.
    """
    owner = torch.repeat_interleave(length, output_size=total)
    first = start - (length.cumsum(0) - length)
    index = torch.arange(total, device=start.device).add_(first.index_select(0, owner))
    return owner, index


def split_by_cost(cost: Tensor, limit: int) -> list[tuple[int, int, int]]:
    r"""Splits items into consecutive slices that cost little more than a
    limit.

    Args:
        cost (torch.Tensor): The cost of each item, an integer.
        limit (int): The cost of a slice before its last item.

    Returns:
        :obj:`(begin, end, cost)` for each slice that costs anything.
    """
    end = cost.cumsum(0)
    total = int(end[-1]) if end.numel() > 0 else 0
    if total <= limit:
        return [(0, cost.size(0), total)] if total > 0 else []

    targets = torch.arange(limit, total + limit, limit, device=cost.device).clamp_(max=total)
    cuts = torch.unique_consecutive(torch.searchsorted(end, targets) + 1)
    bounds, sums = [0, *cuts.tolist()], [0, *end[cuts - 1].tolist()]
    return [
        (bounds[k], bounds[k + 1], sums[k + 1] - sums[k])
        for k in range(len(bounds) - 1)
        if sums[k + 1] > sums[k]
    ]


def slice_limit(device: torch.device) -> int:
    r"""The number of candidates that are held at a time: few enough for the
    caches of a CPU, enough to fill other devices.
    """
    return 2**16 if device.type == "cpu" else 2**23
