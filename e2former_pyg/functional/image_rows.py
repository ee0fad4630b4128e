"""The distinct images of sources that the edges of a graph see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..graph import CSRNeighborhood
from .sharing import shared


class ImageRows(NamedTuple):
    """One row for each source, image and labels of a target that occur together on an edge."""

    neighborhood: CSRNeighborhood
    """The rows of each target, slots in the same places as before."""
    source: Tensor | None
    """The source of each row; ``None`` if the rows are the sources."""
    shift: Tensor | None
    """The offset of each row's image."""
    labels: tuple[Tensor | None, ...]
    """The labels of the targets that see each row; ``None`` where targets have none."""


def image_rows(
    neighborhood: CSRNeighborhood, edge_shift: Tensor | None, *labels: Tensor | None
) -> ImageRows:
    """Finds the rows.

    Where ``edge_shift`` asks for a gradient, which has the size of the edges, each edge is an
    image of its own: edges that see the same image now would not share its derivative.

    Args:
        neighborhood (CSRNeighborhood): The sources of each target.
        edge_shift (torch.Tensor, optional): Image offset of each edge.
        *labels (torch.Tensor, optional): Integers of the targets, on which a row depends too.
    """
    if edge_shift is None and all(label is None for label in labels):
        return ImageRows(neighborhood, None, None, labels)
    return shared(
        ("image_rows", neighborhood),
        (edge_shift, *labels),
        lambda: _find(neighborhood, edge_shift, labels),
    )


def _find(
    neighborhood: CSRNeighborhood, edge_shift: Tensor | None, labels: tuple[Tensor | None, ...]
) -> ImageRows:
    source, target = neighborhood.col.long(), neighborhood.row.long()
    shift = edge_shift
    if shift is not None and neighborhood.perm is not None:
        shift = shift[neighborhood.perm]
    seen = [None if label is None else label[target] for label in labels]
    if shift is not None and shift.requires_grad and torch.is_grad_enabled():
        row = first = torch.arange(source.numel(), device=source.device)
    else:
        columns = [source, *(() if shift is None else shift.unbind(-1))]
        row, num_rows = number_rows([*columns, *(label for label in seen if label is not None)])
        edges = torch.arange(row.numel(), device=row.device)
        first = row.new_full((num_rows,), row.numel()).scatter_reduce(0, row, edges, "amin")
    return ImageRows(
        CSRNeighborhood(neighborhood.rowptr, row.to(torch.int32), neighborhood.perm, first.numel()),
        source[first],
        None if shift is None else shift[first],
        tuple(None if label is None else label[first] for label in seen),
    )


def number_rows(columns: list[Tensor]) -> tuple[Tensor, int]:
    """Numbers the distinct rows of a table in lexicographic order, and counts them."""
    number, count = torch.zeros_like(columns[0], dtype=torch.long), 1
    for column in columns:
        values, index = torch.unique(column, return_inverse=True)
        # Neither factor exceeds the number of rows, which is less than 2**31.
        found, number = torch.unique(number * values.numel() + index, return_inverse=True)
        count = found.numel()
    return number, count
