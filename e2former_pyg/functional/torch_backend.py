"""The operations in plain PyTorch: the oracle of the kernels, and the path on the CPU.

The functions of edges work on any leading dimensions: chunks ``[n, K]`` of padded neighbourhoods
and edge lists ``[E]``. Heads (groups of channels) come last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import CSRNeighborhood
from ..radial import evaluate_splines, spline_cells
from .chunks import Chunk, plan
from .dropout import dropout_mask
from .geometry import EdgeGeometry, edge_geometry, edge_vectors
from .paths import Coupling, row_tables
from .sharing import shared, shared_lmax


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
    radial: Tensor, qk: Tensor, heads: int, edge_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits ``g1 * qk + g0 (+ bias)`` and the radial weights ``g2`` of values, from the radial
    functions ``[..., (2 + orders) * H]``.
    """
    g1, g0, g2 = radial.split([heads, heads, radial.size(-1) - 2 * heads], dim=-1)
    logits = g1 * qk + g0
    if edge_bias is not None:
        logits = logits + edge_bias
    return logits, g2


def query_key(q: Tensor, k: Tensor, harmonics: Tensor, u: Tensor | None) -> Tensor:
    """Inner products ``[..., H]`` of queries and keys ``[..., H, D]``, plus the directional term."""
    qk = (q * k).sum(-1) * (1 / math.sqrt(q.size(-1)))
    if u is not None:
        # Degree 0 has no direction. [..., 1, M - 1] @ [..., M - 1, H]
        directions = harmonics[..., 1 : u.size(-2)].unsqueeze(-2)
        qk = qk + (directions @ u[..., 1:, :]).squeeze(-2)
    return qk


def sink_softmax(logits: Tensor, geometry: EdgeGeometry, sink: Tensor) -> Tensor:
    r"""Softmax over dimension 1 with the envelope as a weight and a sink in the denominator.

    The shift, the largest of :math:`s + \log \mathrm{env}` and the sink, bounds every term by 1.
    """
    inside = geometry.inside.unsqueeze(-1)
    weight = geometry.envelope.unsqueeze(-1)
    with torch.no_grad():
        scores = torch.where(inside, logits + weight.log(), -math.inf)
        shift = torch.maximum(scores.amax(dim=1, keepdim=True), sink)
    terms = weight * torch.where(inside, logits - shift, 0.0).exp()
    return terms / ((sink - shift).exp() + terms.sum(dim=1, keepdim=True))


def value_weights(alpha: Tensor, g2: Tensor) -> Tensor:
    """Weights ``[..., orders * H]`` of the values of each order."""
    return (alpha.unsqueeze(-2) * g2.unflatten(-1, (-1, alpha.size(-1)))).flatten(-2)


def moment_weights(spec: Spec, weights: Tensor, harmonics: Tensor) -> Tensor:
    """Weights ``[..., orders * H]`` times harmonics: ``[..., H, moments]``."""
    rows, order_of_row = row_tables(spec.coupling, harmonics.device)
    per_order = weights.unflatten(-1, (len(spec.coupling.orders), spec.heads))
    if len(spec.coupling.orders) == 1:
        return per_order.transpose(-1, -2) * harmonics[..., rows].unsqueeze(-2)
    spread = per_order.transpose(-1, -2).index_select(-1, order_of_row)
    return spread * harmonics.index_select(-1, rows).unsqueeze(-2)


