"""Distance, direction, cutoff envelope and harmonics of a tile of edges, on jets."""

import triton
import triton.language as tl

from . import jet


@triton.jit
def direction(r):
    """Length, inverse length and unit vector; all zero at zero length, with zero derivatives."""
    squared = r[0][0] * r[0][0] + r[1][0] * r[1][0] + r[2][0] * r[2][0]
    nonzero = squared > 0
    # Rounded correctly, so that an edge as long as the cutoff is not inside it.
    if squared.dtype == tl.float32:
        safe = tl.sqrt_rn(tl.where(nonzero, squared, 1.0))
    else:
        safe = tl.sqrt(tl.where(nonzero, squared, 1.0))
    value = tl.where(nonzero, 1.0 / safe, 0.0)
    length = tl.where(nonzero, safe, 0.0)
    if len(r[0]) == 2:
        slope = (r[0][0] * r[0][1] + r[1][0] * r[1][1] + r[2][0] * r[2][1]) * value
        distance = (length, slope)
        inverse = (value, -value * value * slope)
    else:
        distance = (length,)
        inverse = (value,)
    unit = (jet.mul(r[0], inverse), jet.mul(r[1], inverse), jet.mul(r[2], inverse))
    return distance, inverse, unit


@triton.jit
def direction_vjp(distance_bar, unit_bar, inverse, unit):
    """Cotangent of ``r`` from those of its length and unit vector."""
    radial = jet.dot3(unit, unit_bar)
    along = jet.add(distance_bar, jet.scale(jet.mul(inverse, radial), -1.0))
    return (
        jet.add(jet.mul(inverse, unit_bar[0]), jet.mul(unit[0], along)),
        jet.add(jet.mul(inverse, unit_bar[1]), jet.mul(unit[1], along)),
        jet.add(jet.mul(inverse, unit_bar[2]), jet.mul(unit[2], along)),
    )


@triton.jit
def envelope(distance, CUTOFF: tl.constexpr):
    """``(1 - x)^3 (1 + 3x + 6x^2)`` of ``x = r / CUTOFF``, and its derivative with respect to
    ``r``. The caller masks what lies beyond the cutoff.
    """
    x = distance[0] * (1.0 / CUTOFF)
    rest = tl.maximum(1.0 - x, 0.0)  # x may round up to 1
    value = rest * rest * rest * (1.0 + x * (3.0 + 6.0 * x))
    first = (-30.0 / CUTOFF) * (x * x) * (rest * rest)
    second = (-60.0 / (CUTOFF * CUTOFF)) * x * rest * (1.0 - 2.0 * x)
    return jet.chain(value, first, distance), jet.chain(first, second, distance)


@triton.jit
def harmonics(unit, S: tl.constexpr):
    """Rows ``0 .. ROWS - 1`` of the solid harmonics, each a bilinear form of the vector and the
    rows of the degree below. Terms: :attr:`Spec.harmonics`.
    """
    zero = tl.zeros_like(unit[0][0])
    rows = (jet.constant(zero + 1.0, unit[0]),)
    for row in tl.static_range(1, S.rows):
        total = jet.constant(zero, unit[0])
        for n in tl.static_range(S.harmonics[0][row], S.harmonics[0][row + 1]):
            product = jet.mul(unit[S.harmonics[1][n]], rows[S.harmonics[2][n]])
            total = jet.add(total, jet.scale(product, S.harmonics[3][n]))
        rows = rows + (total,)
    return rows


@triton.jit
def harmonics_vjp(rows, rows_bar, S: tl.constexpr):
    """Cotangent of the vector. A row of degree ``l`` is ``sum c x_a R`` over rows ``R`` of the
    degree below, and its gradient is ``l sum c R``, without a derivative of ``R``. An empty
    cotangent is zero.
    """
    zero = jet.constant(tl.zeros_like(rows[0][0]), rows[0])
    x_bar = zero
    y_bar = zero
    z_bar = zero
    for row in tl.static_range(1, S.rows):
        if len(rows_bar[row]) > 0:
            row_bar = jet.scale(rows_bar[row], S.harmonics[4][row])
            for n in tl.static_range(S.harmonics[0][row], S.harmonics[0][row + 1]):
                part = jet.scale(jet.mul(row_bar, rows[S.harmonics[2][n]]), S.harmonics[3][n])
                if S.harmonics[1][n] == 0:
                    x_bar = jet.add(x_bar, part)
                elif S.harmonics[1][n] == 1:
                    y_bar = jet.add(y_bar, part)
                else:
                    z_bar = jet.add(z_bar, part)
    return (x_bar, y_bar, z_bar)
