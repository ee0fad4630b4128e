"""Rectangular chunks of neighbourhoods for the PyTorch backend.

Rows of similar degree are padded to one length, so that a sum over neighbours is a batched matrix
product, and grouped until a chunk holds as much as memory allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..graph import CSRNeighborhood

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
    """``n`` target nodes with ``K`` slots each."""

    rows: Tensor | None
    """The target nodes ``[n]``; ``None`` for all of them, in order."""
    sources: Tensor | None
    """The distinct source nodes ``[s]``; ``None`` for all of them, in order."""
    col: Tensor
    """Position of each slot's source among ``sources``, ``[n, K]``; 0 on padding."""
    edge: Tensor
    """Position of each slot's edge in the caller's list, ``[n, K]``; 0 on padding."""
    mask: Tensor | None
    """True on real slots ``[n, K]``; ``None`` if all are real."""

    def head_index(self, heads: int) -> Tensor:
        """Rows ``[n, H, K]`` of the slots' sources and heads among ``s * H`` rows."""
        head = torch.arange(heads, device=self.col.device)
        return self.col.unsqueeze(1) * heads + head.view(-1, 1)


_WHOLE: WeakKeyDictionary[CSRNeighborhood, Chunk] = WeakKeyDictionary()
_PLANS: WeakKeyDictionary[CSRNeighborhood, dict[tuple[int, int], list[Chunk]]] = WeakKeyDictionary()


def plan(neighborhood: CSRNeighborhood, per_slot: int, per_node: int = 0) -> list[Chunk]:
    """Chunks that cover every target with at least one edge.

    Args:
        neighborhood (CSRNeighborhood): The neighbourhoods.
        per_slot (int): Elements of the largest intermediate for each slot.
        per_node (int): The same for each target.
    """
    # In slots: how many fit, and how many a target takes at least.
    elements = CUDA_CHUNK_ELEMENTS if neighborhood.device.type == "cuda" else CHUNK_ELEMENTS
    budget = max(elements // per_slot, 1)
    least = -(-per_node // per_slot)
    plans = _PLANS.setdefault(neighborhood, {})
    if (budget, least) not in plans:
        plans[budget, least] = _build(neighborhood, budget, least)
    return plans[budget, least]


def _build(neighborhood: CSRNeighborhood, budget: int, least: int) -> list[Chunk]:
    num_edges, num_targets = neighborhood.num_edges, neighborhood.num_targets
    if num_edges == 0:
        return []
    degree = neighborhood.degree.long()
    width = int(degree.max())
    fits = num_targets * max(width, least) <= budget
    if fits and num_targets * width <= _PADDING_LIMIT * num_edges:
        # One object whatever the budget, so that operations can share what they derive from it.
        if neighborhood not in _WHOLE:
            _WHOLE[neighborhood] = _chunk(neighborhood, None, degree, width)
        return [_WHOLE[neighborhood]]

    order = torch.argsort(degree, stable=True)
    widths = degree[order].tolist()
    start = widths.count(0)  # ascending, so the isolated nodes come first
    chunks = []
    while start < num_targets:
        stop = start + 1
        while stop < num_targets and (stop + 1 - start) * max(widths[stop], least) <= budget:
            stop += 1
        rows = order[start:stop].sort().values
        chunks.append(_chunk(neighborhood, rows, degree[rows], widths[stop - 1]))
        start = stop
    return chunks


def _chunk(neighborhood: CSRNeighborhood, rows: Tensor | None, degree: Tensor, width: int) -> Chunk:
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
    return Chunk(rows, sources, col, edge, None if full else mask)
