"""Neighbourhoods in memory of a fixed size, for CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from .neighborhood import CSRNeighborhood

# Offset in Å of slots without an edge, which puts their ends out of any cutoff.
_FAR = 1e6


def is_within(pos: Tensor, edge_index: Tensor, edge_shift: Tensor | None, cutoff: float) -> Tensor:
    """Which edges are shorter than a cutoff or, so that it shows, of no known length."""
    source, target = edge_index
    vectors = pos.index_select(0, target) - pos.index_select(0, source)
    if edge_shift is not None:
        vectors = vectors - edge_shift
    return ~(vectors.square().sum(1) >= cutoff * cutoff)


class PaddedNeighborhood:
    r"""Neighbourhoods of one set of nodes whose memory stays where it is while edges come and go.

    A CUDA graph that was captured with :attr:`edge_index` and :attr:`edge_shift` reads what
    :meth:`update` wrote last. Slots beyond the last edge belong to no node's neighbourhood, and
    join nodes that are too far apart to count.

    Args:
        num_nodes (int): The number of nodes.
        capacity (int): The largest number of edges.
        dtype (torch.dtype): The type of image offsets.
        device (torch.device): The device.
    """

    def __init__(
        self, num_nodes: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def integers(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.capacity = capacity
        self._slots = torch.arange(capacity, dtype=torch.int32, device=device)
        self._rows, self._columns = (
            CSRNeighborhood(integers(num_nodes + 1), integers(capacity), perm, num_nodes)
            for perm in (None, integers(capacity, dtype=torch.int64))
        )
        self._rows._transpose = self._columns
        self._rows._order = self._columns._order = integers(num_nodes)
        self.edge_shift = torch.full((capacity, 3), _FAR, dtype=dtype, device=device)
        pairs = integers(2, capacity, dtype=torch.int64)
        self.edge_index = EdgeIndex(pairs, sparse_size=(num_nodes, num_nodes), sort_order="col")
        self._rows.remember(self.edge_index)
        # Changes through it are not counted: the edges stay those of `_rows`.
        self._pairs = pairs.data

    def update(self, neighborhood: CSRNeighborhood, edge_shift: Tensor | None, pos: Tensor) -> None:
        r"""Writes other edges.

        Args:
            neighborhood (CSRNeighborhood): The edges, sorted by target in the caller's list.
            edge_shift (torch.Tensor, optional): Their image offsets in Å, by slot.
            pos (torch.Tensor): Positions in Å, along which nodes are ordered.
        """
        transposed, count = neighborhood.transpose(), neighborhood.num_edges
        for mine, theirs in ((self._rows, neighborhood), (self._columns, transposed)):
            mine.rowptr.copy_(theirs.rowptr)
            mine.col[:count].copy_(theirs.col)
        assert self._rows._order is not None
        self._rows._order.copy_(neighborhood.order(pos))
        assert self._columns.perm is not None and transposed.perm is not None
        self._columns.perm[:count].copy_(transposed.perm)
        self._pairs[0, :count].copy_(neighborhood.col)
        self._pairs[1, :count].copy_(neighborhood.row)
        self.edge_shift[:count] = 0.0 if edge_shift is None else edge_shift
        self.edge_shift[count:] = _FAR

    def is_within(self, pos: Tensor, cutoff: float) -> Tensor:
        r"""Which slots hold an edge that is shorter than a cutoff."""
        held = self._slots < self._rows.rowptr[-1]
        return held & is_within(pos, self._pairs, self.edge_shift, cutoff)

    def take_within(self, other: PaddedNeighborhood, pos: Tensor, cutoff: float) -> None:
        r"""Writes the edges of another object of the same sizes that are shorter than a cutoff. It
        does not wait for the device, so that a CUDA graph can do it anew for other positions.

        Args:
            other (PaddedNeighborhood): The edges.
            pos (torch.Tensor): Positions in Å.
            cutoff (float): The cutoff in Å.
        """
        inside = other.is_within(pos, cutoff)
        slot, before = self._compacted(inside)
        self._rows.rowptr.copy_(before.index_select(0, other._rows.rowptr))
        self._rows.col.copy_(other._rows.col.index_select(0, slot))
        self._pairs.copy_(other._pairs.index_select(1, slot))
        is_free = self._slots >= before[-1]
        self.edge_shift.copy_(other.edge_shift.index_select(0, slot))
        self.edge_shift.masked_fill_(is_free.unsqueeze(1), _FAR)

        theirs, mine = other._columns, self._columns
        assert theirs.perm is not None and mine.perm is not None
        held = self._slots < theirs.rowptr[-1]
        slot, before_column = self._compacted(held & inside.index_select(0, theirs.perm))
        mine.rowptr.copy_(before_column.index_select(0, theirs.rowptr))
        mine.col.copy_(theirs.col.index_select(0, slot))
        mine.perm.copy_(before.index_select(0, theirs.perm.index_select(0, slot)))
        for order, given in ((mine._order, theirs._order), (self._rows._order, other._rows._order)):
            assert order is not None and given is not None
            order.copy_(given)

    def _compacted(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The slots that are kept, in order and then the last one over and over, and how many there
        are before each slot and in all, int32.
        """
        before = torch.nn.functional.pad(kept.cumsum(0, dtype=torch.int32), (1, 0))
        # Searched for, not written to: writes of those left out would meet in one place.
        slot = torch.searchsorted(before[1:], self._slots, out_int32=True, right=True)
        return slot.clamp_(max=self.capacity - 1), before
