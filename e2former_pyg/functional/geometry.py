"""Lengths, directions and the cutoff envelope of edges, safe at zero length."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..radial import envelope
from ..so3 import solid_harmonics


class EdgeGeometry(NamedTuple):
    """What the operation needs of each edge; the leading dimensions are those of the edges."""

    length: Tensor  # [...]
    envelope: Tensor  # [...], 0 beyond the cutoff and on padding
    harmonics: Tensor  # [..., (lmax + 1)**2]


def edge_geometry(
    vectors: Tensor,
    cutoff: float,
    lmax: int,
    dtype: torch.dtype,
    mask: Tensor | None = None,
) -> EdgeGeometry:
    r"""Geometry of edge vectors :math:`r_{ij}`, which are cast to ``dtype`` first.

    An edge of zero length has length 0 and :math:`Y^l = 0` for :math:`l > 0`, all with zero
    derivative.
    """
    vectors = vectors.to(dtype)
    squared = vectors.square().sum(-1)
    nonzero = squared > 0
    # A square root is rounded correctly, so that an edge as long as the cutoff has weight zero.
    safe = torch.where(nonzero, squared, 1.0).sqrt()
    length = torch.where(nonzero, safe, 0.0)
    inverse = torch.where(nonzero, safe.reciprocal(), 0.0)
    weight = envelope(length, cutoff)
    if mask is not None:
        weight = torch.where(mask, weight, 0.0)
    # The inverse is zero at zero length, and with it every derivative.
    unit = vectors * inverse.unsqueeze(-1)
    return EdgeGeometry(length, weight, solid_harmonics(lmax, unit))


def edge_vectors(
    pos_i: Tensor, pos_j: Tensor, edge_shift: Tensor | None = None, strain: Tensor | None = None
) -> Tensor:
    r""":math:`r_{ij} = (x_i - x_j - s_{ij}) (I + \epsilon)` in the dtype of the
    positions, or that of the shifts where it is more exact.

    ``strain`` is that of each edge's graph, ``[..., 3, 3]``.
    """
    vectors = pos_i - pos_j
    if edge_shift is not None:
        vectors = vectors - edge_shift
    if strain is not None:
        # Shifts may be more exact than positions, and vectors with them.
        vectors = vectors + (vectors.unsqueeze(-2) @ strain.to(vectors.dtype)).squeeze(-2)
    return vectors