def _gather(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor[index]``, with the cheaper derivative of ``index_select``."""
    return tensor.index_select(0, index.flatten()).unflatten(0, index.shape)


def _edges(
    spec: Spec,
    chunk: Chunk,
    pos_i: Tensor,
    pos_j: Tensor,
    edge_shift: Tensor | None,
    strain: Tensor | None,
) -> tuple[EdgeGeometry, Tensor, Tensor]:
    """Geometry, spline cells and their powers: all that does not depend on the layer."""

    def compute() -> tuple[EdgeGeometry, Tensor, Tensor]:
        vectors = edge_vectors(
            pos_i.unsqueeze(1),
            _gather(pos_j, chunk.col),
            edge_shift,
            None if strain is None else strain.unsqueeze(1),
        )
        lmax = shared_lmax(spec.lmax_harmonics)
        geometry = edge_geometry(vectors, spec.cutoff, lmax, spec.dtype, chunk.mask)
        return geometry, *spline_cells(geometry.length, spec.num_cells, spec.cutoff)

    if chunk.rows is not None:
        return compute()
    key = (chunk, spec.cutoff, spec.num_cells, spec.dtype)
    return shared(key, (pos_i, pos_j, edge_shift, strain), spec.lmax_harmonics, compute)


def _path_rows(spec: Spec, chunk: Chunk, weights: Tensor, v: Tensor) -> Tensor:
    """Sums ``weights [n, K, H, moments]`` times ``v [s, C, inputs]`` over neighbours and couples
    once per node: ``[n, C, P]``.
    """
    heads, (n, width) = spec.heads, chunk.col.shape
    channels, inputs = v.shape[1:]
    index = chunk.col.unsqueeze(1) * heads + torch.arange(heads, device=v.device).view(-1, 1)
    values = v.reshape(-1, channels // heads * inputs).index_select(0, index.flatten())
    moments = torch.bmm(
        weights.permute(0, 2, 3, 1).reshape(n * heads, -1, width),
        values.view(n * heads, width, -1),
    )
    moments = moments.transpose(1, 2).reshape(n, channels, inputs, -1)
    return spec.coupling.couple(moments)


def attention_chunk(
    spec: Spec,
    chunk: Chunk,
    q: Tensor,
    u: Tensor | None,
    pos_i: Tensor,
    type_i: Tensor,
    strain: Tensor | None,
    k: Tensor,
    v: Tensor,
    pos_j: Tensor,
    type_j: Tensor,
    edge_shift: Tensor | None,
    edge_bias: Tensor | None,
    polynomials: Tensor,
    sink: Tensor,
    seed: Tensor | None,
) -> Tensor:
    geometry, cell, powers = _edges(spec, chunk, pos_i, pos_j, edge_shift, strain)
    radial = evaluate_splines(polynomials, cell, powers, type_i.unsqueeze(1), type_j[chunk.col])
    qk = query_key(
        q.unsqueeze(1), _gather(k, chunk.col), geometry.harmonics, None if u is None else u.unsqueeze(1)
    )
    logits, g2 = attention_logits(radial, qk, spec.heads, edge_bias)
    alpha = sink_softmax(logits, geometry, sink)
    if seed is not None:
        alpha = alpha * dropout_mask(seed, chunk.edge, spec.heads, spec.dropout, alpha.dtype)
    weights = moment_weights(spec, value_weights(alpha, g2), geometry.harmonics)
    return _path_rows(spec, chunk, weights, v)


def convolution_chunk(
    spec: Spec,
    chunk: Chunk,
    pos_i: Tensor,
    type_i: Tensor,
    strain: Tensor | None,
    v: Tensor,
    pos_j: Tensor,
    type_j: Tensor,
    edge_shift: Tensor | None,
    edge_bias: Tensor | None,
    polynomials: Tensor,
) -> Tensor:
    geometry, cell, powers = _edges(spec, chunk, pos_i, pos_j, edge_shift, strain)
    weights = evaluate_splines(polynomials, cell, powers, type_i.unsqueeze(1), type_j[chunk.col])
    if edge_bias is not None:
        weights = weights + edge_bias
    weights = weights * geometry.envelope.unsqueeze(-1)
    return _path_rows(spec, chunk, moment_weights(spec, weights, geometry.harmonics), v)


def chunks_of(spec: Spec, neighborhood: CSRNeighborhood, v: Tensor) -> list[Chunk]:
    inputs = spec.coupling.num_inputs
    per_edge = max(v.size(-1) * inputs, spec.heads * spec.coupling.num_moments)
    return plan(neighborhood, per_edge)
