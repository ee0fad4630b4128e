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
def powers(t, DERIVATIVE: tl.constexpr):
    """``d^n/dt^n (1, t, t^2, t^3)`` as ``[T, 1, 4]``."""
    p = tl.arange(0, 4)[None, None, :]
    t = t[:, None, None]
    one = 1.0 + 0.0 * t
    if DERIVATIVE == 0:
        return tl.where(p == 0, one, tl.where(p == 1, t, tl.where(p == 2, t * t, t * t * t)))
    elif DERIVATIVE == 1:
        return tl.where(
            p == 0, 0.0 * one, tl.where(p == 1, one, tl.where(p == 2, 2.0 * t, 3.0 * t * t))
        )
    else:
        return tl.where(p == 2, 2.0 * one, tl.where(p == 3, 6.0 * t, 0.0 * one))


@triton.jit
def block(FUNCTIONS: tl.constexpr):
    """Offsets ``[1, F, 4]`` inside the block of one edge and head, and which of them exist."""
    function = tl.arange(0, triton.next_power_of_2(FUNCTIONS))[None, :, None]
    power = tl.arange(0, 4)[None, None, :]
    return function * 4 + power, function < FUNCTIONS


@triton.jit
def pick(values, n: tl.constexpr):
    """Column ``n`` of ``[T, F]``."""
    column = tl.arange(0, values.shape[1])[None, :]
    return tl.sum(tl.where(column == n, values, 0.0), axis=1)


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
    inside, exists = block(FUNCTIONS)
    where = offset[:, None, None] + inside
    present = mask[:, None, None] & exists
    table = tl.load(polynomials + where, mask=present, other=0.0).to(DTYPE)
    zeroth = tl.sum(table * powers(t[0], 0), axis=2)
    # Dead code where neither a tangent nor a derivative is asked for.
    first = tl.sum(table * powers(t[0], 1), axis=2)
    second = tl.sum(table * powers(t[0], 2), axis=2)
    values = ()
    slopes = ()
    if len(t) == 2:
        zeroth_dot = first * t[1][:, None]
        first_dot = second * t[1][:, None]
        if tangent is not None:
            table_dot = tl.load(tangent + where, mask=present, other=0.0).to(DTYPE)
            zeroth_dot += tl.sum(table_dot * powers(t[0], 0), axis=2)
            first_dot += tl.sum(table_dot * powers(t[0], 1), axis=2)
        for n in tl.static_range(FUNCTIONS):
            values = values + ((pick(zeroth, n), pick(zeroth_dot, n)),)
            if DERIVATIVES:
                slopes = slopes + ((pick(first, n) * SCALE, pick(first_dot, n) * SCALE),)
    else:
        for n in tl.static_range(FUNCTIONS):
            values = values + ((pick(zeroth, n),),)
            if DERIVATIVES:
                slopes = slopes + ((pick(first, n) * SCALE,),)
    return values, slopes


@triton.jit
def polynomials_vjp(values_bar, t, FUNCTIONS: tl.constexpr):
    """Cotangent of the block of each edge, ``[T, F, 4]``: of jets, its tangent."""
    column = tl.arange(0, triton.next_power_of_2(FUNCTIONS))[None, :, None]
    zero = 0.0 * t[0][:, None, None]
    value = zero
    slope = zero
    for n in tl.static_range(FUNCTIONS):
        value = tl.where(column == n, values_bar[n][0][:, None, None], value)
        if len(t) == 2:
            slope = tl.where(column == n, values_bar[n][1][:, None, None], slope)
    if len(t) == 2:
        return slope * powers(t[0], 0) + value * powers(t[0], 1) * t[1][:, None, None]
    else:
        return value * powers(t[0], 0)
