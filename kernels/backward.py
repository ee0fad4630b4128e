"""Gradients by operand in two passes without atomics: over rows for what belongs to targets and to
edges, over columns (the transposed neighbourhoods) for what belongs to sources.

With ``DUAL`` a pass gives the derivative of these gradients along tangents of all operands.
"""

import triton
import triton.language as tl

from . import edge, gradient, jet, lanes, moments, spline
from .operands import Graph, Operands
from .spans import rows_of


@triton.jit
def normaliser_bar(
    z_bar, z_bar_dot, z_dot, index, S: tl.constexpr, DUAL: tl.constexpr, FIRST: tl.constexpr
):
    """Cotangent of the normaliser as a jet, which counts once, and the normaliser's tangent."""
    bar = jet.load(z_bar, z_bar_dot, index, (), S.dtype, DUAL)
    if not FIRST:
        bar = jet.scale(bar, 0.0)
    if DUAL:
        return bar, tl.load(z_dot + index).to(S.dtype)
    else:
        return bar, 0.0


@triton.jit
def normalised(values, slopes, z_dot, S: tl.constexpr, DUAL: tl.constexpr):
    """Jets of what is divided by the normaliser: its tangent is ``z_dot``, relative to it."""
    out = ()
    for m in tl.static_range(len(values)):
        if not DUAL:
            out = out + ((values[m],),)
        elif S.attention:
            out = out + ((values[m], slopes[m] - z_dot * values[m]),)
        else:
            out = out + ((values[m], slopes[m]),)
    return out


@triton.jit
def last(a):
    """What a pass is after: the value, or of a dual pass the tangent."""
    return a[len(a) - 1]


