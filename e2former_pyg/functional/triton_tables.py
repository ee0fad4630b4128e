"""Coefficients of harmonics and couplings in the form that kernels are compiled for."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton.language as tl

from ..kernels.operands import Part, next_power_of_2
from ..so3 import clebsch_gordan, solid_harmonics
from .paths import Coupling, Path

DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}

# Accumulators that fit the registers of a lane: (moment, input row) pairs times the channels that
# each lane holds.
_ACCUMULATORS = 160
# Inner products of a tile of the row pass: moments times edges times the channels of a lane.
_PRODUCTS = 100
# Registers of a lane for the gradient of a row of queries or keys.
_QUERIES = 32
_LANES = 32
# Edges whose values forward and tangent passes read at a time, where sums are few: the compiler
# takes long for more.
_UNROLL = 4
_FEW = 40


@cache
def harmonic_terms(lmax: int) -> tuple[tuple[Any, ...], ...]:
    r""":attr:`Spec.harmonics` for rows up to degree :obj:`lmax`:
    :math:`R^l = c_l\, [R^{l-1} \otimes r]^l`.
    """
    starts, axes, rows, coefficients = [0, 0], [], [], []
    degrees = [0]
    point = torch.tensor([0.3, -0.5, 0.7], dtype=torch.float64, device="cpu")
    values = solid_harmonics(lmax, point)
    for degree in range(1, lmax + 1):
        below = (degree - 1) ** 2
        table = clebsch_gordan(degree - 1, 1, degree, device="cpu")
        coupled = torch.einsum("mak,m,a->k", table, values[below : degree**2], point)
        table = table * (values[degree**2 : (degree + 1) ** 2].norm() / coupled.norm())
        table = table * torch.sign((coupled * values[degree**2 : (degree + 1) ** 2]).sum())
        for row in range(2 * degree + 1):
            for m, axis in table[:, :, row].abs().gt(1e-12).nonzero().tolist():
                axes.append(axis)
                rows.append(below + m)
                coefficients.append(table[m, axis, row].item())
            starts.append(len(axes))
            degrees.append(degree)
    return tuple(starts), tuple(axes), tuple(rows), tuple(coefficients), tuple(degrees)


@cache
def parts(
    coupling: Coupling, heads: int, channels: int, d: int, functions: int, wide: bool
) -> tuple[Part, ...]:
    """Splits the paths and the channels of a head so that accumulators fit the registers.

    Paths with the same input degree and order belong together: they share moments.

    Args:
        coupling (Coupling): The paths.
        heads (int): The heads.
        channels (int): Channels of a head.
        d (int): Channels of queries and keys of a head.
        functions (int): Radial functions of a head.
        wide (bool): Whether the arithmetic is in float64.
    """
    blocks: dict[tuple[int, int], list[Path]] = {}
    for path in coupling.paths:
        blocks.setdefault((path.degree_in, path.order), []).append(path)
    sizes = {key: (2 * key[0] + 1) * (2 * key[1] + 1) for key in blocks}
    # Channels that each lane holds.
    elements = max(1, min(4, next_power_of_2(heads) * next_power_of_2(channels) // _LANES))
    while elements > 1 and max(sizes.values()) * elements * (1 + wide) > _ACCUMULATORS:
        elements //= 2
    limit = max(_ACCUMULATORS // elements // (1 + wide), max(sizes.values()))
    groups: list[list[tuple[int, int]]] = [[]]
    for key in sorted(blocks):
        if sum(sizes[other] for other in groups[-1]) + sizes[key] > limit:
            groups.append([])
        groups[-1].append(key)
    width = _LANES * elements
    block = min(next_power_of_2(channels), width)
    together = max(
        1,
        min(
            next_power_of_2(heads),
            width // block,
            _QUERIES * _LANES // (1 + wide) // next_power_of_2(d),
        ),
    )
    # Up to eight heads: at most one number of an edge and a head for each lane.
    tile = max(4, min(8, _LANES // together))
    registers = elements * (1 + wide)
    shape = tile, registers, together, block, next_power_of_2(d), next_power_of_2(functions)
    return tuple(
        _part(coupling, [path for key in group for path in blocks[key]], first, shape)
        for group in groups
        for first in range(0, channels, block)
    )


def _part(coupling: Coupling, paths: list[Path], first: int, shape: tuple[int, ...]) -> Part:
    orders = sorted({path.order for path in paths})
    moments = [(order, m) for order in orders for m in range(2 * order + 1)]
    inputs = sorted({path.degree_in for path in paths})
    used = {(path.degree_in, path.order) for path in paths}
    pairs = [
        (l1 * l1 + m1, moment)
        for l1 in inputs
        for m1 in range(2 * l1 + 1)
        for moment in moments
        if (l1, moment[0]) in used
    ]
    input_rows = sorted({row for row, _ in pairs})
    pair_starts = [next(n for n, pair in enumerate(pairs) if pair[0] == r) for r in input_rows]

    terms = []  # (output row, pair, coefficient)
    index = {pair: n for n, pair in enumerate(pairs)}
    for path in paths:
        l1, order, l3 = path
        table = clebsch_gordan(l1, order, l3, device="cpu")
        for m1, m2, m3 in table.abs().gt(1e-12).nonzero().tolist():
            pair = index[l1 * l1 + m1, (order, m2)]
            terms.append((coupling.row_of(path)[m3], pair, table[m1, m2, m3].item()))
    terms.sort()
    output_rows = sorted({row for row, _, _ in terms})
    output_starts = [next(n for n, term in enumerate(terms) if term[0] == r) for r in output_rows]
    by_pair = sorted(terms, key=lambda term: term[1])
    needed = list(dict.fromkeys(row for row, _, _ in by_pair))
    met = [len({row for row, pair, _ in by_pair if pair < n}) for n in range(len(pairs) + 1)]
    adjoint_starts = [sum(term[1] < n for term in terms) for n in range(len(pairs) + 1)]
    tile, registers, *rest = shape
    row_tile = tile
    while row_tile > 2 and len(moments) * row_tile * registers > _PRODUCTS:
        row_tile //= 2
    return Part(
        first,
        (
            tuple(coupling.orders.index(order) for order, _ in moments),
            tuple(order * order + m for order, m in moments),
        ),
        (
            tuple(input_rows),
            (*pair_starts, len(pairs)),
            tuple(moments.index(moment) for _, moment in pairs),
        ),
        (
            tuple(output_rows),
            (*output_starts, len(terms)),
            tuple(pair for _, pair, _ in terms),
            tuple(coefficient for _, _, coefficient in terms),
        ),
        (
            tuple(needed),
            tuple(adjoint_starts),
            tuple(needed.index(row) for row, _, _ in by_pair),
            tuple(coefficient for _, _, coefficient in by_pair),
            tuple(met),
        ),
        tile,
        row_tile,
        _UNROLL if len(pairs) <= _FEW else 1,
        *rest,
    )
