"""The formulas of the package in the standard way: with edge tensors, in plain PyTorch.

Written with care for speed and memory, as far as the standard way goes: weights are applied to
the gathered values before the tensor product, which has more rows; the product is one batched
matrix product for each order; nothing is computed twice, and everything is differentiable twice.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from attention_systems import Graph, Setting
from torch import Tensor

from e2former_pyg import E2FormerAttention
from e2former_pyg.functional import Coupling
from e2former_pyg.functional.edgewise import segment_sink_softmax
from e2former_pyg.functional.geometry import EdgeGeometry, edge_geometry, edge_vectors
from e2former_pyg.radial import RadialSplines, evaluate_splines, spline_cells


@cache
def _tables(
    paths: Coupling, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """The coefficients of each order, ``[moments, rows * inputs]``, for the rows that it reaches,
    and the permutation from rows by order to path rows.
    """
    dense = paths.dense()
    tables, reached, start = [], [], 0
    for order in paths.orders:
        part = dense[:, start : start + 2 * order + 1]
        rows = part.flatten(1).any(dim=1).nonzero().squeeze(1)
        tables.append(part[rows].transpose(0, 1).flatten(1).to(device, dtype))
        reached.append(rows)
        start += 2 * order + 1
    return tables, torch.cat(reached).argsort().to(device)


def sum_products(
    paths: Coupling, weights: Tensor, v_j: Tensor, harmonics: Tensor, target: Tensor, size: int
) -> Tensor:
    """Path rows ``[size, P, C]`` from weights ``[E, orders, H]`` and values ``[E, inputs, C]``."""
    num_edges, num_inputs, channels = v_j.shape
    tables, permutation = _tables(paths, v_j.dtype, v_j.device)
    v_j = v_j.unflatten(-1, (weights.size(-1), -1))
    sums = []
    for n, (order, table) in enumerate(zip(paths.orders, tables, strict=True)):
        y = harmonics[:, order * order : (order + 1) ** 2].to(v_j.dtype)
        products = (y @ table).view(num_edges, -1, num_inputs)
        weighted = v_j * weights[:, n].to(v_j.dtype).view(num_edges, 1, -1, 1)
        rows = torch.bmm(products, weighted.flatten(2))
        zeros = rows.new_zeros(size, rows.size(1), channels)
        sums.append(zeros.index_add(0, target, rows))
    return torch.cat(sums, dim=1).index_select(1, permutation)


def edge_functions(
    graph_index: Tensor,
    edge_shift: Tensor,
    pos: tuple[Tensor, Tensor],
    radial: RadialSplines,
    lmax: int,
) -> tuple[EdgeGeometry, Tensor]:
    """Geometry and radial functions ``[E, F]``."""
    source, target = graph_index
    vectors = edge_vectors(
        pos[1].index_select(0, target), pos[0].index_select(0, source), edge_shift
    )
    dtype = radial.coefficients.dtype
    geometry = edge_geometry(vectors, radial.cutoff, lmax, dtype)
    functions = evaluate_splines(
        radial.cell_polynomials(dtype),
        *spline_cells(geometry.length, radial.num_cells, radial.cutoff),
        radial.target_type.index_select(0, target),
        radial.source_type.index_select(0, source),
    )
    return geometry, functions


def edge_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: tuple[Tensor, Tensor],
    edge_index: Tensor,
    edge_shift: Tensor,
    radial: RadialSplines,
    paths: Coupling,
    sink: Tensor,
) -> Tensor:
    """As :func:`~e2former_pyg.functional.equivariant_attention`."""
    source, target = edge_index
    size, heads = q.size(0), q.size(1)
    geometry, functions = edge_functions(edge_index, edge_shift, pos, radial, max(paths.orders))
    functions = functions.unflatten(-1, (-1, heads))
    qk = (q.index_select(0, target) * k.index_select(0, source)).sum(-1) * q.size(-1) ** -0.5
    logits = functions[:, 0] * qk.to(functions.dtype) + functions[:, 1]
    alpha = segment_sink_softmax(logits, geometry, sink.to(logits.dtype), target, size)
    weights = alpha.unsqueeze(1) * functions[:, 2:]
    v_j = v.index_select(0, source)
    return sum_products(paths, weights, v_j, geometry.harmonics, target, size)


def edge_convolution(
    v: Tensor,
    pos: tuple[Tensor, Tensor],
    edge_index: Tensor,
    edge_shift: Tensor,
    radial: RadialSplines,
    paths: Coupling,
) -> Tensor:
    """As :func:`~e2former_pyg.functional.equivariant_convolution`."""
    source, target = edge_index
    geometry, functions = edge_functions(edge_index, edge_shift, pos, radial, max(paths.orders))
    weights = functions * geometry.envelope.unsqueeze(-1)
    weights = weights.unflatten(-1, (len(paths.orders), -1))
    v_j = v.index_select(0, source)
    return sum_products(paths, weights, v_j, geometry.harmonics, target, pos[1].size(0))


def edge_operation(graph: Graph, setting: Setting, leaves: dict[str, Any]) -> Tensor:
    """Either of the two, with the inputs of a benchmark."""
    pos = leaves["pos"] if isinstance(leaves["pos"], tuple) else (leaves["pos"], leaves["pos"])
    radial = RadialSplines(
        leaves["coefficients"], graph.target_type, graph.source_type, setting.cutoff
    )
    edges = (pos, graph.edge_index.as_tensor(), graph.edge_shift, radial, setting.coupling)
    if "q" not in leaves:
        return edge_convolution(leaves["v"], *edges)
    return edge_attention(leaves["q"], leaves["k"], leaves["v"], *edges, leaves["sink"])


class EdgeTensorAttention(E2FormerAttention):
    """The layer with :func:`edge_attention` in place of the fused operation."""

    def message_and_aggregate(
        self,
        edge_index: Any,
        q: Any,
        k: Any,
        v: Any,
        u: Any,
        pos: Any,
        radial: Any,
        neighborhood: Any,
        strain: Any,
        batch: Any,
        edge_shift: Any,
        edge_bias: Any,
        seed: Any,
    ) -> Tensor:
        edges = edge_index.as_tensor()  # sorted by target, as the benchmark's edges already are
        return edge_attention(
            q[1], k[0], v[0], pos, edges, edge_shift, radial, self.coupling, self.sink
        )