# Sizes that vary from batch to batch must not compile anew.
@triton.jit(do_not_specialize=["rows", "span", "num_types"])
def backward_rows_kernel(
    x: Operands,
    x_dot: Operands,
    graph: Graph,
    lse,
    grad,
    z_bar,
    z_bar_dot,
    z_dot,
    out: Operands,
    firsts,
    rows,
    span,
    num_types,
    slab_size,
    S: tl.constexpr,
    P: tl.constexpr,
    DUAL: tl.constexpr,
    FIRST: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    FIND: tl.constexpr,
):
    """Each program visits ``span`` rows, with ``firsts`` those of one target type, so that it can
    collect radial gradients.

    With ``FIND`` the cotangent of the normaliser is not known but written to ``z_bar``: gradients
    are linear in it, so that sums of what it is multiplied by take its place until the row ends.
    """
    STRIDE: tl.constexpr = S.heads * S.channels
    TILE: tl.constexpr = P.row_tile
    program = tl.program_id(0).to(tl.int64)
    head, own = lanes.heads(S, P)
    channel, present = lanes.channels(S.channels, P.block, P.first, S, P)
    tile = tl.arange(0, TILE)[:, None]
    if S.attention:
        dims, real = lanes.channels(S.d, P.d, 0, S, P)
    first_row = program * span
    last_row = tl.minimum(first_row + span, rows)
    if firsts is not None:
        first_row, last_row = rows_of(program, firsts, num_types, span)
    for n in range(first_row, last_row):
        i, start, stop = edge.visit(graph, n)
        target = edge.target(x, x_dot, graph, i, DUAL)
        where_i = i * (S.output_rows * STRIDE) + channel
        place = i * S.heads + head
        lse_i = 0.0
        z_i = ()
        z_dot_i = 0.0
        query_bar = 0.0
        u_bar = ()
        if S.attention:
            query_bar = lanes.zeros(2 if FIND else 1, 1, P.heads * P.d, S)
            lse_i = tl.load(lse + place)
            if FIND:
                z_i = (tl.zeros([1, P.heads], S.dtype),)
                share = tl.zeros([TILE, P.heads], S.dtype)
                point_share = lanes.zeros(3, TILE, P.heads, S)
            else:
                z_i, z_dot_i = normaliser_bar(z_bar, z_bar_dot, z_dot, place, S, DUAL, FIRST)
            if out.u is not None:
                u_bar = lanes.zeros(S.u_rows - 1, TILE, P.heads, S)
        point_bar = lanes.zeros(3, TILE, P.heads, S)
        strain_bar = ()
        if out.strain is not None:
            strain_bar = lanes.zeros(9, TILE, P.heads, S)

        for first in range(start, stop, TILE):
            slot = first + tile
            j, edge_id, e = edge.around(
                target, slot, stop, head, own, x, x_dot, graph, S, True, DUAL
            )
            where = j * (S.input_rows * STRIDE) + channel
            dots, dots_dot = moments.contract(x.v, x_dot.v, grad, where, where_i, present, S, P)
            bar = normalised(dots, dots_dot, z_dot_i, S, DUAL)
            if S.attention:
                where_q = lanes.anew(place * S.d, j)
                kappa = edge.inner(x, x_dot, where_q, (j * S.heads + head) * S.d, S, DUAL)
            else:
                kappa = ()
            w = edge.weights(e, kappa, x, x_dot, graph, lse_i, i, edge_id, head, S)

            g = gradient.vjp(e, w, bar, z_i, x, x_dot, graph, i, edge_id, head, S, P)

            point_bar = edge.added(point_bar, g.difference)
            if out.strain is not None:
                strain_bar = edge.added(strain_bar, g.strain)
            if S.attention:
                factors = (g.kappa,)
                if FIND:
                    share += g.bias[0]
                    kappa_share, difference = gradient.normaliser_vjp(e, w)
                    point_share = edge.added(point_share, difference)
                    factors = (g.kappa, kappa_share)
                query_bar = edge.added_rows(
                    query_bar, factors, x.k, x_dot.k, graph, first, stop, dims, real, S, P
                )
                if out.u is not None:
                    u_bar = edge.added_products(u_bar, g.kappa, e.harmonics)
            if out.bias is not None:
                kept = lanes.both(slot < stop, own)
                if S.attention:
                    lanes.put(out.bias + edge_id * S.heads + head, last(g.bias), kept, ACCUMULATE)
                else:
                    for m in tl.static_range(S.functions):
                        at = (edge_id * S.functions + m) * S.heads + head
                        lanes.put(out.bias + at, last(g.bias[m]), kept, ACCUMULATE)
            if out.polynomials is not None:
                block = e.cell
                if firsts is not None:
                    block -= target.pairs * S.cells
                block = tl.broadcast_to(block, (TILE, P.heads))
                slab = out.polynomials + program * slab_size
                place_in_cell = edge.whole(e.t, P)
                spline.add_to_slab(slab, block, g.functions, place_in_cell, P.functions, S, P)

        if FIND:
            z = -tl.sum(share, axis=0, keep_dims=True)
            lanes.put(z_bar + place, z, own, ACCUMULATE)
            query_bar = (query_bar[0] + lanes.widen(z, P.d) * query_bar[1],)
            point_bar = (
                point_bar[0] + z * point_share[0],
                point_bar[1] + z * point_share[1],
                point_bar[2] + z * point_share[2],
            )
        group = i * tl.num_programs(1) + tl.program_id(1)
        for axis in tl.static_range(3):
            lanes.put(out.pos_i + group * 3 + axis, tl.sum(point_bar[axis]), (), ACCUMULATE)
        if out.strain is not None:
            for m in tl.static_range(9):
                lanes.put(out.strain + group * 9 + m, tl.sum(strain_bar[m]), (), ACCUMULATE)
        if S.attention:
            at = out.q + i * (S.heads * S.d) + dims
            lanes.put(at, query_bar[0] * (S.d**-0.5), real, ACCUMULATE)
            if out.u is not None:
                for m in tl.static_range(1, S.u_rows):
                    at = out.u + (i * S.u_rows + m) * S.heads + head
                    lanes.put(at, tl.sum(u_bar[m - 1], axis=0, keep_dims=True), own, ACCUMULATE)


