"""What all passes compute for a tile of edges and heads: geometry ``[T, 1]``, radial functions,
scores and weights ``[T, H]``. Everything is a jet (see ``jet``).
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import geometry, jet, lanes, spline


class Edge(NamedTuple):
    """A tile of edges."""

    inside: Any  # closer than the cutoff
    difference: Any  # before the strain: three jets
    strain: Any  # nine jets, or ()
    inverse: Any  # 1 / r
    unit: Any  # three jets
    envelope: Any
    envelope_slope: Any
    harmonics: Any  # a jet for each row
    cell: Any  # of polynomials, counted over pairs of elements
    t: Any  # place in the cell
    functions: Any  # a jet for each radial function of the head
    slopes: Any  # their derivatives with respect to r


class Target(NamedTuple):
    """What the edges of a row share."""

    point: Any  # three jets
    strain: Any  # nine jets, or ()
    pairs: Any  # where the element pairs of its element begin


class Weights(NamedTuple):
    """How much a tile of edges counts."""

    kappa: Any  # query times key with the directional term; of the convolution: ()
    exponential: Any  # exp(s - lse), zero beyond the cutoff; of the convolution: ()
    alpha: Any  # before dropout
    weight: Any  # after dropout; of the convolution: the envelope
    radial: Any  # a jet for each order


@triton.jit
def point(pointer, tangent, index, DUAL: tl.constexpr):
    """A position, three jets in its own dtype."""
    DTYPE: tl.constexpr = pointer.dtype.element_ty
    return (
        jet.load(pointer, tangent, index * 3, (), DTYPE, DUAL),
        jet.load(pointer, tangent, index * 3 + 1, (), DTYPE, DUAL),
        jet.load(pointer, tangent, index * 3 + 2, (), DTYPE, DUAL),
    )


@triton.jit
def tensor9(pointer, tangent, index, DUAL: tl.constexpr):
    """A strain, nine jets; () where there is none."""
    entries = ()
    if pointer is not None:
        DTYPE: tl.constexpr = pointer.dtype.element_ty
        for n in tl.static_range(9):
            entries = entries + (jet.load(pointer, tangent, index * 9 + n, (), DTYPE, DUAL),)
    return entries


@triton.jit
def visit(graph, index):
    """The row visited at a place, its first slot and the one after its last."""
    if graph.order is not None:
        index = tl.load(graph.order + index).to(tl.int64)
    return index, tl.load(graph.rowptr + index), tl.load(graph.rowptr + index + 1)


@triton.jit
def four(x, x_dot, where, n: tl.constexpr, S: tl.constexpr, DUAL: tl.constexpr):
    """Entries ``n`` to ``n + 3`` of the queries or keys at each place, ``[T, H, 4]``: each lane
    reads those of its own edge and head.
    """
    entry = n + tl.arange(0, 4)[None, None, :]
    mask = ()
    if n + 4 > S.d:
        mask = (entry < S.d,)
    return jet.load(x, x_dot, where[:, :, None] + entry, mask, S.dtype, DUAL)


@triton.jit
def inner(x, x_dot, where_q, where_k, S: tl.constexpr, DUAL: tl.constexpr):
    """Scaled inner products ``[T, H]`` of queries and keys."""
    SCALE: tl.constexpr = S.d**-0.5
    value = 0.0
    slope = 0.0
    for n in tl.static_range(0, S.d, 4):
        q = four(x.q, x_dot.q, where_q, n, S, DUAL)
        k = four(x.k, x_dot.k, where_k, n, S, DUAL)
        product = jet.mul(q, k)
        value += tl.sum(product[0], axis=2)
        if DUAL:
            slope += tl.sum(product[1], axis=2)
    if DUAL:
        return (value * SCALE, slope * SCALE)
    else:
        return (value * SCALE,)


@triton.jit
def added_rows(
    totals, factors, x, x_dot, graph, first, stop, dims, mask, S: tl.constexpr, P: tl.constexpr
):
    """Adds to each total, summed over a tile, the value or, of dual jets, the tangent of its factor
    times the queries or keys of neighbours, ``[1, H D]``.
    """
    DUAL: tl.constexpr = len(factors[0]) == 2
    for n in range(factors[0][0].shape[0]):
        where = neighbor(graph, first + n, stop) * (S.heads * S.d) + dims
        rows = jet.load(x, x_dot, where, mask, S.dtype, DUAL)
        out = ()
        for m in tl.static_range(len(totals)):
            factor = lanes.wide_picks(factors[m], n, P.d)
            if DUAL:
                out = out + (totals[m] + factor[0] * rows[1] + factor[1] * rows[0],)
            else:
                out = out + (totals[m] + factor[0] * rows[0],)
        totals = out
    return totals


@triton.jit
def neighbor(graph, slot, stop):
    """The neighbour at a slot or, past the end of the row, at the last: what is read there counts
    for nothing, but is not something that the row has nothing to do with.
    """
    return tl.load(graph.col + tl.minimum(slot, stop - 1)).to(tl.int64)


@triton.jit
def fetch(graph, slot, stop, pos, pos_dot, types, DUAL: tl.constexpr):
    """The neighbours at a tile of slots ``[T, 1]``: index, position and element type."""
    index = neighbor(graph, slot, stop)
    return index, point(pos, pos_dot, index, DUAL), tl.load(types + index)


@triton.jit
def identity(edge, slot, stop):
    """The place of each slot's edge in the caller's list."""
    slot = tl.minimum(slot, stop - 1)
    if edge is not None:
        return tl.load(edge + slot).to(tl.int64)
    else:
        return slot.to(tl.int64)


@triton.jit
def whole(a, P: tl.constexpr):
    """A jet ``[T, 1]`` as ``[T, H]``."""
    out = ()
    for n in tl.static_range(len(a)):
        out = out + (tl.broadcast_to(a[n], (a[n].shape[0], P.heads)),)
    return out


@triton.jit
def after(jets, FIRST: tl.constexpr):
    """Entries from ``FIRST`` on."""
    out = ()
    for n in tl.static_range(FIRST, len(jets)):
        out = out + (jets[n],)
    return out


@triton.jit
def parts(jets, n: tl.constexpr):
    """Values (0) or tangents (1) of jets."""
    out = ()
    for m in tl.static_range(len(jets)):
        out = out + (jets[m][n],)
    return out


@triton.jit
def added(sums, jets):
    """Adds the value or, of dual jets, the tangent."""
    out = ()
    for n in tl.static_range(len(sums)):
        out = out + (sums[n] + jets[n][len(jets[n]) - 1],)
    return out


@triton.jit
def added_products(sums, factor, jets):
    """Adds the value or tangent of ``factor`` times the entries after the first."""
    out = ()
    for n in tl.static_range(len(sums)):
        product = jet.mul(factor, jets[n + 1])
        out = out + (sums[n] + product[len(product) - 1],)
    return out


@triton.jit
def subtract(a, b):
    return jet.add(a, jet.scale(b, -1.0))


@triton.jit
def separation(point_i, point_j, shift, edge):
    """``x_i - x_j - s_ij``: three jets in the dtype of the positions."""
    x = subtract(point_i[0], point_j[0])
    y = subtract(point_i[1], point_j[1])
    z = subtract(point_i[2], point_j[2])
    if shift is not None:
        x = jet.add(x, jet.constant(-tl.load(shift + edge * 3), x))
        y = jet.add(y, jet.constant(-tl.load(shift + edge * 3 + 1), y))
        z = jet.add(z, jet.constant(-tl.load(shift + edge * 3 + 2), z))
    return (x, y, z)


@triton.jit
def strained(r, strain):
    """``r (I + strain)``."""
    if len(strain) == 0:
        return r
    else:
        return (
            jet.add(r[0], jet.dot3(r, (strain[0], strain[3], strain[6]))),
            jet.add(r[1], jet.dot3(r, (strain[1], strain[4], strain[7]))),
            jet.add(r[2], jet.dot3(r, (strain[2], strain[5], strain[8]))),
        )


@triton.jit
def cast3(r, DTYPE: tl.constexpr):
    return (jet.cast(r[0], DTYPE), jet.cast(r[1], DTYPE), jet.cast(r[2], DTYPE))


@triton.jit
def evaluate(
    difference,
    strain,
    pair,
    present,
    head,
    own,
    polynomials,
    polynomials_dot,
    S: tl.constexpr,
    SLOPES: tl.constexpr,
):
    """Geometry and radial functions of a tile of edges between elements ``pair``; ``present``: not
    past the end of the row, ``own``: heads of the program.
    """
    DTYPE: tl.constexpr = S.dtype
    distance, inverse, unit = geometry.direction(cast3(strained(difference, strain), DTYPE))
    inside = present & (distance[0] < S.cutoff)
    if len(own) > 0:
        inside = inside & own[0]
    envelope, envelope_slope = geometry.envelope(distance, S.cutoff)
    harmonics = geometry.harmonics(unit, S)
    cell, t = spline.cells(distance, S.cutoff, S.cells)
    cell = pair * S.cells + cell
    functions, slopes = spline.evaluate(
        polynomials,
        polynomials_dot,
        (cell * S.heads + head) * (S.functions * 4),
        t,
        S.functions,
        SLOPES,
        S.cells / S.cutoff,
        DTYPE,
    )
    return Edge(
        inside,
        difference,
        strain,
        inverse,
        unit,
        jet.scale(envelope, inside.to(DTYPE)),
        jet.scale(envelope_slope, inside.to(DTYPE)),
        harmonics,
        cell,
        t,
        functions,
        slopes,
    )


@triton.jit
def target(x, x_dot, graph, i, DUAL: tl.constexpr):
    """The target of a row. Without ``DUAL`` tangents are not looked at."""
    return Target(
        point(x.pos_i, x_dot.pos_i, i, DUAL),
        tensor9(x.strain, x_dot.strain, i, DUAL),
        tl.load(graph.type_i + i) * graph.num_types,
    )


@triton.jit
def around(
    t,
    slot,
    stop,
    head,
    own,
    x,
    x_dot,
    graph,
    S: tl.constexpr,
    SLOPES: tl.constexpr,
    DUAL: tl.constexpr,
):
    """The sources at a tile of slots around a target, the edges' places in the caller's list, and
    the edges.
    """
    j, point_j, type_j = fetch(graph, slot, stop, x.pos_j, x_dot.pos_j, graph.type_j, DUAL)
    edge_id = identity(graph.edge, slot, stop)
    e = evaluate(
        separation(t.point, point_j, graph.shift, edge_id),
        t.strain,
        t.pairs + type_j,
        slot < stop,
        head,
        own,
        x.polynomials,
        x_dot.polynomials,
        S,
        SLOPES,
    )
    return j, edge_id, e


@triton.jit
def directional(kappa, harmonics, u, u_dot, index, head, S: tl.constexpr):
    """Adds ``sum Y_lm u_lm`` to the product of query and key; row 0 has no direction."""
    DUAL: tl.constexpr = len(kappa) == 2
    if u is not None:
        for row in tl.static_range(1, S.u_rows):
            where = (index * S.u_rows + row) * S.heads + head
            entry = jet.load(u, u_dot, where, (), kappa[0].dtype, DUAL)
            kappa = jet.add(kappa, jet.mul(entry, harmonics[row]))
    return kappa


@triton.jit
def logit(functions, kappa, bias, bias_dot, edge, head, S: tl.constexpr):
    """``g1 kappa + g0 (+ bias)``."""
    s = jet.add(jet.mul(functions[0], kappa), functions[1])
    if bias is not None:
        DUAL: tl.constexpr = len(kappa) == 2
        s = jet.add(s, jet.load(bias, bias_dot, edge * S.heads + head, (), S.dtype, DUAL))
    return s


@triton.jit
def biased(functions, bias, bias_dot, edge, head, S: tl.constexpr):
    """Radial functions of the convolution plus the bias of the edge."""
    DUAL: tl.constexpr = len(functions[0]) == 2
    if bias is not None:
        total = ()
        for n in tl.static_range(len(functions)):
            where = (edge * S.functions + n) * S.heads + head
            entry = jet.load(bias, bias_dot, where, (), S.dtype, DUAL)
            total = total + (jet.add(functions[n], entry),)
        return total
    else:
        return functions


@triton.jit
def dropped(weight, seed, edge, head, S: tl.constexpr):
    """Dropout; the counter belongs to the edge's place in the caller's list."""
    if S.dropout > 0:
        uniform = tl.rand(tl.load(seed), (edge * S.heads + head).to(tl.uint32))
        kept = (uniform >= S.dropout).to(S.dtype)
        return jet.scale(weight, kept * (1.0 / (1.0 - S.dropout)))
    else:
        return weight


@triton.jit
def softmax(s, lse, e, seed, edge, head, S: tl.constexpr):
    """The log-sum-exp is held fixed: what it contributes to derivatives is added for each node,
    not for each edge.
    """
    value = tl.exp(tl.where(e.inside, s[0] - lse, float("-inf")))
    exponential = jet.chain(value, value, s)
    alpha = jet.mul(e.envelope, exponential)
    return exponential, alpha, dropped(alpha, seed, edge, head, S)


@triton.jit
def weights(e, kappa, x, x_dot, graph, lse, i, edge, head, S: tl.constexpr):
    """The weights of a tile; ``kappa`` is the product of query and key. ``i`` and ``edge`` are
    ``[1, 1]`` or ``[T, 1]``, ``head`` is ``[1, H]``.
    """
    if S.attention:
        kappa = directional(kappa, e.harmonics, x.u, x_dot.u, i, head, S)
        s = logit(e.functions, kappa, x.bias, x_dot.bias, edge, head, S)
        exponential, alpha, weight = softmax(s, lse, e, graph.seed, edge, head, S)
        return Weights(kappa, exponential, alpha, weight, after(e.functions, 2))
    else:
        values = biased(e.functions, x.bias, x_dot.bias, edge, head, S)
        return Weights((), (), e.envelope, e.envelope, values)


@triton.jit
def spread(weight, values, harmonics, P: tl.constexpr):
    """Coefficients of the moments: ``weight * values[order] * Y``."""
    products = ()
    for n in tl.static_range(len(values)):
        products = products + (jet.mul(weight, values[n]),)
    out = ()
    for m in tl.static_range(len(P.moments[0])):
        out = out + (jet.mul(products[P.moments[0][m]], harmonics[P.moments[1][m]]),)
    return out
