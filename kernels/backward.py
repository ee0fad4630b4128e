"""Gradients by operand in two passes without atomics: over rows for what belongs to targets and to
edges, over columns (the transposed neighbourhoods) for what belongs to sources.

With ``DUAL`` a pass gives the derivative of these gradients along tangents of all operands.
"""

import triton
import triton.language as tl

from . import edge, jet, moments, spline
from .operands import Graph, Operands


@triton.jit
def normaliser_bar(z_bar, z_bar_dot, z_dot, index, mask, S: tl.constexpr, DUAL: tl.constexpr):
    """Cotangent of the normaliser as a jet, and the tangent of the normaliser."""
    bar = jet.load(z_bar, z_bar_dot, index, mask, S.dtype, DUAL)
    if DUAL:
        return bar, tl.load(z_dot + index, mask=mask, other=0.0).to(S.dtype)
    else:
        return bar, bar[0] * 0.0


@triton.jit
def moments_bar(dots, dots_dot, z_dot, S: tl.constexpr):
    """Jets from the inner products with values and with their tangents. The output is the sum over
    the normaliser, so that its cotangent has the tangent ``-z_dot`` times itself.
    """
    out = ()
    for m in tl.static_range(len(dots)):
        if S.attention:
            out = out + ((dots[m], dots_dot[m] - z_dot * dots[m]),)
        else:
            out = out + ((dots[m], dots_dot[m]),)
    return out


@triton.jit
def singles(values):
    out = ()
    for n in tl.static_range(len(values)):
        out = out + ((values[n],),)
    return out


@triton.jit
def last(a):
    """What a pass is after: the value, or of a dual pass the tangent."""
    return a[len(a) - 1]


@triton.jit
def put(pointer, where, value, mask, ACCUMULATE: tl.constexpr):
    if ACCUMULATE:
        value += tl.load(pointer + where, mask=mask, other=0.0).to(value.dtype)
    tl.store(pointer + where, value, mask=mask)


@triton.jit
def put_polynomials(slab, base, e, functions_bar, TILE: tl.constexpr, S: tl.constexpr):
    """Adds to the program's own slab, whose first block is ``base``. Edges with the same block are
    summed first, so that no two write to one place; the barrier orders what different threads
    write there in turn.
    """
    flat = spline.polynomials_vjp(functions_bar, e.t, S.functions)
    inner = spline.columns(S.functions)
    place = tl.arange(0, TILE)
    # Written so that the block seems to depend on the values (what is not a number goes to block
    # 0): the compiler would else compute the geometry anew in the layout that the product wants.
    block = tl.where(e.inside, e.cell - base, -1).to(tl.int32)
    block = tl.max(tl.where(flat == flat, block[:, None], 0), axis=1)
    across = tl.max(tl.where(place[:, None] == place[None, :], block[:, None], -1), axis=0)
    same = block[:, None] == across[None, :]
    earlier = tl.max((same & (place[None, :] < place[:, None])).to(tl.int32), axis=1)
    # Zeros and ones are exact in TF32, and three products are as good as float32.
    total = tl.dot(same.to(S.dtype), flat, input_precision="tf32x3")
    mask = ((block >= 0) & (earlier == 0))[:, None] & (inner < 4 * S.functions)
    where = slab + (block * (4 * S.functions))[:, None] + inner
    tl.store(where, tl.load(where, mask=mask, other=0.0) + total, mask=mask)
    tl.debug_barrier()