@triton.jit
def backward_columns_kernel(
    x: Operands,
    x_dot: Operands,
    graph: Graph,
    lse,
    grad,
    z_bar,
    z_bar_dot,
    z_dot,
    out: Operands,
    S: tl.constexpr,
    P: tl.constexpr,
    DUAL: tl.constexpr,
    FIRST: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """One program per source and group of heads; ``graph`` is transposed."""
    STRIDE: tl.constexpr = S.heads * S.channels
    j, start, stop = edge.visit(graph, tl.program_id(0).to(tl.int64))
    head, own = lanes.heads(S, P)
    channel, present = lanes.channels(S.channels, P.block, P.first, S, P)
    point_j = edge.point(x.pos_j, x_dot.pos_j, j, DUAL)
    type_j = tl.load(graph.type_j + j)
    where_j = j * (S.input_rows * STRIDE) + channel
    if S.attention:
        dims, real = lanes.channels(S.d, P.d, 0, S, P)
        key_bar = lanes.zeros(1, 1, P.heads * P.d, S)
    point_bar = lanes.zeros(3, P.tile, P.heads, S)
    value_bar = lanes.zeros(len(P.pairs[0]), 1, P.heads * P.block, S)

    tile = tl.arange(0, P.tile)[:, None]
    for first in range(start, stop, P.tile):
        slot = first + tile
        i, point_i, type_i = edge.fetch(graph, slot, stop, x.pos_i, x_dot.pos_i, graph.type_i, DUAL)
        edge_id = edge.identity(graph.edge, slot, stop)
        e = edge.evaluate(
            edge.separation(point_i, point_j, graph.shift, edge_id),
            edge.tensor9(x.strain, x_dot.strain, i, DUAL),
            type_i * graph.num_types + type_j,
            slot < stop,
            head,
            own,
            x.polynomials,
            x_dot.polynomials,
            S,
            True,
        )
        if S.attention:
            place = i * S.heads + head
            where_k = lanes.anew((j * S.heads + head) * S.d, i)
            kappa = edge.inner(x, x_dot, place * S.d, where_k, S, DUAL)
            lse_i = tl.load(lse + place)
            z_i, z_dot_i = normaliser_bar(z_bar, z_bar_dot, z_dot, place, S, DUAL, FIRST)
        else:
            kappa = ()
            lse_i = 0.0
            z_i = ()
            z_dot_i = 0.0
        w = edge.weights(e, kappa, x, x_dot, graph, lse_i, i, edge_id, head, S)

        products = edge.spread(w.weight, w.radial, e.harmonics, P)
        factors = edge.parts(products, 0)
        if DUAL:
            slopes = edge.parts(products, 1)
            factors = edge.parts(normalised(factors, slopes, z_dot_i, S, DUAL), 1)
        value_bar, dots, dots_dot = moments.scatter(
            value_bar,
            factors,
            x.v,
            x_dot.v,
            where_j,
            grad,
            graph,
            first,
            stop,
            channel,
            present,
            S,
            P,
        )
        bar = normalised(dots, dots_dot, z_dot_i, S, DUAL)
        g = gradient.vjp(e, w, bar, z_i, x, x_dot, graph, i, edge_id, head, S, P)

        point_bar = edge.added(point_bar, g.difference)
        if S.attention:
            key_bar = edge.added_rows(
                key_bar, (g.kappa,), x.q, x_dot.q, graph, first, stop, dims, real, S, P
            )

    group = j * tl.num_programs(1) + tl.program_id(1)
    for axis in tl.static_range(3):
        lanes.put(out.pos_j + group * 3 + axis, -tl.sum(point_bar[axis]), (), ACCUMULATE)
    if S.attention:
        at = out.k + j * (S.heads * S.d) + dims
        lanes.put(at, key_bar[0] * (S.d**-0.5), real, ACCUMULATE)
    for row in tl.static_range(len(P.pairs[0])):
        at = out.v + where_j + P.pairs[0][row] * STRIDE
        lanes.put(at, value_bar[row], present, ACCUMULATE)
