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
    grad,
    z_bar,
    out,
    z_dot,
    z_bar_dot,
    S: tl.constexpr,
    P: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Writes the derivative of the path rows and, for attention, that of the normaliser relative
    to it and that of the normaliser's cotangent, of which only the first part writes what all of
    them share. ``y`` holds the path rows, ``grad`` their cotangents.
    """
    STRIDE: tl.constexpr = S.heads * S.channels
    i, start, stop = edge.visit(graph, tl.program_id(0).to(tl.int64))
    head, own = lanes.heads(S, P)
    channel, present = lanes.channels(S.channels, P.block, P.first, S, P)
    target = edge.target(x, x_dot, graph, i, True)
    place = i * S.heads + head
    lse_i = 0.0
    if S.attention:
        lse_i = tl.load(lse + place)
        z = tl.zeros([P.tile, P.heads], S.dtype)

    sums = lanes.zeros(len(P.pairs[2]), 1, P.heads * P.block, S)
    tile = tl.arange(0, P.tile)[:, None]
    for first in range(start, stop, P.tile):
        slot = first + tile
        j, edge_id, e = edge.around(target, slot, stop, head, own, x, x_dot, graph, S, False, True)
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
        # Before rows are rounded to the type of the features.
        inner = moments.store_coupled(sums, out, where, present, STRIDE, y, wide, grad, P)
        value = -lanes.narrow(inner, P.heads)
        if FIRST:
            value -= tl.load(z_bar + place) * slope
        lanes.put(z_bar_dot + place, value, own, not FIRST)
    else:
        moments.store_coupled(sums, out, where, present, STRIDE, None, None, None, P)
