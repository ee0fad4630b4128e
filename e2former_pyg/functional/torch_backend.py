"""The operations in plain PyTorch: the oracle of the kernels, and the path on the CPU.

Tensors of edges are ``[G, ..., T, K]``: ``G`` groups of ``T`` target nodes with ``K`` slots, heads
(groups of channels) and rows in between. An edge list is the case ``G = E``, ``T = K = 1``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..graph import CSRNeighborhood
from ..radial import evaluate_splines, spline_cells
from .chunks import Chunk, Sizes, plan
from .coupled_sums import coupled_sum
from .dropout import dropout_mask
from .geometry import edge_geometry, edge_vectors
from .neighbor_sums import neighbor_dot
from .paths import Coupling, row_tables
from .recompute import Axis
from .sharing import shared, shared_lmax
from .softmax import sink_softmax


@dataclass(frozen=True)
class Spec:
    """What does not change from edge to edge."""

    coupling: Coupling
    heads: int
    cutoff: float
    num_cells: int
    lmax_harmonics: int
    dtype: torch.dtype
    dropout: float = 0.0


def attention_logits(
    functions: Tensor, qk: Tensor, edge_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits ``g1 * qk + g0 (+ bias)``, ``[G, H, T, K]``, and the radial weights ``g2`` of the
    values, ``[G, orders, H, T, K]``, from the radial functions ``[G, (2 + orders) * H, T, K]``.
    """
    functions = functions.unflatten(1, (-1, qk.size(1)))
    g1, g0, g2 = functions.split([1, 1, functions.size(1) - 2], dim=1)
    logits = torch.addcmul(g0.squeeze(1), g1.squeeze(1), qk)
    return (logits if edge_bias is None else logits + edge_bias.movedim(-1, 1)), g2


def directional_term(qk: Tensor, harmonics: Tensor, u: Tensor | None) -> Tensor:
    """Adds the product of ``u [G, T, rows, H]`` and harmonics ``[G, rows, T, K]`` to ``qk``."""
    if u is None or u.size(2) == 1:  # degree 0 has no direction
        return qk
    return qk + torch.einsum("gtmh,gmtk->ghtk", u[:, :, 1:], harmonics[:, 1 : u.size(2)])


def moment_weights(spec: Spec, weights: Tensor, harmonics: Tensor) -> Tensor:
    """Weights ``[G, orders, H, T, K]`` times harmonics: ``[G, H, moments, T, K]``."""
    rows, order_of_row = row_tables(spec.coupling, harmonics.device)
    if rows.numel() < harmonics.size(1):
        harmonics = harmonics.index_select(1, rows)
    spread = weights.transpose(1, 2).index_select(2, order_of_row)
    return spread * harmonics.unsqueeze(1)


class Edges(NamedTuple):
    """What does not depend on the layer."""

    length: Tensor  # [G, T, K]
    envelope: Tensor  # [G, T, K]
    harmonics: Tensor  # [G, rows, T, K]
    cell: Tensor  # [G, T, K]
    t: Tensor  # [G, T, K]


def _edges(
    spec: Spec,
    chunk: Chunk,
    pos_i: Tensor,
    pos_j: Tensor,
    edge_shift: Tensor | None,
    strain: Tensor | None,
) -> Edges:
    def compute() -> Edges:
        vectors = edge_vectors(
            chunk.grouped(pos_i).unsqueeze(2),
            pos_j.index_select(0, chunk.col.flatten()).unflatten(0, chunk.col.shape).unsqueeze(1),
            edge_shift,
            None if strain is None else chunk.grouped(strain).unsqueeze(2),
        )
        lmax = shared_lmax(spec.lmax_harmonics)
        geometry = edge_geometry(vectors, spec.cutoff, lmax, spec.dtype, chunk.mask)
        harmonics = geometry.harmonics.movedim(-1, 1).contiguous()
        cells = spline_cells(geometry.length, spec.num_cells, spec.cutoff)
        return Edges(geometry.length, geometry.envelope, harmonics, *cells)

    if chunk.rows is not None:
        return compute()
    key = (chunk, spec.cutoff, spec.num_cells, spec.dtype)
    return shared(key, (pos_i, pos_j, edge_shift, strain), compute, spec.lmax_harmonics)


def _functions(
    chunk: Chunk, edges: Edges, type_i: Tensor, type_j: Tensor, polynomials: Tensor
) -> Tensor:
    """Radial functions ``[G, F, T, K]``."""
    types = chunk.grouped(type_i).unsqueeze(2), type_j[chunk.col].unsqueeze(1)
    return evaluate_splines(polynomials, edges.cell, edges.t, *types).movedim(-1, 1).contiguous()


# Takes the specification, a chunk, its edges, weights ``[G, orders, H, T, K]`` and its part of
# what an algorithm carries; returns path rows ``[G * T, P, C]``.
SumFunction = Callable[..., Tensor]


