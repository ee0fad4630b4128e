r"""Neighbour search of small open systems, by trying all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from .columns import squared_distance, take
from .ranges import expand_ranges, slice_limit, split_by_cost


def all_pairs(pos: Tensor, ptr: Tensor, batch: Tensor, cutoff: float) -> tuple[Tensor, float]:
    r"""Finds the pairs of atoms of open systems by trying all pairs inside
    each graph, which is fastest for small molecules.

    Args:
        pos (torch.Tensor): Positions, :math:`(3, N)`, float64, sorted by graph.
        ptr (torch.Tensor): The first atom of each graph, :math:`(B + 1)`.
        batch (torch.Tensor): The graph of each atom, :math:`(N)`.
        cutoff (float): The largest distance, exclusive.

    Returns:
        The edges (sources, targets) of shape :math:`(2, E)`, sorted by target,
        then source, and the smallest squared distance.
    """
    first = ptr.index_select(0, batch)
    length = (ptr[1:] - ptr[:-1]).index_select(0, batch)
    closest = torch.inf
    found: list[Tensor] = []
    for begin, end, total in split_by_cost(length, slice_limit(pos.device)):
        owner, source = expand_ranges(first[begin:end], length[begin:end], total)
        target = owner + begin if begin > 0 else owner
        distance2 = squared_distance(pos, target, pos, source)
        keep = ((distance2 < cutoff * cutoff) & (target != source)).nonzero().squeeze(1)
        if keep.numel() > 0:
            closest = min(closest, float(distance2.index_select(0, keep).min()))
            found.append(take(torch.stack((source, target)), keep))
    if len(found) == 0:
        return batch.new_empty(2, 0), closest
    return found[0] if len(found) == 1 else torch.cat(found, dim=1), closest
