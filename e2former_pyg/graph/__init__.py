r"""Neighbourhoods of atomistic graphs: CSR form, unit cells, radius graphs and Verlet lists."""

from .cell import as_cell, volume
from .neighborhood import CSRNeighborhood
from .radius_graph import radius_graph
from .verlet_list import VerletList

__all__ = ["CSRNeighborhood", "VerletList", "as_cell", "radius_graph", "volume"]
