"""Directional derivative of the path rows, along tangents of all operands."""

import triton
import triton.language as tl

from . import edge, lanes, moments
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
    STRIDE: tl.constexpr = S.heads * S.channels
    i, start, stop = edge.row(graph, tl.program_id(0).to(tl.int64))
    head, own = lanes.heads(S, P)
    channel, present = lanes.channels(S.channels, P.block, P.first, S, P)
    point_i = edge.point(x.pos_i, x_dot.pos_i, i, True)
    strain = edge.tensor9(x.strain, x_dot.strain, i, True)
    type_i = tl.load(graph.type_i + i) * graph.num_types
    place = i * S.heads + head
    lse_i = 0.0
    if S.attention:
        lse_i = tl.load(lse + place)
        z = tl.zeros([P.tile, P.heads], S.dtype)

    sums = moments.zeros(len(P.pairs[2]), P.heads * P.block, S.dtype)
    tile = tl.arange(0, P.tile)[:, None]
    for first in range(start, stop, P.tile):
        slot = first + tile
        j, point_j, type_j = edge.fetch(graph, slot, stop, x.pos_j, x_dot.pos_j, graph.type_j, True)
        edge_id = edge.identity(graph.edge, slot, stop)
        e = edge.evaluate(
            edge.separation(point_i, point_j, graph.shift, edge_id),
            strain,
            type_i + type_j,
            slot < stop,
            head,
            own,
            x.polynomials,
            x_dot.polynomials,
            S,
            False,
        )
        if S.attention:
            where_q = lanes.anew(place * S.d, j)
            kappa = edge.inner(x, x_dot, where_q, (j * S.heads + head) * S.d, S, True)
        else:
            kappa = ()
        w = edge.weights(e, kappa, x, x_dot, graph, lse_i, i, edge_id, head, S)
        if S.attention:
            z += w.alpha[1]
        products = edge.spread(w.weight, w.radial, e.harmonics, P)
        sums = moments.accumulate(
            sums, edge.parts(products, 1), x.v, graph, first, stop, channel, present, S, P
        )
        if x_dot.v is not None:
            sums = moments.accumulate(
                sums, edge.parts(products, 0), x_dot.v, graph, first, stop, channel, present, S, P
            )

    where = i * (S.output_rows * STRIDE) + channel
    if S.attention:
        slope = tl.sum(z, axis=0, keep_dims=True)
        if sink_dot is not None:
            slope += tl.exp(tl.load(sink + head) - lse_i) * tl.load(sink_dot + head)
        lanes.put(z_dot + place, slope, own, False)
        wide = lanes.widen(slope, P.block)
        moments.store_coupled(sums, out, where, present, STRIDE, y, wide, P)
    else:
        moments.store_coupled(sums, out, where, present, STRIDE, None, None, P)
