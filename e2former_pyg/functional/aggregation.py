"""Sums of node rows over CSR neighbourhoods."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..checks import check_floating
from ..graph import CSRNeighborhood
from ..precision import without_autocast
from .chunks import Chunk, Sizes, plan
from .inputs import check_backend_name
from .neighbor_sums import neighbor_sum
from .recompute import Axis, chunked


@without_autocast
def aggregate(
    x: Tensor, neighborhood: CSRNeighborhood, weight: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    r"""Sums source rows over each target's neighbourhood,

    .. math::
        y_i = \sum_{j \in \mathcal{N}(i)} w_{ij} x_j,

    without storing anything with an edge dimension times a feature dimension; derivatives are
    exact to second order.

    Args:
        x (torch.Tensor): Rows of the sources.
        neighborhood (CSRNeighborhood): The sources of each target.
        weight (torch.Tensor, optional): Weight of each edge, or of each edge and head, in the
            order of the edge list from which :obj:`neighborhood` was made; head :math:`h` owns
            channels :math:`hC/H, \ldots, (h+1)C/H - 1`. (default: :obj:`None`, all one)
        backend (str, optional): ``"auto"``, ``"torch"`` or ``"triton"``.
            (default: :obj:`"auto"`)

    Raises:
        TypeError: If a tensor has another kind of dtype.
        ValueError: If a shape or an option is not valid.
        RuntimeError: If :obj:`backend="triton"` is asked for.

    Shapes:
        - **x:** :math:`(N_s, *, C)`
        - **weight:** :math:`(|\mathcal{E}|)` or :math:`(|\mathcal{E}|, H)`
        - **output:** :math:`(N_t, *, C)`
    """
    check_backend_name(backend)
    if backend == "triton":
        raise RuntimeError(
            "backend='triton' is not available: sums with given weights have no kernel; use "
            "backend='auto' or 'torch'"
        )
    check_floating("x", x)
    if x.dim() < 2 or x.size(0) != neighborhood.num_sources:
        raise ValueError(
            f"`x` must have shape [{neighborhood.num_sources}, ..., C], got {list(x.shape)}"
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    if weight is None:
        weight = x.new_ones(neighborhood.num_edges, dtype=dtype)
    check_floating("weight", weight)
    if weight.dim() == 1:
        weight = weight.unsqueeze(-1)
    if weight.dim() != 2 or weight.size(0) != neighborhood.num_edges:
        raise ValueError(
            f"`weight` must have shape [{neighborhood.num_edges}] or "
            f"[{neighborhood.num_edges}, H], got {list(weight.shape)}"
        )
    heads = weight.size(1)
    if heads == 0 or x.size(-1) % heads != 0:
        raise ValueError(
            f"`weight` must have a number of heads that divides the {x.size(-1)} channels of `x`, "
            f"got {heads}"
        )

    def sum_chunk(chunk: Chunk, weights: Tensor, values: Tensor) -> Tensor:
        if chunk.mask is not None:
            weights = weights * chunk.mask.unsqueeze(-1)
        sums = neighbor_sum(weights.movedim(-1, 1), values, chunk.head_index(heads))
        return sums.transpose(1, 2).flatten(0, 1)

    rows, size = math.prod(x.shape[1:-1]), x.size(-1) // heads
    # [s, H, rows * D], so that a head's part of a source is one row.
    values = x.to(dtype).reshape(-1, rows, heads, size).transpose(1, 2).flatten(2)
    shape = neighborhood.num_targets, heads, rows * size
    width = rows * x.size(-1)
    axes, inputs = (Axis.EDGE, Axis.SOURCE), (weight.to(dtype), values)
    chunks = plan(neighborhood, Sizes(heads, width, width))
    out = chunked(sum_chunk, chunks, partial(values.new_zeros, shape), axes, inputs)
    out = out.view(-1, heads, rows, size).transpose(1, 2)
    return out.reshape(neighborhood.num_targets, *x.shape[1:]).to(x.dtype)
