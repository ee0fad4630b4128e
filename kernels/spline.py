"""Radial functions from cubic polynomials per cell, for a tile of edges and one head.

Polynomials lie as ``[pair, cell, head, function, power]``, so that an edge reads one short
contiguous block.
"""

import triton
import triton.language as tl

from . import jet


@triton.jit
def cells(distance, CUTOFF: tl.constexpr, CELLS: tl.constexpr):
    """The cell of each distance, and the place in it: a jet, in units of cells."""
    place = jet.scale(distance, CELLS / CUTOFF)
    # Both ends: what a position that is not finite gives must stay an index.
    cell = tl.minimum(tl.maximum(place[0].to(tl.int32), 0), CELLS - 1)
    if len(place) == 2:
        return cell, (place[0] - cell.to(place[0].dtype), place[1])
    else:
        return cell, (place[0] - cell.to(place[0].dtype),)


@triton.jit
def columns(FUNCTIONS: tl.constexpr):
    """Offsets inside the block of an edge and head, ``[1, 4 F]``: function, then power.

    Two dimensions and 16 columns at least, as tiles of features have: tiles of one shape lie on
    threads alike, and matrix products have the size that tensor cores ask for.
    """
    WIDTH: tl.constexpr = 16 if FUNCTIONS <= 4 else 32
    return tl.arange(0, WIDTH)[None, :]


@triton.jit
def powers(t, column, DERIVATIVE: tl.constexpr):
    """``d^n/dt^n (1, t, t^2, t^3)`` for each function, ``[T, 4 F]``."""
    p = column % 4
    t = t[:, None]
    zero = tl.zeros_like(t)
    one = zero + 1.0
    if DERIVATIVE == 0:
        return tl.where(p == 0, one, tl.where(p == 1, t, tl.where(p == 2, t * t, t * t * t)))
    elif DERIVATIVE == 1:
        return tl.where(p == 0, zero, tl.where(p == 1, one, tl.where(p == 2, 2 * t, 3 * t * t)))
    else:
        return tl.where(p == 2, 2 * one, tl.where(p == 3, 6 * t, zero))


@triton.jit
def pick(terms, column, n: tl.constexpr):
    """Sum of the terms of function ``n``."""
    return tl.sum(tl.where(column // 4 == n, terms, 0.0), axis=1)


@triton.jit
def evaluate(
    polynomials,
    tangent,
    offset,
    mask,
    t,
    FUNCTIONS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """All functions, each a jet ``[T]``; with ``DERIVATIVES`` also their derivatives with respect
    to the distance. ``SCALE`` is the number of cells per unit of distance.
    """
    column = columns(FUNCTIONS)
    where = offset[:, None] + column
    present = mask[:, None] & (column < 4 * FUNCTIONS)
    table = tl.load(polynomials + where, mask=present, other=0.0).to(DTYPE)
    zeroth = table * powers(t[0], column, 0)
    # Dead code where neither a tangent nor a derivative is asked for.
    first = table * powers(t[0], column, 1)
    values = ()
    slopes = ()
    if len(t) == 2:
        zeroth_dot = first * t[1][:, None]
        first_dot = table * powers(t[0], column, 2) * t[1][:, None]
        if tangent is not None:
            table_dot = tl.load(tangent + where, mask=present, other=0.0).to(DTYPE)
            zeroth_dot += table_dot * powers(t[0], column, 0)
            first_dot += table_dot * powers(t[0], column, 1)
        for n in tl.static_range(FUNCTIONS):
            values = values + ((pick(zeroth, column, n), pick(zeroth_dot, column, n)),)
            if DERIVATIVES:
                slope = pick(first, column, n) * SCALE
                slopes = slopes + ((slope, pick(first_dot, column, n) * SCALE),)
    else:
        for n in tl.static_range(FUNCTIONS):
            values = values + ((pick(zeroth, column, n),),)
            if DERIVATIVES:
                slopes = slopes + ((pick(first, column, n) * SCALE,),)
    return values, slopes


@triton.jit
def polynomials_vjp(values_bar, t, FUNCTIONS: tl.constexpr):
    """Cotangent of the block of each edge, ``[T, 4 F]``: of jets, its tangent."""
    column = columns(FUNCTIONS)
    value = tl.zeros_like(t[0])[:, None]
    slope = value
    for n in tl.static_range(FUNCTIONS):
        value = tl.where(column // 4 == n, values_bar[n][0][:, None], value)
        if len(t) == 2:
            slope = tl.where(column // 4 == n, values_bar[n][1][:, None], slope)
    if len(t) == 2:
        inner = powers(t[0], column, 1) * t[1][:, None]
        return slope * powers(t[0], column, 0) + value * inner
    else:
        return value * powers(t[0], column, 0)
