"""From a PyG ``Data``/``Batch`` or plain tensors to what the models read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from ..checks import check_floating, check_range, check_shape, check_tensor, values_known
from ..graph import CSRNeighborhood, radius_graph
from ..graph.padded import is_within
from ..graph.radius_graph import COINCIDENT
from ..radial import check_atomic_numbers


class GraphInput(NamedTuple):
    """A batch of atomistic graphs."""

    z: Tensor
    pos: Tensor
    batch: Tensor | None
    edge_index: Tensor | None = None
    edge_shift: Tensor | None = None
    cell: Tensor | None = None
    pbc: Tensor | None = None
    charge: Tensor | None = None
    spin: Tensor | None = None
    batch_size: int | None = None

    def graph_of_atom(self) -> tuple[Tensor, int]:
        """The graph of each atom and the number of graphs."""
        if self.batch is None:
            num_graphs = 1 if self.batch_size is None else self.batch_size
            return self.z.new_zeros(self.z.size(0), dtype=torch.long), num_graphs
        if self.batch_size is not None:
            return self.batch, self.batch_size
        return self.batch, int(self.batch.max()) + 1 if self.batch.numel() > 0 else 0

    def is_periodic(self) -> bool:
        """Whether a graph is known to be periodic."""
        if self.cell is None or self.pbc is None:
            return self.cell is not None
        pbc = torch.as_tensor(self.pbc)
        return values_known(pbc) and bool(pbc.any())

    def call(
        self, backbone: nn.Module, graph: Tensor, num_graphs: int, **kwargs: Tensor | None
    ) -> Tensor:
        """The features that a backbone makes of this input."""
        given = {name: value for name, value in self._asdict().items() if name not in _PASSED}
        return backbone(self.z, self.pos, graph, batch_size=num_graphs, **given, **kwargs)


_PASSED = ("z", "pos", "batch", "batch_size")


def as_input(
    data: Data | Tensor | None,
    pos: Tensor | None,
    batch: Tensor | None,
    cutoff: float,
    *,
    z: Tensor | None = None,
    **others: Any,
) -> GraphInput:
    """Reads what models are called with: ``data``, or atomic numbers and the other tensors."""
    if (data is None) == (z is None):
        found = "neither" if z is None else "both"
        raise ValueError(f"`data` or `z` must be given, got {found}")
    if z is not None:
        check_tensor("z", z)
        data = z
    if isinstance(data, Tensor):
        if pos is None:
            raise ValueError("`pos` must be given with atomic numbers")
        return GraphInput(data, pos, batch, **others)
    if not isinstance(data, Data):
        raise TypeError(
            f"`data` must be a Data, a Batch or atomic numbers, got {type(data).__name__}"
        )
    others = {"pos": pos, "batch": batch, **others}
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"`{given[0]}` must be an attribute of `data`, got it as an argument")
    return from_data(data, cutoff)


def from_data(data: Data, cutoff: float) -> GraphInput:
    r"""Reads ``z``, ``pos``, ``batch``, ``cell``, ``pbc``, ``charge`` and ``spin``.

    Edges are used only if :class:`~e2former_pyg.transforms.RadiusGraph` made them with a cutoff
    that suffices, since other datasets keep bonds there.
    """
    for name in ("z", "pos"):
        if data.get(name) is None:
            raise ValueError(f"`data` must hold `{name}`, found {sorted(data.keys())}")
    edge_index = data.get("edge_index")
    if edge_index is not None:
        made_with = data.get("edge_cutoff")
        if made_with is None:
            raise ValueError(
                "`data.edge_index` was not made by e2former_pyg.transforms.RadiusGraph (there is "
                "no `edge_cutoff`) and may hold bonds; apply RadiusGraph(cutoff) or delete it"
            )
        shortest = float(torch.as_tensor(made_with).min())
        # PyG collates floats to float32 tensors, where 5.2 is 5.1999998. Edges so close to the
        # cutoff contribute nothing.
        if shortest < cutoff * (1 - 1e-6):
            raise ValueError(
                f"`data.edge_cutoff` must be at least the model's cutoff {cutoff} Å, got {shortest}"
            )
    return GraphInput(
        data.z,
        data.pos,
        data.get("batch"),
        edge_index,
        data.get("edge_shift") if edge_index is not None else None,
        data.get("cell"),
        data.get("pbc"),
        data.get("charge"),
        data.get("spin"),
        getattr(data, "num_graphs", None) if data.get("batch") is not None else 1,
    )


def check_atoms(z: Tensor, pos: Tensor, batch: Tensor | None, batch_size: int | None) -> None:
    """Checks shapes and dtypes, and on the CPU values."""
    check_atomic_numbers(z, "z")
    check_shape("pos", pos, z.size(0), 3)
    check_floating("pos", pos)
    if batch is not None:
        check_shape("batch", batch, z.size(0))
        if batch.dtype != torch.long:
            raise TypeError(f"`batch` must be an int64 tensor, got {batch.dtype}")
    if batch_size is not None:
        fewest = 1 if batch is None and z.size(0) > 0 else 0
        if batch_size < fewest:
            raise ValueError(f"`batch_size` must be at least {fewest}, got {batch_size}")
    if batch is not None:
        check_range("batch", batch, 0, 2**31 - 1 if batch_size is None else batch_size - 1)


def check_distances(
    pos: Tensor, edge_index: Tensor, edge_shift: Tensor | None, cutoff: float
) -> None:
    """Raises on positions that are not finite and on coincident atoms. CPU only."""
    if not values_known(pos):
        return
    pos = pos.detach()
    if not bool(pos.isfinite().all()):
        row = int((~pos.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"`pos` must be finite, got {pos[row].tolist()} for atom {row}")
    source, target = edge_index.unbind(0)
    vectors = pos.index_select(0, target) - pos.index_select(0, source)
    if edge_shift is not None:
        vectors = vectors - edge_shift.detach()
        if not bool(vectors.isfinite().all()):
            raise ValueError("`edge_shift` must be finite")
    # Squares of float32 distances as short as that are still far from its smallest numbers.
    coincident = vectors.square().sum(dim=1) <= (COINCIDENT * cutoff) ** 2
    if bool(coincident.any()):
        edge = int(coincident.nonzero()[0])
        first, second = int(source[edge]), int(target[edge])
        if first == second:
            raise ValueError(
                "`edge_index` must not join an atom to itself without an `edge_shift`, got an edge "
                f"of atom {first}; in batches with crystals all graphs need a `cell`, of zeros "
                "for molecules"
            )
        raise ValueError(
            f"`pos` must not hold coincident atoms, got atoms {first} and {second} at "
            f"{pos[source[edge]].tolist()}"
        )


def check_same_graph(
    batch: Tensor | None,
    pos: Tensor,
    edge_index: Tensor,
    edge_shift: Tensor | None,
    cutoff: float,
) -> None:
    """Raises on edges between graphs, as batches without increments have them, but for those that
    are too long to count. CPU only.
    """
    if batch is None or not values_known(pos):
        return
    ends = batch[edge_index]
    crossing = (ends[0] != ends[1]).nonzero().squeeze(1)
    if crossing.numel() == 0:
        return
    pairs = edge_index[:, crossing]
    shift = None if edge_shift is None else edge_shift[crossing]
    within = is_within(pos.detach(), pairs, shift, cutoff).nonzero()
    if within.numel() > 0:
        first = int(within[0])
        raise ValueError(
            f"`edge_index` must join atoms of one graph, got the edge {pairs[:, first].tolist()} "
            f"of graphs {ends[:, crossing[first]].tolist()}"
        )


def sorted_edges(
    inputs: GraphInput, cutoff: float, batch_size: int
) -> tuple[EdgeIndex, Tensor | None]:
    """The edges as an ``EdgeIndex`` sorted by target, which all layers share, and their shifts."""
    z, pos, edge_index, edge_shift = inputs.z, inputs.pos, inputs.edge_index, inputs.edge_shift
    size = (z.size(0), z.size(0))
    if edge_index is None:
        if edge_shift is not None:
            raise ValueError("`edge_index` must be given with `edge_shift`, got None")
        edge_index, edge_shift = radius_graph(
            pos.detach(), cutoff, inputs.batch, inputs.cell, inputs.pbc, batch_size=batch_size
        )
        if inputs.cell is None:
            edge_shift = None
    else:
        if edge_shift is not None:
            check_shape("edge_shift", edge_shift, edge_index.size(1), 3)
        elif inputs.is_periodic():
            raise ValueError(
                "`edge_shift` must be given with the `edge_index` of a periodic `cell`, got None"
            )
        perm = CSRNeighborhood.from_edge_index(edge_index, size).perm
        given = edge_index
        edge_index = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
        check_distances(pos, edge_index, edge_shift, cutoff)
        check_same_graph(inputs.batch, pos, edge_index, edge_shift, cutoff)
        if isinstance(given, EdgeIndex) and given.is_sorted_by_col and given.sparse_size() == size:
            return given, edge_shift
        if perm is not None:
            edge_index = edge_index[:, perm]
            edge_shift = None if edge_shift is None else edge_shift[perm]
    return EdgeIndex(edge_index.contiguous(), sparse_size=size, sort_order="col"), edge_shift


def sum_over_graphs(values: Tensor, batch: Tensor, batch_size: int) -> Tensor:
    """Sums over the atoms of each graph in float64."""
    out = values.new_zeros(batch_size, *values.shape[1:], dtype=torch.float64)
    return out.index_add(0, batch, values.double())
