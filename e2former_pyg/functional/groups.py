"""Groups of targets with the same sources, such as the atoms of a molecule.

A group reads its sources once for all of its targets, and a sum over neighbours is a matrix product
of a useful size. The price are slots for pairs that are no edges.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..graph import CSRNeighborhood

# Groups are made of neighbourhoods that fill at least this part of their slots.
_LEAST_FILLED = 0.4


class Groups(NamedTuple):
    """``G`` groups of up to ``T`` targets and ``K`` sources, in order."""

    target: Tensor
    """The targets ``[G, T]``; 0 on padding."""
    real: Tensor
    """True where there is a target, ``[G, T]``."""
    source: Tensor
    """The sources ``[G, K]``; 0 on padding."""
    edge: Tensor
    """Position of each pair's edge in the caller's list, ``[G, T, K]``; 0 without an edge."""
    mask: Tensor
    """True where a pair has an edge, ``[G, T, K]``."""


def find_groups(neighborhood: CSRNeighborhood) -> Groups | None:
    """The groups of a graph whose parts without edges between them lie one after the other, as in
    a batch of molecules; ``None`` where they would hold too few edges, or an edge twice, and for
    lists with room for more edges.
    """
    if int(neighborhood.rowptr[-1]) < neighborhood.num_edges:
        return None
    first_target, num_targets, first_source, num_sources = _ranges(neighborhood)
    target, real = _padded(first_target, num_targets)
    source, _ = _padded(first_source, num_sources)
    shape = (*target.shape, source.size(1))
    if shape[1] == 1 or neighborhood.num_edges < _LEAST_FILLED * shape[0] * shape[1] * shape[2]:
        return None
    row, col = neighborhood.row.long(), neighborhood.col.long()
    group = torch.arange(len(target), device=row.device).repeat_interleave(num_targets)[row]
    place = (group * shape[1] + row - first_target[group]) * shape[2] + col - first_source[group]
    perm = neighborhood.perm
    edge = torch.zeros(shape, dtype=torch.long, device=row.device)
    edge.view(-1)[place] = torch.arange(len(row), device=row.device) if perm is None else perm
    mask = torch.zeros(shape, dtype=torch.bool, device=row.device)
    mask.view(-1)[place] = True
    if int(mask.sum()) < neighborhood.num_edges:
        return None
    return Groups(target, real, source, edge, mask)


def _padded(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges of numbers as rows, and where they are not padding."""
    offset = torch.arange(int(count.max()), device=count.device)
    real = offset < count.unsqueeze(1)
    return (first.unsqueeze(1) + offset).where(real, 0), real


def _ranges(neighborhood: CSRNeighborhood) -> list[Tensor]:
    """The first target and the number of targets of each group, and the same of sources.

    Parts that fit into the range of the largest one share a group.
    """
    size, row, col = neighborhood.num_targets, neighborhood.row.long(), neighborhood.col.long()
    none = neighborhood.num_sources
    low = col.new_full((size,), none).scatter_reduce(0, row, col, "amin")
    high = col.new_full((size,), -1).scatter_reduce(0, row, col, "amax")
    # Of all targets before, and of all that follow.
    last = high.cummax(0).values
    first = low.flip(0).cummin(0).values.flip(0)
    starts = torch.cat([first.new_zeros(1), 1 + (last[:-1] < first[1:]).nonzero().squeeze(1)])
    stops = torch.cat([starts[1:], starts.new_tensor([size])])
    parts = list(
        zip(*(x.tolist() for x in (starts, stops, first[starts], last[stops - 1] + 1)), strict=True)
    )
    most_targets = max(stop - start for start, stop, _, _ in parts)
    most_sources = max(end - begin for _, _, begin, end in parts)
    groups: list[tuple[int, int, int, int]] = []
    for start, stop, begin, end in parts:
        if groups:
            start_before, _, begin_before, _ = groups[-1]
            if stop - start_before <= most_targets and end - begin_before <= most_sources:
                groups[-1] = (start_before, stop, begin_before, max(end, begin_before))
                continue
        groups.append((start, stop, begin, max(end, begin)))
    start_, stop_, begin_, end_ = torch.tensor(groups, device=row.device).unbind(1)
    return [start_, stop_ - start_, begin_.clamp(max=none), end_ - begin_]
