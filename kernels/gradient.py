"""The gradient of what :mod:`edge` computes for a tile of edges and heads, on jets."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import edge, geometry, jet


class Gradient(NamedTuple):
    """Cotangents of what an edge reads."""

    bias: Any  # a jet, of the convolution one for each order
    kappa: Any  # of the convolution: ()
    functions: Any  # of the radial functions
    difference: Any  # three jets
    strain: Any  # nine jets, or ()


@triton.jit
def spread_vjp(weight, values, harmonics, moment_bar, S: tl.constexpr, P: tl.constexpr):
    """Adjoint of :func:`spread`: the cotangents of the weight, of the values and of the harmonics
    (an empty tuple for rows that no moment uses)."""
    zero = jet.constant(tl.zeros_like(weight[0]), weight)
    total = zero
    values_bar = ()
    for n in tl.static_range(len(values)):
        along = zero
        for m in tl.static_range(len(P.moments[0])):
            if P.moments[0][m] == n:
                along = jet.add(along, jet.mul(harmonics[P.moments[1][m]], moment_bar[m]))
        total = jet.add(total, jet.mul(values[n], along))
        values_bar = values_bar + (jet.mul(weight, along),)
    rows_bar = ()
    for row in tl.static_range(S.rows):
        entry = ()
        for m in tl.static_range(len(P.moments[0])):
            if P.moments[1][m] == row:
                entry = jet.mul(jet.mul(weight, values[P.moments[0][m]]), moment_bar[m])
        rows_bar = rows_bar + (entry,)
    return total, values_bar, rows_bar


@triton.jit
def geometry_vjp(e, envelope_bar, functions_bar, rows_bar, S: tl.constexpr):
    """Cotangents of the difference vector and of the strain."""
    distance_bar = jet.mul(envelope_bar, e.envelope_slope)
    for n in tl.static_range(len(functions_bar)):
        distance_bar = jet.add(distance_bar, jet.mul(functions_bar[n], e.slopes[n]))
    unit_bar = geometry.harmonics_vjp(e.harmonics, rows_bar, S)
    r_bar = geometry.direction_vjp(distance_bar, unit_bar, e.inverse, e.unit)
    if len(e.strain) == 0:
        return r_bar, ()
    else:
        difference = edge.cast3(e.difference, S.dtype)
        strain_bar = ()
        strain = ()
        for n in tl.static_range(9):
            strain_bar = strain_bar + (jet.mul(difference[n // 3], r_bar[n % 3]),)
            strain = strain + (jet.cast(e.strain[n], S.dtype),)
        difference_bar = (
            jet.add(r_bar[0], jet.dot3(r_bar, (strain[0], strain[1], strain[2]))),
            jet.add(r_bar[1], jet.dot3(r_bar, (strain[3], strain[4], strain[5]))),
            jet.add(r_bar[2], jet.dot3(r_bar, (strain[6], strain[7], strain[8]))),
        )
        return difference_bar, strain_bar


@triton.jit
def with_direction(rows_bar, kappa_bar, u, u_dot, i, head, S: tl.constexpr):
    """Adds what the directional term gives to the cotangents of the harmonics."""
    if u is None:
        return rows_bar
    else:
        DUAL: tl.constexpr = len(kappa_bar) == 2
        out = (rows_bar[0],)
        for row in tl.static_range(1, S.rows):
            entry = rows_bar[row]
            if row < S.u_rows:
                where = (i * S.u_rows + row) * S.heads + head
                part = jet.mul(kappa_bar, jet.load(u, u_dot, where, (), S.dtype, DUAL))
                if len(entry) > 0:
                    entry = jet.add(entry, part)
                else:
                    entry = part
            out = out + (entry,)
        return out


@triton.jit
def vjp(
    e, w, moment_bar, z_bar, x, x_dot, graph, i, edge_id, head, S: tl.constexpr, P: tl.constexpr
):
    """The gradient of a tile, from the cotangents of its moments and of its part ``sum alpha`` of
    the normaliser.
    """
    weight_bar, values_bar, rows_bar = spread_vjp(w.weight, w.radial, e.harmonics, moment_bar, S, P)
    if S.attention:
        alpha_bar = jet.add(edge.dropped(weight_bar, graph.seed, edge_id, head, S), z_bar)
        logit_bar = jet.mul(w.alpha, alpha_bar)
        kappa_bar = jet.mul(logit_bar, e.functions[0])
        rows_bar = with_direction(rows_bar, kappa_bar, x.u, x_dot.u, i, head, S)
        functions_bar = (jet.mul(logit_bar, w.kappa), logit_bar) + values_bar
        envelope_bar = jet.mul(w.exponential, alpha_bar)
        difference, strain = geometry_vjp(e, envelope_bar, functions_bar, rows_bar, S)
        return Gradient(logit_bar, kappa_bar, functions_bar, difference, strain)
    else:
        difference, strain = geometry_vjp(e, weight_bar, values_bar, rows_bar, S)
        return Gradient(values_bar, (), values_bar, difference, strain)


@triton.jit
def normaliser_vjp(e, w):
    """What the part ``sum alpha`` of the normaliser gives to the product of query and key and to
    the difference vector, without a directional term or a strain.
    """
    distance_bar = jet.mul(w.exponential, e.envelope_slope)
    distance_bar = jet.add(distance_bar, jet.mul(jet.mul(w.alpha, w.kappa), e.slopes[0]))
    distance_bar = jet.add(distance_bar, jet.mul(w.alpha, e.slopes[1]))
    difference = (
        jet.mul(distance_bar, e.unit[0]),
        jet.mul(distance_bar, e.unit[1]),
        jet.mul(distance_bar, e.unit[2]),
    )
    return jet.mul(w.alpha, e.functions[0]), difference
