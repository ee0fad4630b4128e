"""Rectangular chunks of neighbourhoods for the PyTorch backend.

A sum over neighbours is a batched matrix product. Where groups of targets share their sources, as
the atoms of a molecule do, it is one for each group; elsewhere rows of similar degree are padded
to one length. Chunks hold as much as memory allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..graph import CSRNeighborhood
from .groups import Groups, find_groups

# Elements of the largest per-chunk intermediate: 16 MiB in float32, which stays in the cache of
# a CPU or nearly so, and is long enough to hide the cost of a call.
CHUNK_ELEMENTS = 2**22
# On a GPU the calls cost more than the memory: 256 MiB.
CUDA_CHUNK_ELEMENTS = 2**26
# A single chunk of all nodes in their order, if it fits, spares recomputation; it is taken unless
# padding makes it larger than this.
_PADDING_LIMIT = 4.0


@dataclass(frozen=True, eq=False)
class Chunk:
    """``G`` groups of ``T`` target nodes with ``K`` slots each; the targets of a group have the
    same sources in their slots.
    """

    rows: Tensor | None
    """The target nodes ``[n]``; ``None`` for all of them, in order."""
    targets: Tensor | None
    """The target node at each of the ``G * T`` places, 0 on padding; ``None`` for all nodes, in
    order."""
    places: Tensor | None
    """The place of each of the ``n`` target nodes; ``None`` if no place is padding."""
    sources: Tensor | None
    """The distinct source nodes ``[s]``; ``None`` for all of them, in order."""
    col: Tensor
    """Position of each slot's source among ``sources``, ``[G, K]``; any on padding."""
    edge: Tensor
    """Position of each slot's edge in the caller's list, ``[G, T, K]``; 0 on padding."""
    mask: Tensor | None
    """True on real slots ``[G, T, K]``; ``None`` if all are real."""

    def grouped(self, tensor: Tensor) -> Tensor:
        """What each target has, ``[G * T, ...]``, as ``[G, T, ...]``."""
        return tensor.unflatten(0, self.edge.shape[:2])

    def head_index(self, heads: int) -> Tensor:
        """Rows ``[G, H, K]`` of the slots' sources and heads among ``s * H`` rows."""
        head = torch.arange(heads, device=self.col.device)
        return self.col.unsqueeze(1) * heads + head.view(-1, 1)


class Sizes(NamedTuple):
    """Elements of the largest intermediates."""

    slot: int
    """For each target and each of its slots."""
    source: int = 0
    """For each slot of a group: what is gathered from its source."""
    target: int = 0
    """For each target."""

    def of_group(self, targets: int, slots: int) -> int:
        return max(targets * slots * self.slot, slots * self.source, targets * self.target, 1)


class _Plans:
    """What is known of one neighbourhood."""

    def __init__(self, neighborhood: CSRNeighborhood) -> None:
        self.chunks: dict[tuple[int, Sizes], list[Chunk]] = {}
        self.groups = find_groups(neighborhood)
        # One object whatever the budget, so that operations can share what they derive from it.
        self.whole: dict[bool, Chunk] = {}


_PLANS: WeakKeyDictionary[CSRNeighborhood, _Plans] = WeakKeyDictionary()


def plan(neighborhood: CSRNeighborhood, sizes: Sizes) -> list[Chunk]:
    """Chunks that cover every target with at least one edge.

    Args:
        neighborhood (CSRNeighborhood): The neighbourhoods.
        sizes (Sizes): What has to fit into the budget.
    """
    elements = CUDA_CHUNK_ELEMENTS if neighborhood.device.type == "cuda" else CHUNK_ELEMENTS
    if neighborhood.num_edges == 0:
        return []
    plans = _PLANS.get(neighborhood)
    if plans is None:
        plans = _PLANS[neighborhood] = _Plans(neighborhood)
    if (elements, sizes) not in plans.chunks:
        plans.chunks[elements, sizes] = list(_build(neighborhood, plans, elements, sizes))
    return plans.chunks[elements, sizes]


def _build(
    neighborhood: CSRNeighborhood, plans: _Plans, elements: int, sizes: Sizes
) -> Iterator[Chunk]:
    groups = plans.groups
    if groups is not None:
        count, *shape = groups.mask.shape
        fit = elements // sizes.of_group(*shape)
        if fit >= count:
            if True not in plans.whole:
                plans.whole[True] = _of_groups(groups, True)
            yield plans.whole[True]
            return
        if fit > 0:
            for start in range(0, count, fit):
                part = (tensor[start : start + fit] for tensor in groups)
                yield _of_groups(Groups._make(part), False)
            return

    num_targets = neighborhood.num_targets
    degree = neighborhood.degree.long()
    width = int(degree.max())
    fits = num_targets * sizes.of_group(1, width) <= elements
    if fits and num_targets * width <= _PADDING_LIMIT * neighborhood.num_edges:
        if False not in plans.whole:
            plans.whole[False] = _of_rows(neighborhood, None, degree, width)
        yield plans.whole[False]
        return

    order = torch.argsort(degree, stable=True)
    widths = degree[order].tolist()
    start = widths.count(0)  # ascending, so the isolated nodes come first
    while start < num_targets:
        stop = start + 1
        while (
            stop < num_targets and (stop + 1 - start) * sizes.of_group(1, widths[stop]) <= elements
        ):
            stop += 1
        rows = order[start:stop].sort().values
        yield _of_rows(neighborhood, rows, degree[rows], widths[stop - 1])
        start = stop


def _of_rows(
    neighborhood: CSRNeighborhood, rows: Tensor | None, degree: Tensor, width: int
) -> Chunk:
    """Targets with slots of their own: groups of one."""
    first = neighborhood.rowptr[:-1].long()
    if rows is not None:
        first = first[rows]
    offset = torch.arange(width, device=degree.device)
    mask = offset < degree.unsqueeze(1)
    slot = (first.unsqueeze(1) + offset).where(mask, 0)
    col = neighborhood.col[slot].long().where(mask, 0)
    edge = slot if neighborhood.perm is None else neighborhood.perm[slot]
    sources = None
    if rows is not None:
        sources, col = torch.unique(neighborhood.col[slot].long(), return_inverse=True)
    full = degree.numel() * width == int(degree.sum())
    mask = mask.unsqueeze(1)
    return Chunk(rows, rows, None, sources, col, edge.unsqueeze(1), None if full else mask)


def _of_groups(groups: Groups, whole: bool) -> Chunk:
    target, real, col, edge, mask = groups
    target = target.flatten()
    places = None if bool(real.all()) else real.flatten().nonzero().squeeze(1)
    rows = sources = None
    if not whole:
        rows = target if places is None else target[places]
        sources, col = torch.unique(col, return_inverse=True)
    targets = None if whole and places is None else target
    return Chunk(rows, targets, places, sources, col, edge, None if bool(mask.all()) else mask)
