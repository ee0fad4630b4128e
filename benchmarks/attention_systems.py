"""The atoms, edges and settings of the attention benchmark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from e2former_pyg.functional import Coupling, coupling
from e2former_pyg.graph import CSRNeighborhood, radius_graph

DENSITY = 0.1  # atoms per cubic Angstrom
ELEMENTS = (1, 6, 7, 8)
NUM_RADIAL = 16
# Of the distance between neighbouring sites: no two atoms come closer than half of that distance.
JITTER = 0.25


@dataclass(frozen=True)
class Setting:
    """What an operation is built with."""

    lmax: int = 2
    orders: tuple[int, ...] = (0, 1)
    cutoff: float = 4.924
    dtype: torch.dtype = torch.float32
    channels: int = 128
    heads: int = 8
    qk_channels: int = 16

    @property
    def coupling(self) -> Coupling:
        return coupling(self.lmax, self.lmax, self.orders)


@dataclass(frozen=True, eq=False)
class Graph:
    """Edges, sorted by target, and the element types at their ends.

    Sources and targets are the same atoms, except in a :class:`Part`.
    """

    edge_index: EdgeIndex
    edge_shift: Tensor
    source_type: Tensor
    target_type: Tensor

    @cached_property
    def neighborhood(self) -> CSRNeighborhood:
        return CSRNeighborhood.from_edge_index(self.edge_index)

    @cached_property
    def z(self) -> Tensor | tuple[Tensor, Tensor]:
        numbers = torch.tensor(ELEMENTS, device=self.source_type.device)
        if self.source_type is self.target_type:
            return numbers[self.source_type]
        return numbers[self.source_type], numbers[self.target_type]

    @property
    def num_edges(self) -> int:
        return self.edge_index.size(1)

    def to(self, dtype: torch.dtype) -> Graph:
        shift = self.edge_shift.to(dtype)
        return Graph(self.edge_index, shift, self.source_type, self.target_type)


class Part(NamedTuple):
    """The neighbourhoods of some targets, with the sources that occur in them."""

    graph: Graph
    sources: Tensor
    targets: Tensor


def part_of(graph: Graph, targets: Tensor) -> Part:
    neighborhood = graph.neighborhood
    degree = neighborhood.degree[targets].long()
    first = neighborhood.rowptr[targets].long() - (degree.cumsum(0) - degree)
    edge = torch.arange(int(degree.sum()), device=targets.device)
    edge += first.repeat_interleave(degree)
    sources, source = graph.edge_index.as_tensor()[0, edge].unique(return_inverse=True)
    target = torch.arange(targets.numel(), device=targets.device).repeat_interleave(degree)
    edge_index = EdgeIndex(
        torch.stack([source, target]),
        sparse_size=(sources.numel(), targets.numel()),
        sort_order="col",
    )
    types = graph.source_type[sources], graph.target_type[targets]
    return Part(Graph(edge_index, graph.edge_shift[edge], *types), sources, targets)


@lru_cache(maxsize=2)
def make_atoms(num_atoms: int, cutoff: float, device: str) -> tuple[Tensor, Graph]:
    """Float32 positions and the radius graph of atoms in a periodic cube around the origin.

    Atoms sit near the sites of a cubic lattice, in random order; where there are more sites than
    atoms, the empty ones are random too.
    """
    generator = torch.Generator().manual_seed(num_atoms)
    length = (num_atoms / DENSITY) ** (1 / 3)
    side = math.ceil(round(num_atoms ** (1 / 3), 6))
    site = torch.randperm(side**3, generator=generator)[:num_atoms]
    place = torch.stack([site // side**2, site // side % side, site % side], dim=1)
    jitter = torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64) * 2 - 1
    pos = ((place + 0.5 + JITTER * jitter) / side - 0.5) * length
    pos = pos.float().to(device)
    cell = length * torch.eye(3, dtype=torch.float32, device=device)
    edge_index, edge_shift = radius_graph(pos, cutoff, cell=cell)
    edges = EdgeIndex(edge_index, sparse_size=(num_atoms, num_atoms), sort_order="col")
    types = torch.randint(len(ELEMENTS), (num_atoms,), generator=generator).to(device)
    return pos, Graph(edges, edge_shift, types, types)
