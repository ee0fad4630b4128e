"""Neighbourhoods in memory of a fixed size, for CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from .neighborhood import CSRNeighborhood


class PaddedNeighborhood:
    r"""Neighbourhoods of one set of nodes whose memory stays where it is while edges come and go.

    A CUDA graph that was captured with :attr:`edge_index` and :attr:`edge_shift` reads what
    :meth:`update` wrote last. Slots beyond the last edge belong to no node.

    Args:
        num_nodes (int): The number of nodes.
        capacity (int): The largest number of edges.
        shift (torch.Tensor, optional): Image offsets, whose type those written later have; without
            them there are none.
        device (torch.device): The device.
    """

    def __init__(
        self, num_nodes: int, capacity: int, shift: Tensor | None, device: torch.device
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
        self.edge_shift = None if shift is None else shift.new_zeros(capacity, 3)
        # Layers look at its sizes only, and find the neighbourhoods through it.
        self.edge_index = EdgeIndex(
            integers(2, capacity, dtype=torch.int64),
            sparse_size=(num_nodes, num_nodes),
            sort_order="col",
        )
        self._rows.remember(self.edge_index)

    def update(self, neighborhood: CSRNeighborhood, edge_shift: Tensor | None, pos: Tensor) -> None:
        r"""Writes other edges.

        Args:
            neighborhood (CSRNeighborhood): The edges, sorted by target in the caller's list.
            edge_shift (torch.Tensor, optional): Their image offsets in Å, by slot.
            pos (torch.Tensor): Positions in Å, along which nodes are ordered.
        """
        transposed = neighborhood.transpose()
        for mine, theirs in ((self._rows, neighborhood), (self._columns, transposed)):
            mine.rowptr.copy_(theirs.rowptr)
            mine.col[: theirs.num_edges].copy_(theirs.col)
        assert self._rows._order is not None
        self._rows._order.copy_(neighborhood.order(pos))
        assert self._columns.perm is not None and transposed.perm is not None
        self._columns.perm[: transposed.num_edges].copy_(transposed.perm)
        if self.edge_shift is not None and edge_shift is not None:
            self.edge_shift[: neighborhood.num_edges].copy_(edge_shift)
