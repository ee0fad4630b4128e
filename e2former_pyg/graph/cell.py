r"""Unit cells and periodicity flags in one layout."""

from __future__ import annotations

import torch
from torch import Tensor

# Cell vectors whose singular values differ by this factor count as dependent.
SINGULAR_RATIO = 1e-6


def as_cell(
    cell: Tensor | None,
    pbc: Tensor | bool | None,
    batch_size: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Brings unit cells and periodicity flags to one layout.

    Args:
        cell (torch.Tensor, optional): The cell vectors in Å, as rows: one
            cell for all graphs of shape :math:`(3, 3)` or :math:`(1, 3, 3)`,
            or one for each graph of shape :math:`(B, 3, 3)` or, as PyG
            concatenates them, :math:`(3B, 3)`. :obj:`None` means open systems.
        pbc (torch.Tensor or bool, optional): Which directions are periodic:
            one flag, or flags of shape :math:`(3)`, :math:`(1, 3)`,
            :math:`(B, 3)` or :math:`(3B)`. If :obj:`None`, all directions are
            periodic where a cell is given.
        batch_size (int): The number of graphs :math:`B`.
        dtype (torch.dtype, optional): The type of the returned cells, by
            default that of :obj:`cell`.
        device (torch.device or str, optional): The device of the returned
            tensors, by default that of :obj:`cell`.

    Returns:
        The cells of shape :math:`(B, 3, 3)`, differentiable with respect to
        :obj:`cell` and zero for open systems, and the flags of shape
        :math:`(B, 3)`.

    Raises:
        TypeError: If :obj:`cell` is not a floating-point tensor.
        ValueError: If a shape is none of the above, or :obj:`pbc` is true
            without a :obj:`cell`.
    """
    if cell is None:
        if pbc is not None and bool(torch.as_tensor(pbc).any()):
            raise ValueError("`pbc` is true, but no `cell` was given")
        return (
            torch.zeros(batch_size, 3, 3, dtype=dtype, device=device),
            torch.zeros(batch_size, 3, dtype=torch.bool, device=device),
        )

    if not isinstance(cell, Tensor) or not cell.is_floating_point():
        found = cell.dtype if isinstance(cell, Tensor) else type(cell)
        raise TypeError(f"`cell` must be a floating-point Tensor, found {found}")
    if cell.shape in ((3, 3), (1, 3, 3)):
        cells = cell.reshape(1, 3, 3).expand(batch_size, 3, 3)
    elif cell.shape in ((3 * batch_size, 3), (batch_size, 3, 3)):
        cells = cell.reshape(batch_size, 3, 3)
    else:
        raise ValueError(
            f"`cell` must have shape [3, 3], [1, 3, 3], [{batch_size}, 3, 3] or "
            f"[{3 * batch_size}, 3] for {batch_size} graphs, found {list(cell.shape)}"
        )
    cells = cells.to(dtype=dtype, device=device)

    flags = torch.as_tensor(True if pbc is None else pbc, device=cells.device)
    if flags.dtype != torch.bool:
        flags = flags != 0
    if flags.shape in ((), (3,), (1, 3)):
        flags = flags.expand(batch_size, 3)
    elif flags.shape in ((3 * batch_size,), (batch_size, 3)):
        flags = flags.reshape(batch_size, 3)
    else:
        raise ValueError(
            f"`pbc` must have shape [3], [1, 3], [{batch_size}, 3] or [{3 * batch_size}] for "
            f"{batch_size} graphs, found {list(flags.shape)}"
        )
    return cells, flags


def volume(cell: Tensor) -> Tensor:
    r"""The volumes of unit cells in Å³.

    Written as a triple product, whose derivatives of any order also exist
    for singular cells, such as the zero cells of open systems.

    Args:
        cell (torch.Tensor): The cells in Å, vectors in rows.

    Shapes:
        - **cell:** :math:`(*, 3, 3)`
        - **output:** :math:`(*)`
    """
    a, b, c = cell.unbind(-2)
    return (a * torch.linalg.cross(b, c)).sum(-1).abs()


def search_basis(cell: Tensor, pbc: Tensor) -> Tensor:
    r"""Replaces the cell vectors of the directions that are not periodic by
    unit vectors, orthogonal to each other and to all periodic directions.

    Args:
        cell (torch.Tensor): Cells of shape :math:`(B, 3, 3)`.
        pbc (torch.Tensor): Flags of shape :math:`(B, 3)`.

    Returns:
        Invertible bases of shape :math:`(B, 3, 3)`.

    Raises:
        ValueError: If a cell is not finite, or its periodic vectors are
            linearly dependent.
    """
    periodic = torch.where(pbc.unsqueeze(-1), cell, 0.0)
    if not bool(torch.isfinite(periodic).all()):
        raise ValueError(f"`cell` must be finite, found {periodic.tolist()}")
    # On a GPU decompositions of small matrices take a millisecond.
    _, scale, directions = (part.to(cell) for part in torch.linalg.svd(periodic.cpu()))

    # Singular values come in descending order: the first `num_periodic` must
    # not vanish, the remaining directions span the orthogonal complement.
    num_periodic = pbc.sum(-1)
    smallest = scale.gather(-1, (num_periodic - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    singular = (num_periodic > 0) & (smallest <= SINGULAR_RATIO * scale[:, 0])
    if bool(singular.any()):
        graph = int(singular.nonzero()[0])
        raise ValueError(
            f"`cell` of graph {graph} is singular: expected linearly independent vectors in the "
            f"periodic directions {pbc[graph].tolist()}, found {cell[graph].tolist()}"
        )
    rank = torch.where(pbc, 0, num_periodic.unsqueeze(-1) + (~pbc).cumsum(-1) - 1)
    complement = directions.gather(-2, rank.unsqueeze(-1).expand_as(directions))
    return torch.where(pbc.unsqueeze(-1), cell, complement)