@triton.jit
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
    bounds,
    rows,
    span,
    slab_size,
    S: tl.constexpr,
    P: tl.constexpr,
    TILE: tl.constexpr,
    DUAL: tl.constexpr,
    FIRST: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Each program visits ``span`` rows, or with ``bounds`` (first, last + 1) rows of one target
    type, so that it can collect radial gradients.
    """
    DTYPE: tl.constexpr = S.dtype
    STRIDE: tl.constexpr = S.heads * S.channels
    program = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    channel, in_head = edge.channels(head, S, P)
    first_row = program * span
    last_row = tl.minimum(first_row + span, rows)
    if bounds is not None:
        first_row = tl.load(bounds + 2 * program)
        last_row = tl.load(bounds + 2 * program + 1)
    for n in range(first_row, last_row):
        i, start, stop, valid = edge.row_at(graph, n)
        point_i = edge.point(x.pos_i, x_dot.pos_i, i, valid, DUAL)
        strain = edge.tensor9(x.strain, x_dot.strain, i, valid, DUAL)
        type_i = tl.load(graph.type_i + i) * graph.num_types
        where_i = i * (S.output_rows * STRIDE) + channel
        place = i * S.heads + head
        lse_i = 0.0
        z_i = ()
        z_dot_i = 0.0
        query_bar = ()
        u_bar = ()
        if S.attention:
            query = edge.head_vector(x.q, x_dot.q, i, head, valid, S, DUAL)
            query_bar = moments.zeros(1, TILE, triton.next_power_of_2(S.d), DTYPE)
            lse_i = tl.load(lse + place)
            z_i, z_dot_i = normaliser_bar(z_bar, z_bar_dot, z_dot, place, valid, S, DUAL)
            if not FIRST:
                z_i = jet.scale(z_i, 0.0)
            if out.u is not None:
                u_bar = edge.vectors(S.u_rows - 1, TILE, DTYPE)
        point_bar = edge.vectors(3, TILE, DTYPE)
        strain_bar = ()
        if out.strain is not None:
            strain_bar = edge.vectors(9, TILE, DTYPE)

        tile = tl.arange(0, TILE)
        fetched = edge.fetch(graph, start + tile, stop, x.pos_j, x_dot.pos_j, graph.type_j, DUAL)
        for first in tl.range(start, stop, TILE, num_stages=2):
            slot = first + tile
            mask = slot < stop
            j, point_j, type_j = fetched
            where = (j * (S.input_rows * STRIDE))[:, None] + channel[None, :]
            present = mask[:, None] & in_head[None, :]
            values = moments.load_rows(x.v, where, present, STRIDE, DTYPE, P)
            adjoint = moments.load_adjoint(grad, where_i, in_head, STRIDE, DTYPE, P)
            dots = moments.contract(adjoint, values, TILE, P)
            if DUAL:
                dots_dot = edge.vectors(len(dots), TILE, DTYPE)
                if x_dot.v is not None:
                    values = moments.load_rows(x_dot.v, where, present, STRIDE, DTYPE, P)
                    dots_dot = moments.contract(adjoint, values, TILE, P)
                bar = moments_bar(dots, dots_dot, z_dot_i, S)
            else:
                bar = singles(dots)
            if S.attention:
                key = edge.head_vectors(x.k, x_dot.k, j, head, mask, S, DUAL)
            fetched = edge.fetch(graph, slot + TILE, stop, x.pos_j, x_dot.pos_j, graph.type_j, DUAL)
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
                True,
            )
            if S.attention:
                kappa = edge.inner(query, key, S)
            else:
                kappa = ()
            w = edge.weights(e, kappa, x, x_dot, graph, lse_i, i, edge_id, head, valid, mask, S)

            g = edge.vjp(e, w, bar, z_i, x, x_dot, graph, i, edge_id, head, valid, S, P)

            point_bar = edge.added(point_bar, g.difference)
            if out.strain is not None:
                strain_bar = edge.added(strain_bar, g.strain)
            if S.attention:
                product = jet.mul(jet.expand(g.kappa), key)
                query_bar = (query_bar[0] + last(product),)
                if out.u is not None:
                    u_bar = edge.added_products(u_bar, g.kappa, e.harmonics)
            if out.bias is not None:
                if S.attention:
                    put(out.bias, edge_id * S.heads + head, last(g.bias), mask, ACCUMULATE)
                else:
                    for m in tl.static_range(S.functions):
                        at = (edge_id * S.functions + m) * S.heads + head
                        put(out.bias, at, last(g.bias[m]), mask, ACCUMULATE)
            if out.polynomials is not None:
                base = i * 0
                if bounds is not None:
                    base = type_i * (S.cells * S.heads)
                slab = out.polynomials + program * slab_size
                put_polynomials(slab, base, e, g.functions, TILE, S)

        for axis in tl.static_range(3):
            put(out.pos_i, place * 3 + axis, tl.sum(point_bar[axis], axis=0), valid, ACCUMULATE)
        if out.strain is not None:
            for m in tl.static_range(9):
                total = tl.sum(strain_bar[m], axis=0)
                put(out.strain, place * 9 + m, total, valid, ACCUMULATE)
        if S.attention:
            d = tl.arange(0, triton.next_power_of_2(S.d))
            total = tl.sum(query_bar[0], axis=0) * (S.d**-0.5)
            put(out.q, place * S.d + d, total, d < S.d, ACCUMULATE)
            if out.u is not None:
                for m in tl.static_range(1, S.u_rows):
                    at = (i * S.u_rows + m) * S.heads + head
                    put(out.u, at, tl.sum(u_bar[m - 1], axis=0), valid, ACCUMULATE)


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
    """One program per source and head; ``graph`` is transposed."""
    DTYPE: tl.constexpr = S.dtype
    STRIDE: tl.constexpr = S.heads * S.channels
    TILE: tl.constexpr = P.column_tile
    BLOCK: tl.constexpr = P.block
    j, start, stop, valid = edge.row(graph)
    head = tl.program_id(1)
    channel, in_head = edge.channels(head, S, P)
    point_j = edge.point(x.pos_j, x_dot.pos_j, j, valid, DUAL)
    type_j = tl.load(graph.type_j + j)
    where_j = j * (S.input_rows * STRIDE) + channel
    value = moments.load_rows(x.v, where_j, in_head, STRIDE, DTYPE, P)
    value_dot = ()
    if DUAL:
        if x_dot.v is not None:
            value_dot = moments.load_rows(x_dot.v, where_j, in_head, STRIDE, DTYPE, P)
    key_bar = ()
    if S.attention:
        key = edge.head_vector(x.k, x_dot.k, j, head, valid, S, DUAL)
        key_bar = moments.zeros(1, TILE, triton.next_power_of_2(S.d), DTYPE)
    point_bar = edge.vectors(3, TILE, DTYPE)
    value_bar = moments.zeros(len(P.pairs[0]), TILE, BLOCK, DTYPE)

    tile = tl.arange(0, TILE)
    fetched = edge.fetch(graph, start + tile, stop, x.pos_i, x_dot.pos_i, graph.type_i, DUAL)
    for first in tl.range(start, stop, TILE, num_stages=2):
        slot = first + tile
        mask = slot < stop
        i, point_i, type_i = fetched
        fetched = edge.fetch(graph, slot + TILE, stop, x.pos_i, x_dot.pos_i, graph.type_i, DUAL)
        edge_id = edge.identity(graph.edge, slot, mask)
        e = edge.evaluate(
            edge.separation(point_i, point_j, graph.shift, edge_id, mask),
            edge.tensor9(x.strain, x_dot.strain, i, mask, DUAL),
            type_i * graph.num_types + type_j,
            mask,
            head,
            x.polynomials,
            x_dot.polynomials,
            S,
            True,
        )
        place = i * S.heads + head
        if S.attention:
            query = edge.head_vectors(x.q, x_dot.q, i, head, mask, S, DUAL)
            kappa = edge.inner(key, query, S)
            lse_i = tl.load(lse + place, mask=mask, other=0.0)
            z_i, z_dot_i = normaliser_bar(z_bar, z_bar_dot, z_dot, place, mask, S, DUAL)
            if not FIRST:
                z_i = jet.scale(z_i, 0.0)
        else:
            kappa = ()
            lse_i = 0.0
            z_i = ()
            z_dot_i = 0.0
        w = edge.weights(e, kappa, x, x_dot, graph, lse_i, i, edge_id, head, mask, mask, S)

        coefficients = edge.spread(w.weight, w.radial, e.harmonics, P)
        if DUAL:
            factors = ()
            for m in tl.static_range(len(coefficients)):
                if S.attention:
                    factor = coefficients[m][1] - z_dot_i * coefficients[m][0]
                    factors = factors + (factor,)
                else:
                    factors = factors + (coefficients[m][1],)
        else:
            factors = edge.parts(coefficients, 0)
        where = (i * (S.output_rows * STRIDE))[:, None] + channel[None, :]
        present = mask[:, None] & in_head[None, :]
        value_bar, dots, dots_dot = moments.scatter(
            value_bar, factors, value, value_dot, grad, where, present, STRIDE, TILE, P
        )
        if DUAL:
            bar = moments_bar(dots, dots_dot, z_dot_i, S)
        else:
            bar = singles(dots)
        g = edge.vjp(e, w, bar, z_i, x, x_dot, graph, i, edge_id, head, mask, S, P)

        point_bar = edge.added(point_bar, g.difference)
        if S.attention:
            product = jet.mul(jet.expand(g.kappa), query)
            key_bar = (key_bar[0] + last(product),)

    place = j * S.heads + head
    for axis in tl.static_range(3):
        put(out.pos_j, place * 3 + axis, -tl.sum(point_bar[axis], axis=0), valid, ACCUMULATE)
    if S.attention:
        d = tl.arange(0, triton.next_power_of_2(S.d))
        total = tl.sum(key_bar[0], axis=0) * (S.d**-0.5)
        put(out.k, place * S.d + d, total, d < S.d, ACCUMULATE)
    for row in tl.static_range(len(P.pairs[0])):
        at = where_j + P.pairs[0][row] * STRIDE
        put(out.v, at, tl.sum(value_bar[row], axis=0), in_head, ACCUMULATE)
