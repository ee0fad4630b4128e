r"""Radius graphs of batches of molecules and crystals."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from .all_pairs import all_pairs, one_image_suffices
from .cell import as_cell, search_basis
from .cell_list import MARGIN, cell_list_pairs
from .columns import multiply, squared_distance, take

# Below these numbers of pairs (in all, and per atom), trying all pairs of each
# graph beats building cell lists.
ALL_PAIRS = 2**16
ALL_PAIRS_PER_ATOM = 128
# The same in all on a GPU, where cell lists launch nearly three times as many
# kernels and wait more often.
CUDA_ALL_PAIRS = 2**22

# Atoms closer than this part of the cutoff are taken for coincident: rounding
# keeps equal positions in different periodic images from being exactly equal.
COINCIDENT = 1e-7


def radius_graph(
    pos: Tensor,
    cutoff: float,
    batch: Tensor | None = None,
    cell: Tensor | None = None,
    pbc: Tensor | bool | None = None,
    *,
    max_num_neighbors: int | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Finds all pairs of atoms, periodic images included, with

    .. math::

        \left\| \mathbf{r}_i - \mathbf{r}_j - \mathbf{s}_{ij} \right\| <
        r_{\textrm{cut}}

    where :math:`\mathbf{s}_{ij}` is the Cartesian offset of the periodic
    image of the source :math:`j`.

    Small systems are searched by trying all pairs inside each graph, all
    others, and cells that are small for the cutoff, with cell lists, in time
    linear in the number of atoms. Both directions of a pair are always found,
    at any precision. Cells may be of any shape, smaller than the cutoff (an
    atom then has several images of another, or of itself, as neighbours), and
    partly periodic, in which case the vectors of the other directions are
    ignored. Positions outside of the cell are welcome.

    Args:
        pos (torch.Tensor): The positions in Å.
        cutoff (float): The cutoff in Å.
        batch (torch.Tensor, optional): The graph of each atom, in any order.
            (default: :obj:`None`)
        cell (torch.Tensor, optional): The cell vectors in Å, as rows: one cell
            for all graphs, or one for each graph. (default: :obj:`None`)
        pbc (torch.Tensor or bool, optional): Which directions are periodic,
            by default all of them if a :obj:`cell` is given. A zero cell with
            :obj:`pbc` false is an open system. (default: :obj:`None`)
        max_num_neighbors (int, optional): Keep only so many neighbours of each
            target, the nearest ones, and warn where this leaves any out.
            (default: :obj:`None`)
        batch_size (int, optional): The number of graphs :math:`B`, empty ones
            at the end included. (default: :obj:`None`)

    Returns:
        The edges, with sources :math:`j` in row 0 and targets :math:`i` in row
        1, sorted by target, then source, then image; and the offsets
        :math:`\mathbf{s}_{ij}` in Å, of the type of :obj:`pos`, which are
        differentiable with respect to :obj:`cell` and zero for open systems.

    Raises:
        TypeError: If :obj:`pos` or :obj:`cell` has no floating point dtype, or
            :obj:`batch` holds no integers.
        ValueError: If positions or cells are not finite, two atoms coincide, a
            cell is singular in its periodic directions, the cutoff is not
            positive, or a shape does not fit.
        IndexError: If :obj:`batch` holds a graph outside of
            :obj:`[0, batch_size)`.

    Shapes:
        - **pos:** :math:`(N, 3)`
        - **batch:** :math:`(N)`
        - **cell:** :math:`(3, 3)`, :math:`(1, 3, 3)`, :math:`(B, 3, 3)` or
          :math:`(3B, 3)`
        - **pbc:** :math:`(3)`, :math:`(1, 3)`, :math:`(B, 3)` or :math:`(3B)`
        - **output:** :math:`(2, |\mathcal{E}|)`, :math:`(|\mathcal{E}|, 3)`
    """
    cutoff = _check_cutoff(cutoff)
    _check_pos(pos)
    if max_num_neighbors is not None and max_num_neighbors < 0:
        raise ValueError(f"`max_num_neighbors` must not be negative, found {max_num_neighbors}")
    if batch_size is None and batch is not None and cell is not None and cell.numel() > 9:
        batch_size = cell.numel() // 9  # Empty graphs at the end have cells as well.
    batch, batch_size, order = _sorted_batch(batch, batch_size, pos)
    cells, periodic = as_cell(cell, pbc, batch_size, pos.dtype, pos.device)

    with torch.no_grad():
        points = pos if order is None else pos.index_select(0, order)
        points = points.detach().double().t().contiguous()
        ptr = torch.searchsorted(batch, torch.arange(batch_size + 1, device=pos.device))
        edge_index, image, closest = _search(points, ptr, batch, cells, periodic, cutoff)
        if closest <= (COINCIDENT * cutoff) ** 2:
            _raise_coincident(
                edge_index, _distance2(points, batch, cells, edge_index, image), order
            )
        if max_num_neighbors is not None:
            distance2 = _distance2(points, batch, cells, edge_index, image)
            kept = _nearest(edge_index[1], distance2, pos.size(0), max_num_neighbors)
            edge_index = take(edge_index, kept)
            image = None if image is None else take(image, kept)

    if image is None:
        edge_shift = pos.new_zeros(edge_index.size(1), 3)
    else:
        edge_shift = multiply(image, cells, batch.index_select(0, edge_index[1]), dim=1)
    if order is not None:
        edge_index = order.index_select(0, edge_index.flatten()).view(2, -1)
        perm = torch.sort(edge_index[1], stable=True).indices
        edge_index, edge_shift = take(edge_index, perm), edge_shift.index_select(0, perm)
    return edge_index, edge_shift


