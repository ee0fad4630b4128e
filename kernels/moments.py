"""Sums over neighbours of moments, and their coupling to path rows: a row ``[1, W]`` of features at
a time, in the pass over rows a tile ``[T, W]``.
"""

import triton
import triton.language as tl

from . import edge, lanes


@triton.jit
def scaled(sums, factor):
    out = ()
    for n in tl.static_range(len(sums)):
        out = out + (sums[n] * factor,)
    return out


@triton.jit
def accumulate(
    sums, coefficients, v, graph, first, stop, channel, mask, S: tl.constexpr, P: tl.constexpr
):
    """Adds ``coefficients[moment] v[row]`` of each edge of a tile to each pair."""
    STRIDE: tl.constexpr = S.heads * S.channels
    for n in range(0, P.tile, P.unroll):
        for k in tl.static_range(P.unroll):
            where = edge.neighbor(graph, first + n + k, stop) * (S.input_rows * STRIDE) + channel
            factors = lanes.wide_picks(coefficients, n + k, P.block)
            out = ()
            for row in tl.static_range(len(P.pairs[0])):
                value = lanes.load(v + where + P.pairs[0][row] * STRIDE, mask).to(S.dtype)
                for pair in tl.static_range(P.pairs[1][row], P.pairs[1][row + 1]):
                    out = out + (sums[pair] + factors[P.pairs[2][pair]] * value,)
            sums = out
    return sums


@triton.jit
def store_coupled(sums, out, where, mask, STRIDE: tl.constexpr, y, z, grad, P: tl.constexpr):
    """Couples moments and writes each output row; with ``y`` less ``z y``. Returns the sum over
    rows of their products with those of ``grad``, if given.
    """
    inner = tl.zeros_like(sums[0])
    for row in tl.static_range(len(P.coupling[0])):
        total = tl.zeros_like(sums[0])
        for n in tl.static_range(P.coupling[1][row], P.coupling[1][row + 1]):
            total += sums[P.coupling[2][n]] * P.coupling[3][n]
        place = where + P.coupling[0][row] * STRIDE
        if y is not None:
            total -= z * lanes.load(y + place, mask).to(total.dtype)
        if grad is not None:
            inner += total * lanes.load(grad + place, mask).to(total.dtype)
        lanes.put(out + place, total, mask, False)
    return inner


@triton.jit
def adjoint_of(rows, PAIR: tl.constexpr, P: tl.constexpr):
    """Cotangent of one moment from those of the path rows loaded so far."""
    total = tl.zeros_like(rows[0])
    for n in tl.static_range(P.adjoint[1][PAIR], P.adjoint[1][PAIR + 1]):
        total += rows[P.adjoint[2][n]] * P.adjoint[3][n]
    return total


@triton.jit
def needed_rows(
    rows,
    grad,
    where,
    mask,
    PAIR: tl.constexpr,
    STRIDE: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
):
    """The path rows loaded so far and those that a moment needs besides."""
    for row in tl.static_range(P.adjoint[4][PAIR], P.adjoint[4][PAIR + 1]):
        entry = lanes.load(grad + where + P.adjoint[0][row] * STRIDE, mask)
        rows = rows + (entry.to(S.dtype),)
    return rows


@triton.jit
def contract(v, v_dot, grad, where, where_i, mask, S: tl.constexpr, P: tl.constexpr):
    """Inner products ``[T, H]`` of the cotangents of a target's moments with the values of its
    neighbours and with the tangents of these, by moment. The cotangents are worked out for each
    tile: kept, they would take the registers that scores need.
    """
    STRIDE: tl.constexpr = S.heads * S.channels
    dots = lanes.zeros(len(P.moments[0]), where.shape[0], P.heads * P.block, S)
    dots_dot = dots
    loaded = ()
    for row in tl.static_range(len(P.pairs[0])):
        value = lanes.load(v + where + P.pairs[0][row] * STRIDE, mask).to(S.dtype)
        if v_dot is not None:
            value_dot = lanes.load(v_dot + where + P.pairs[0][row] * STRIDE, mask).to(S.dtype)
        for pair in tl.static_range(P.pairs[1][row], P.pairs[1][row + 1]):
            loaded = needed_rows(loaded, grad, where_i, mask, pair, STRIDE, S, P)
            bar = adjoint_of(loaded, pair, P)
            total = dots[P.pairs[2][pair]] + bar * value
            dots = lanes.replaced(dots, P.pairs[2][pair], total)
            if v_dot is not None:
                total = dots_dot[P.pairs[2][pair]] + bar * value_dot
                dots_dot = lanes.replaced(dots_dot, P.pairs[2][pair], total)
    return narrowed(dots, P), narrowed(dots_dot, P)


@triton.jit
def narrowed(tiles, P: tl.constexpr):
    out = ()
    for n in tl.static_range(len(tiles)):
        out = out + (lanes.settled(lanes.narrow(tiles[n], P.heads)),)
    return out


@triton.jit
def scatter(
    sums,
    coefficients,
    v,
    v_dot,
    where_j,
    grad,
    graph,
    first,
    stop,
    channel,
    mask,
    S: tl.constexpr,
    P: tl.constexpr,
):
    """Adds ``sum_m coefficients[m] moments_bar[m, row]`` of each edge to each input row, with the
    cotangents of the moments of its target; also their inner products ``[T, H]`` with the rows of
    the source and with the tangents of these, by moment. The rows of the source are read for each
    edge: kept, they would take the registers that sums need.
    """
    STRIDE: tl.constexpr = S.heads * S.channels
    COUNT: tl.constexpr = len(P.moments[0])
    dots = lanes.zeros(COUNT, P.tile, P.heads, S)
    dots_dot = dots
    for n in range(P.tile):
        neighbor = edge.neighbor(graph, first + n, stop)
        where = neighbor * (S.output_rows * STRIDE) + channel
        where_v = lanes.anew(where_j, neighbor)
        factors = lanes.wide_picks(coefficients, n, P.block)
        products = lanes.zeros(COUNT, 1, P.heads * P.block, S)
        products_dot = products
        loaded = ()
        out = ()
        for row in tl.static_range(len(P.pairs[0])):
            total = sums[row]
            at = where_v + P.pairs[0][row] * STRIDE
            value = lanes.load(v + at, mask).to(S.dtype)
            if v_dot is not None:
                value_dot = lanes.load(v_dot + at, mask).to(S.dtype)
            for pair in tl.static_range(P.pairs[1][row], P.pairs[1][row + 1]):
                loaded = needed_rows(loaded, grad, where, mask, pair, STRIDE, S, P)
                bar = adjoint_of(loaded, pair, P)
                total += factors[P.pairs[2][pair]] * bar
                product = products[P.pairs[2][pair]] + bar * value
                products = lanes.replaced(products, P.pairs[2][pair], product)
                if v_dot is not None:
                    product = products_dot[P.pairs[2][pair]] + bar * value_dot
                    products_dot = lanes.replaced(products_dot, P.pairs[2][pair], product)
            out = out + (total,)
        sums = out
        dots = lanes.with_rows(dots, n, products)
        dots_dot = lanes.with_rows(dots_dot, n, products_dot)
    return sums, dots, dots_dot