class Sums(NamedTuple):
    """An algorithm's part of an operation: what follows on the weights of the edges."""

    neighborhood: CSRNeighborhood
    """The rows of each target: sources, or images of them."""
    source: Tensor | None
    """The source of each row; ``None`` if the rows are the sources."""
    function: SumFunction
    carried: dict[str, tuple[Axis, Tensor]]
    """What ``function`` reads besides."""
    sizes: Sizes
    """Of its largest intermediates."""

    def rows(self, tensor: Tensor) -> Tensor:
        """What each row has of its source."""
        return tensor if self.source is None else tensor[self.source]


def direct_sums(spec: Spec, neighborhood: CSRNeighborhood, v: Tensor) -> Sums:
    """The direct algorithm: moments of the values ``[s, inputs, C]``, coupled once per node."""
    channels, paths = v.size(-1), spec.coupling
    carried = {"v": (Axis.SOURCE, by_head(v.to(spec.dtype), spec.heads))}
    return Sums(
        neighborhood,
        None,
        _direct_rows,
        carried,
        Sizes(
            spec.heads * paths.num_moments,
            0,  # values and moments come in blocks
            channels * paths.num_rows,
        ),
    )


def _direct_rows(spec: Spec, chunk: Chunk, edges: Edges, weights: Tensor, v: Tensor) -> Tensor:
    """Sums weights times ``v [s, H, inputs, D]`` over neighbours and couples once per node."""
    weights = moment_weights(spec, weights, edges.harmonics)
    return coupled_sum(weights, v, chunk.head_index(spec.heads), spec.coupling)


def attention_chunk(
    spec: Spec,
    sums: SumFunction,
    chunk: Chunk,
    q: Tensor,
    u: Tensor | None,
    pos_i: Tensor,
    type_i: Tensor,
    strain: Tensor | None,
    k: Tensor,
    pos_j: Tensor,
    type_j: Tensor,
    edge_shift: Tensor | None,
    edge_bias: Tensor | None,
    polynomials: Tensor,
    sink: Tensor,
    seed: Tensor | None,
    *carried: Tensor,
) -> Tensor:
    """Path rows ``[G * T, P, C]`` of :func:`~e2former_pyg.functional.equivariant_attention`."""
    edges = _edges(spec, chunk, pos_i, pos_j, edge_shift, strain)
    functions = _functions(chunk, edges, type_i, type_j, polynomials)
    scaled = chunk.grouped(q * (1 / math.sqrt(q.size(-1)))).transpose(1, 2)
    qk = neighbor_dot(scaled, k, chunk.head_index(spec.heads))
    qk = directional_term(qk, edges.harmonics, None if u is None else chunk.grouped(u))
    logits, g2 = attention_logits(functions, qk, edge_bias)
    alpha = sink_softmax(logits, edges.envelope, sink)
    if seed is not None:
        mask = dropout_mask(seed, chunk.edge, spec.heads, spec.dropout, alpha.dtype)
        alpha = alpha * mask.movedim(-1, 1)
    return sums(spec, chunk, edges, alpha.unsqueeze(1) * g2, *carried)


def convolution_chunk(
    spec: Spec,
    sums: SumFunction,
    chunk: Chunk,
    pos_i: Tensor,
    type_i: Tensor,
    strain: Tensor | None,
    pos_j: Tensor,
    type_j: Tensor,
    edge_shift: Tensor | None,
    edge_bias: Tensor | None,
    polynomials: Tensor,
    *carried: Tensor,
) -> Tensor:
    """Path rows ``[G * T, P, C]`` of :func:`~e2former_pyg.functional.equivariant_convolution`."""
    edges = _edges(spec, chunk, pos_i, pos_j, edge_shift, strain)
    functions = _functions(chunk, edges, type_i, type_j, polynomials)
    if edge_bias is not None:
        functions = functions + edge_bias.movedim(-1, 1)
    weights = (functions * edges.envelope.unsqueeze(1)).unflatten(1, (-1, spec.heads))
    return sums(spec, chunk, edges, weights, *carried)


def by_head(v: Tensor, heads: int) -> Tensor:
    """``[s, inputs, C]`` as ``[s, H, inputs, D]``, so that a head's values are one row."""
    return v.unflatten(-1, (heads, v.size(-1) // heads)).transpose(1, 2).contiguous()


def chunks_of(sums: Sums, num_functions: int, qk_size: int = 0) -> list[Chunk]:
    """Chunks whose largest intermediates fit the budget.

    For each slot these are spline coefficients or the weights of the moments, for each source
    gathered values or keys (``qk_size``), for each target moments or path rows.
    """
    slot, source, target = sums.sizes
    sizes = Sizes(max(slot, 4 * num_functions), max(source, qk_size), target)
    return plan(sums.neighborhood, sizes)
