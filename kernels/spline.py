"""Radial functions from cubic polynomials per cell, for a tile of edges and heads.

Polynomials lie as ``[pair, cell, head, function, power]``, so that the heads of an edge read one
contiguous block.
"""

import triton
import triton.language as tl

from . import jet, lanes


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
def coefficients(pointer, where, DTYPE: tl.constexpr):
    """The four coefficients at each place, read at once."""
    power = tl.arange(0, 4)[None, None, :]
    table = tl.load(pointer + where[:, :, None] + power).to(DTYPE)
    even, odd = tl.split(tl.reshape(table, (where.shape[0], where.shape[1], 2, 2)))
    zeroth, second = tl.split(even)
    first, third = tl.split(odd)
    return zeroth, first, second, third


@triton.jit
def evaluate(
    polynomials,
    tangent,
    where,
    t,
    FUNCTIONS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """All functions, each a jet ``[T, H]``; with ``DERIVATIVES`` also their derivatives with
    respect to the distance. ``where`` is the block of each edge and head, ``SCALE`` the number of
    cells per unit of distance.
    """
    values = ()
    slopes = ()
    x = t[0]
    for n in tl.static_range(FUNCTIONS):
        c0, c1, c2, c3 = coefficients(polynomials, where + 4 * n, DTYPE)
        value = c0 + x * (c1 + x * (c2 + x * c3))
        # Dead code where neither a tangent nor a derivative is asked for.
        slope = c1 + x * (2.0 * c2 + 3.0 * x * c3)
        if len(t) == 2:
            value_dot = slope * t[1]
            slope_dot = (2.0 * c2 + 6.0 * x * c3) * t[1]
            if tangent is not None:
                d0, d1, d2, d3 = coefficients(tangent, where + 4 * n, DTYPE)
                value_dot += d0 + x * (d1 + x * (d2 + x * d3))
                slope_dot += d1 + x * (2.0 * d2 + 3.0 * x * d3)
            values = values + ((value, value_dot),)
            if DERIVATIVES:
                slopes = slopes + ((slope * SCALE, slope_dot * SCALE),)
        else:
            values = values + ((value,),)
            if DERIVATIVES:
                slopes = slopes + ((slope * SCALE,),)
    return values, slopes


@triton.jit
def by_function(values, n: tl.constexpr, COUNT: tl.constexpr):
    """Values (0) or tangents (1) of jets ``[T, H]``, one for each function: ``[T, H, F, 1]``."""
    function = tl.arange(0, COUNT)[None, None, :]
    out = tl.where(function == 0, values[0][n][:, :, None], 0.0)
    for m in tl.static_range(1, len(values)):
        out = tl.where(function == m, values[m][n][:, :, None], out)
    return out[:, :, :, None]


@triton.jit
def polynomials_vjp(values_bar, t, COUNT: tl.constexpr):
    """Cotangents of the blocks of each edge, ``[T, H COUNT 4]``: of jets, their tangent."""
    p = tl.arange(0, 4)[None, None, None, :]
    x = t[0][:, :, None, None]
    powers = tl.where(p == 0, 1.0, tl.where(p == 1, x, tl.where(p == 2, x * x, x * x * x)))
    if len(t) == 2:
        slopes = tl.where(p == 0, 0.0, tl.where(p == 1, 1.0, tl.where(p == 2, 2 * x, 3 * x * x)))
        out = by_function(values_bar, 1, COUNT) * powers
        out += by_function(values_bar, 0, COUNT) * (slopes * t[1][:, :, None, None])
    else:
        out = by_function(values_bar, 0, COUNT) * powers
    return tl.reshape(out, (out.shape[0], out.shape[1] * COUNT * 4))


@triton.jit
def add_to_slab(slab, block, values_bar, t, COUNT: tl.constexpr, S: tl.constexpr, P: tl.constexpr):
    """Adds the gradients of a tile to the program's own slab; ``block``: the blocks of all heads of
    each edge. Edges with the same block are summed first, so that no two write to one place, and
    all is read before anything is written, so that reads need not wait for one another.
    """
    where, mask = lanes.channels(S.functions * 4, COUNT * 4, 0, S, P)
    block *= S.heads * S.functions * 4
    blocks = ()
    totals = ()
    old = ()
    places = ()
    for n in tl.static_range(block.shape[0]):
        blocks = blocks + (lanes.widen(lanes.pick(block, n), COUNT * 4),)
        # Four coefficients of a function lie together.
        place = tl.max_contiguous(tl.multiple_of(blocks[n] + where, (1, 4)), (1, 4))
        places = places + (slab + place,)
        old = old + (lanes.load(places[n], mask),)
        row = polynomials_vjp(jet.picks(values_bar, n), lanes.picks(t, n), COUNT)
        totals = totals + (row,)
    masks = ()
    for n in tl.static_range(block.shape[0]):
        first = blocks[n] == blocks[n]
        for m in tl.static_range(n):
            same = blocks[m] == blocks[n]
            total = totals[m] + tl.where(same & first, totals[n], 0.0)
            totals = lanes.replaced(totals, m, total)
            first = first & ~same
        masks = masks + (lanes.both(first, mask),)
    for n in tl.static_range(block.shape[0]):
        lanes.put(places[n], old[n] + totals[n], masks[n], False)
    # What other lanes read for the next tile must be this.
    tl.debug_barrier()
