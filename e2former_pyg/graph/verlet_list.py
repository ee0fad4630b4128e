r"""Neighbour lists that stay valid while atoms move a little."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from .cell import as_cell
from .columns import multiply
from .radius_graph import radius_graph


class _Built(NamedTuple):
    """The list, and what it was built from."""

    edge_index: EdgeIndex
    image: Tensor
    # The others are on the device of the positions, where it is seen whether the list still serves.
    pos: Tensor
    graph: Tensor | None
    cells: Tensor
    periodic: Tensor
    inverse: Tensor


class VerletList:
    r"""Edges of all pairs within the cutoff plus a *skin*, which serve until a pair that is not
    among them could have come within the cutoff.

    With a fixed cell that is when an atom has moved by half the skin. Where the cell changes, by
    :math:`\mathbf{F} = \mathbf{C}_0^{-1} \mathbf{C}`, only what atoms move beyond following it,
    :math:`\mathbf{u}_i = \mathbf{r}_i - \mathbf{r}_i^0 \mathbf{F}`, counts, and the list serves as
    long as

    .. math::
        2 \max_i \left\| \mathbf{u}_i \right\| \le \left( 1 - \left\| \mathbf{F} - \mathbf{1}
        \right\|_{\textrm{F}} \right) (r_{\textrm{cut}} + s) - r_{\textrm{cut}}

    since the smallest singular value of :math:`\mathbf{F}` is not below the factor in brackets, and
    no pair comes closer than by that and by the motion of its atoms. A motion common to all atoms
    of a graph does not count. A change of a cell that is not periodic in three directions builds
    the list anew.

    The edges between the cutoff and the skin's end change nothing in the layers of this package,
    whose envelope is exactly zero there. Whether the list serves is checked on the device of the
    positions, which on a GPU costs some synchronisations a step.

    Args:
        cutoff (float): The cutoff :math:`r_{\textrm{cut}}` in Å.
        skin (float, optional): The skin :math:`s` in Å. With :obj:`0`, the list is new at each
            call. (default: :obj:`0.5`)
        device (torch.device or str, optional): Where the list is built and kept, *e.g.*, a GPU, for
            which a simulation program holds positions on the CPU. (default: :obj:`None`, that of
            the positions)

    Attributes:
        num_builds (int): How many times the list was built.

    Example:
        >>> import torch
        >>> from e2former_pyg.graph import VerletList
        >>> neighbors = VerletList(cutoff=2.0, skin=0.5)
        >>> pos = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.2]])
        >>> edge_index, edge_shift = neighbors.update(pos)
        >>> pos = pos + torch.tensor([[0.0, 0.0, 0.2], [0.0, 0.0, 0.0]])
        >>> neighbors.update(pos)[0] is edge_index
        True
    """

    _cells: Tensor
    _edge_shift: Tensor

    def __init__(
        self, cutoff: float, skin: float = 0.5, device: torch.device | str | None = None
    ) -> None:
        if not (math.isfinite(cutoff) and cutoff > 0):
            raise ValueError(f"`cutoff` must be positive and finite (Å), found {cutoff}")
        if not (math.isfinite(skin) and skin >= 0):
            raise ValueError(f"`skin` must be finite and not negative (Å), found {skin}")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.device = None if device is None else torch.device(device)
        self.num_builds = 0
        self.reset()

    def reset(self) -> None:
        r"""Forgets the edges, so that the next call builds them."""
        self._built: _Built | None = None

    @torch.no_grad()
    def update(
        self,
        pos: Tensor,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | bool | None = None,
        *,
        batch_size: int | None = None,
    ) -> tuple[EdgeIndex, Tensor | None]:
        r"""Returns edges that hold all pairs within the cutoff, and their offsets for the present
        cell, :obj:`None` without a :obj:`cell`.

        The same tensors are returned as long as edges and cell are the same, so that whatever is
        derived from them can be kept.

        Args:
            pos (torch.Tensor): The positions in Å.
            batch (torch.Tensor, optional): The graph of each atom. (default: :obj:`None`)
            cell (torch.Tensor, optional): The cells in Å. (default: :obj:`None`)
            pbc (torch.Tensor or bool, optional): The periodic directions.
                (default: :obj:`None`)
            batch_size (int, optional): The number of graphs. (default: :obj:`None`)

        Raises:
            ValueError: As :meth:`~e2former_pyg.graph.radius_graph`, *e.g.*, for positions that
                are not finite.
        """
        if batch_size is None:
            batch_size = 1 if batch is None or batch.numel() == 0 else int(batch.max()) + 1
        cells, periodic = as_cell(cell, pbc, batch_size, pos.dtype, pos.device)
        built = self._built
        if built is None or not self._serves(built, pos, batch, cells, periodic):
            self._built = None  # what cannot be built must not leave an old list behind
            self._built = built = self._build(pos, batch, cells, periodic)
            self.num_builds += 1
        if cell is None:
            return built.edge_index, None
        if not torch.equal(cells, self._cells):
            target = built.edge_index[1]
            graph = _graph_of_edge(batch, target)
            self._edge_shift = multiply(built.image, cells.to(target.device), graph, dim=1)
            self._cells = cells.clone()
        return built.edge_index, self._edge_shift

    def _serves(
        self, built: _Built, pos: Tensor, batch: Tensor | None, cells: Tensor, periodic: Tensor
    ) -> bool:
        if self.skin == 0 or pos.shape != built.pos.shape or cells.shape != built.cells.shape:
            return False
        if pos.dtype != built.pos.dtype or pos.device != built.pos.device or pos.size(0) == 0:
            return False
        if not torch.equal(periodic, built.periodic) or not _same(batch, built.graph):
            return False
        reference = built.pos
        allowed: Tensor | float = self.skin
        if not torch.equal(cells, built.cells):
            solid = periodic.all(dim=1)
            same = (cells == built.cells).flatten(1).all(dim=1)
            if not bool((solid | same).all()):
                return False
            identity = torch.eye(3, dtype=cells.dtype, device=cells.device)
            strain = torch.where(solid.view(-1, 1, 1), built.inverse @ cells, identity)
            deviation = (strain - identity).square().sum((1, 2)).sqrt()
            allowed = (1 - deviation) * (self.cutoff + self.skin) - self.cutoff
            if batch is not None:
                strain, allowed = strain[batch], allowed[batch]
            reference = (reference.unsqueeze(1) @ strain).squeeze(1)
        moved = pos - reference
        moved = moved - _mean(moved, batch, cells.size(0))
        # Three numbers are summed several times as fast so as by `sum` on a CPU.
        x, y, z = moved.square().unbind(1)
        # Written so that values which are not finite fail.
        return bool((2 * (x + y + z).sqrt() <= allowed).all())

    def _build(self, pos: Tensor, batch: Tensor | None, cells: Tensor, periodic: Tensor) -> _Built:
        size, device = pos.size(0), self.device or pos.device
        edges, shift = radius_graph(
            pos.detach().to(device),
            self.cutoff + self.skin,
            None if batch is None else batch.to(device),
            cells.to(device),
            periodic.to(device),
            batch_size=cells.size(0),
        )
        inverse, image = torch.zeros_like(cells), shift.t()  # zero in open systems
        if bool(periodic.any()):
            # The rows of directions that are not periodic are not part of any offset.
            rows = torch.where(periodic.unsqueeze(-1), cells, 0.0).double()
            exact = torch.linalg.pinv(rows.cpu())  # slow on a GPU
            inverse = exact.to(cells)
            graph = _graph_of_edge(batch, edges[1])
            image = multiply(image.double(), exact.to(device), graph).round().to(pos.dtype)
        self._cells, self._edge_shift = cells.clone(), shift
        return _Built(
            edge_index=EdgeIndex(edges.contiguous(), sparse_size=(size, size), sort_order="col"),
            image=image,
            pos=pos.detach().clone(),
            graph=None if batch is None else batch.clone(),
            cells=self._cells,
            periodic=periodic.clone(),
            inverse=inverse,
        )

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(cutoff={self.cutoff}, skin={self.skin})"


def _graph_of_edge(batch: Tensor | None, target: Tensor) -> Tensor:
    if batch is None:
        return target.new_zeros(())
    return batch.to(target.device).index_select(0, target)


def _mean(vectors: Tensor, batch: Tensor | None, num_graphs: int) -> Tensor:
    """The mean of each graph, at its atoms."""
    if batch is None:
        return vectors.mean(0)
    total = vectors.new_zeros(num_graphs, 3).index_add_(0, batch, vectors)
    count = batch.bincount(minlength=num_graphs).clamp(min=1).unsqueeze(1)
    return (total / count)[batch]


def _same(value: Tensor | None, other: Tensor | None) -> bool:
    if value is None or other is None:
        return value is other
    return torch.equal(value, other)
