r"""Neighbourhoods of atomistic graphs: CSR form, unit cells and radius graphs."""

from .cell import as_cell, volume
from .neighborhood import CSRNeighborhood
from .radius_graph import radius_graph

__all__ = ["CSRNeighborhood", "as_cell", "radius_graph", "volume"]