def _search(
    points: Tensor, ptr: Tensor, batch: Tensor, cells: Tensor, periodic: Tensor, cutoff: float
) -> tuple[Tensor, Tensor | None, float]:
    num_pairs = int((ptr[1:] - ptr[:-1]).square().sum())
    least = CUDA_ALL_PAIRS if points.is_cuda else ALL_PAIRS
    few = num_pairs <= max(least, ALL_PAIRS_PER_ATOM * batch.size(0))
    if batch.numel() > 0 and bool(periodic.any()):
        basis = search_basis(cells.double(), periodic)
        if few and one_image_suffices(basis, periodic, MARGIN * cutoff):
            return all_pairs(points, ptr, batch, cutoff, basis, periodic)
        return cell_list_pairs(points, ptr, batch, basis, periodic, cutoff)
    if few:
        return all_pairs(points, ptr, batch, cutoff)
    basis = torch.eye(3, dtype=points.dtype, device=points.device).expand(cells.shape)
    edge_index, _, closest = cell_list_pairs(points, ptr, batch, basis, periodic, cutoff)
    return edge_index, None, closest


def _distance2(
    points: Tensor, batch: Tensor, cells: Tensor, edge_index: Tensor, image: Tensor | None
) -> Tensor:
    source, target = edge_index
    shift = None
    if image is not None:
        shift = multiply(image, cells.double(), batch.index_select(0, target))
    return squared_distance(points, target, points, source, shift)


def _nearest(target: Tensor, distance2: Tensor, num_nodes: int, count: int) -> Tensor:
    by_distance = torch.sort(distance2, stable=True).indices
    by_target = torch.sort(target.index_select(0, by_distance), stable=True).indices
    perm = by_distance.index_select(0, by_target)
    first = torch.searchsorted(target, torch.arange(num_nodes, device=target.device))
    rank = torch.arange(target.size(0), device=target.device) - first.index_select(0, target)
    kept = perm[rank < count].sort().values
    if kept.size(0) < target.size(0):
        warnings.warn(
            f"`max_num_neighbors={count}` leaves out {target.size(0) - kept.size(0)} of "
            f"{target.size(0)} edges; energies are then not smooth, and some edges have no "
            f"counterpart in the other direction",
            stacklevel=3,
        )
    return kept


def _sorted_batch(
    batch: Tensor | None, batch_size: int | None, pos: Tensor
) -> tuple[Tensor, int, Tensor | None]:
    if batch_size is not None and batch_size < 0:
        raise ValueError(f"`batch_size` must not be negative, found {batch_size}")
    num_nodes = pos.size(0)
    if batch is None:
        if num_nodes > 0 and batch_size == 0:
            raise ValueError(f"`batch_size` is 0, but `pos` holds {num_nodes} atoms")
        zeros = torch.zeros(num_nodes, dtype=torch.int64, device=pos.device)
        return zeros, 1 if batch_size is None else batch_size, None

    if batch.is_floating_point() or batch.dtype == torch.bool:
        raise TypeError(f"`batch` must hold integers, found {batch.dtype}")
    if batch.shape != (num_nodes,):
        raise ValueError(f"`batch` must have shape [{num_nodes}], found {list(batch.shape)}")
    if batch.device != pos.device:
        raise ValueError(f"`batch` must be on {pos.device} as `pos` is, found {batch.device}")
    batch = batch.long()
    if num_nodes == 0:
        return batch, batch_size or 0, None

    order: Tensor | None = None
    if not bool((batch[1:] >= batch[:-1]).all()):
        batch, order = torch.sort(batch, stable=True)
    low, high = int(batch[0]), int(batch[-1])
    if batch_size is None:
        batch_size = high + 1
    if low < 0 or high >= batch_size:
        raise IndexError(
            f"`batch` holds graph {low if low < 0 else high}, expected values in [0, {batch_size})"
        )
    return batch, batch_size, order


def _check_cutoff(cutoff: float) -> float:
    cutoff = float(cutoff)
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"`cutoff` must be positive and finite, found {cutoff}")
    return cutoff


def _check_pos(pos: Tensor) -> None:
    if not isinstance(pos, Tensor) or not pos.is_floating_point():
        found = pos.dtype if isinstance(pos, Tensor) else type(pos)
        raise TypeError(f"`pos` must be a floating-point Tensor, found {found}")
    if pos.dim() != 2 or pos.size(1) != 3:
        raise ValueError(f"`pos` must have shape [num_nodes, 3], found {list(pos.shape)}")
    finite = torch.isfinite(pos.detach())
    if not bool(finite.all()):
        index = int((~finite).any(-1).nonzero()[0])
        raise ValueError(f"`pos` must be finite, found {pos[index].tolist()} for atom {index}")


def _raise_coincident(edge_index: Tensor, distance2: Tensor, order: Tensor | None) -> None:
    edge = int(distance2.argmin())
    pair = edge_index[:, edge]
    first, second = sorted((pair if order is None else order[pair]).tolist())
    raise ValueError(
        f"`pos` must not hold coincident atoms, found atoms {first} and {second} at a distance of "
        f"{float(distance2[edge]) ** 0.5:.3g}"
    )
