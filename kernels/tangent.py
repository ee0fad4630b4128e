"""Directional derivative of the path rows, along tangents of all operands."""

import triton
import triton.language as tl

from . import edge, moments
from .operands import Graph, Operands


@triton.jit
def tangent_kernel(
    x: Operands,
    x_dot: Operands,
    graph: Graph,
    sink,
    sink_dot,
    lse,
    y,
    out,
    z_dot,
    S: tl.constexpr,
    P: tl.constexpr,
):
    """Writes the derivative of the path rows and, for attention, that of the normaliser relative
    to it. ``y`` holds the path rows.
    """
    DTYPE: tl.constexpr = S.dtype
    STRIDE: tl.constexpr = S.heads * S.channels
    i, start, stop, valid = edge.row(graph)
    head = tl.program_id(1)
    channel, in_head = edge.channels(head, S, P)
    point_i = edge.point(x.pos_i, x_dot.pos_i, i, valid, True)
    strain = edge.tensor9(x.strain, x_dot.strain, i, valid, True)
    type_i = tl.load(graph.type_i + i) * graph.num_types
    lse_i = 0.0
    if S.attention:
        query = edge.head_vector(x.q, x_dot.q, i, head, valid, S, True)
        lse_i = tl.load(lse + i * S.heads + head)
        z = lse_i * 0.0
        if sink_dot is not None:
            logit = tl.load(sink + head).to(DTYPE) - lse_i
            z = tl.exp(logit) * tl.load(sink_dot + head).to(DTYPE)

    sums = moments.zeros(len(P.pairs[2]), P.tile, P.block, DTYPE)
    tile = tl.arange(0, P.tile)
    fetched = edge.fetch(graph, start + tile, stop, x.pos_j, x_dot.pos_j, graph.type_j, True)
    for first in tl.range(start, stop, P.tile, num_stages=2):
        slot = first + tile
        mask = slot < stop
        j, point_j, type_j = fetched
        where = (j * (S.input_rows * STRIDE))[:, None] + channel[None, :]
        present = mask[:, None] & in_head[None, :]
        rows = moments.load_rows(x.v, where, present, STRIDE, DTYPE, P)
        if S.attention:
            key = edge.head_vectors(x.k, x_dot.k, j, head, mask, S, True)
        fetched = edge.fetch(graph, slot + P.tile, stop, x.pos_j, x_dot.pos_j, graph.type_j, True)
        edge_id = edge.identity(graph.edge, slot, mask)
        e = edge.evaluate(
            edge.separation(point_i, point_j, graph.shift, edge_id, mask),
            strain,
            type_i + type_j,
            mask,
            head,
            x.polynomials,
            x_dot.polynomials,
            S,
            False,
        )
        if S.attention:
            kappa = edge.inner(query, key, S)
        else:
            kappa = ()
        w = edge.weights(e, kappa, x, x_dot, graph, lse_i, i, edge_id, head, valid, mask, S)
        if S.attention:
            z += tl.sum(w.alpha[1], axis=0)
        coefficients = edge.spread(w.weight, w.radial, e.harmonics, P)
        sums = moments.accumulate(sums, edge.parts(coefficients, 1), rows, P)
        if x_dot.v is not None:
            rows = moments.load_rows(x_dot.v, where, present, STRIDE, DTYPE, P)
            sums = moments.accumulate(sums, edge.parts(coefficients, 0), rows, P)

    where = i * (S.output_rows * STRIDE) + channel
    if S.attention:
        tl.store(z_dot + i * S.heads + head, z)
        moments.store_coupled(sums, out, where, in_head, STRIDE, y, z, P)
    else:
        moments.store_coupled(sums, out, where, in_head, STRIDE, None, None, P)
