"""Sums over neighbours of moments, and their coupling to path rows, one head at a time."""

import triton
import triton.language as tl


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (tl.zeros([ROWS, COLUMNS], DTYPE),)
    return out


@triton.jit
def scaled(sums, factor):
    out = ()
    for n in tl.static_range(len(sums)):
        out = out + (sums[n] * factor,)
    return out


@triton.jit
def accumulate(sums, weights, rows, P: tl.constexpr):
    """Adds ``weights[moment] rows[row]`` to each pair; weights are ``[T]``, rows ``[T, C]``."""
    out = ()
    for row in tl.static_range(len(P.pairs[0])):
        for n in tl.static_range(P.pairs[1][row], P.pairs[1][row + 1]):
            out = out + (sums[n] + weights[P.pairs[2][n]][:, None] * rows[row],)
    return out


@triton.jit
def store_coupled(sums, out, where, mask, stride, y, z, P: tl.constexpr):
    """Couples moments and writes each output row, summed over the tile; with ``y`` less ``z y``."""
    for row in tl.static_range(len(P.coupling[0])):
        total = tl.zeros_like(sums[0])
        for n in tl.static_range(P.coupling[1][row], P.coupling[1][row + 1]):
            total += sums[P.coupling[2][n]] * P.coupling[3][n]
        place = where + P.coupling[0][row] * stride
        value = tl.sum(total, axis=0)
        if y is not None:
            value -= z * tl.load(y + place, mask=mask, other=0.0).to(value.dtype)
        tl.store(out + place, value, mask=mask)


@triton.jit
def load_adjoint(grad, where, mask, stride, DTYPE: tl.constexpr, P: tl.constexpr):
    """Cotangents of the moments from those of the path rows."""
    rows = ()
    for row in tl.static_range(len(P.adjoint[0])):
        value = tl.load(grad + where + P.adjoint[0][row] * stride, mask=mask, other=0.0)
        rows = rows + (value.to(DTYPE),)
    out = ()
    for pair in tl.static_range(len(P.pairs[2])):
        out = out + (adjoint_of(rows, pair, P),)
    return out


@triton.jit
def adjoint_of(rows, PAIR: tl.constexpr, P: tl.constexpr):
    """Cotangent of one moment from those of the path rows loaded so far."""
    total = tl.zeros_like(rows[0])
    for n in tl.static_range(P.adjoint[1][PAIR], P.adjoint[1][PAIR + 1]):
        total += rows[P.adjoint[2][n]] * P.adjoint[3][n]
    return total


@triton.jit
def replaced(values, n: tl.constexpr, value):
    """A tuple with one entry replaced."""
    out = ()
    for m in tl.static_range(len(values)):
        if m == n:
            out = out + (value,)
        else:
            out = out + (values[m],)
    return out


@triton.jit
def contract(moments_bar, rows, TILE: tl.constexpr, P: tl.constexpr):
    """Inner products ``[T]`` of the cotangents (``[C]`` each) with rows ``[T, C]``, by moment."""
    DTYPE: tl.constexpr = moments_bar[0].dtype
    BLOCK: tl.constexpr = P.block
    dots = zeros(len(P.moments[0]), TILE, BLOCK, DTYPE)
    for row in tl.static_range(len(P.pairs[0])):
        for n in tl.static_range(P.pairs[1][row], P.pairs[1][row + 1]):
            product = dots[P.pairs[2][n]] + moments_bar[n][None, :] * rows[row]
            dots = replaced(dots, P.pairs[2][n], product)
    return summed(dots, 1)


@triton.jit
def summed(values, AXIS: tl.constexpr):
    out = ()
    for n in tl.static_range(len(values)):
        out = out + (tl.sum(values[n], axis=AXIS),)
    return out


@triton.jit
def load_rows(v, where, mask, stride, DTYPE: tl.constexpr, P: tl.constexpr):
    """The input rows of one node or of a tile of nodes."""
    out = ()
    for row in tl.static_range(len(P.pairs[0])):
        value = tl.load(v + where + P.pairs[0][row] * stride, mask=mask, other=0.0)
        out = out + (value.to(DTYPE),)
    return out


@triton.jit
def scatter(
    sums,
    weights,
    values,
    values_dot,
    grad,
    where,
    mask,
    stride,
    TILE: tl.constexpr,
    P: tl.constexpr,
):
    """Adds ``sum_m weights[m] moments_bar[m, row]`` to each input row, with the cotangents of the
    moments of a tile of targets; also their inner products with the rows of the source and with
    the tangents of these, by moment.
    """
    DTYPE: tl.constexpr = sums[0].dtype
    BLOCK: tl.constexpr = P.block
    dots = zeros(len(P.moments[0]), TILE, BLOCK, DTYPE)
    dots_dot = dots
    loaded = ()
    out = ()
    for row in tl.static_range(len(P.pairs[0])):
        total = sums[row]
        for n in tl.static_range(P.pairs[1][row], P.pairs[1][row + 1]):
            for r in tl.static_range(P.adjoint[4][n], P.adjoint[4][n + 1]):
                entry = tl.load(grad + where + P.adjoint[0][r] * stride, mask=mask, other=0.0)
                loaded = loaded + (entry.to(DTYPE),)
            bar = adjoint_of(loaded, n, P)
            total += weights[P.pairs[2][n]][:, None] * bar
            product = dots[P.pairs[2][n]] + bar * values[row][None, :]
            dots = replaced(dots, P.pairs[2][n], product)
            if len(values_dot) > 0:
                product = dots_dot[P.pairs[2][n]] + bar * values_dot[row][None, :]
                dots_dot = replaced(dots_dot, P.pairs[2][n], product)
        out = out + (total,)
    return out, summed(dots, 1), summed(dots_dot, 1)
