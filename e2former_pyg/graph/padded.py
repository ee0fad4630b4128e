"""Neighbourhoods in memory of a fixed size, for CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from .neighborhood import CSRNeighborhood

# Offset in Å of slots without an edge, which puts their ends out of any cutoff.
_FAR = 1e6


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
