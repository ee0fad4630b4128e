"""The tables that kernels are compiled for, without running a kernel."""

from itertools import combinations

import pytest
import torch

from e2former_pyg.functional import coupling
from e2former_pyg.so3 import solid_harmonics

tables = pytest.importorskip("e2former_pyg.functional.triton_tables")

ALL_ORDERS = [orders for size in range(1, 6) for orders in combinations(range(5), size)]
SOME_ORDERS = [(0,), (1,), (0, 1), (2, 4), (0, 1, 2, 3, 4)]


@pytest.mark.parametrize("lmax", range(7))
def test_recursion_of_harmonics(lmax):
    starts, axes, rows, coefficients, degrees = tables.harmonic_terms(lmax)
    generator = torch.Generator().manual_seed(lmax)
    points = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    points[:3] = torch.eye(3)
    found = [torch.ones(20, dtype=torch.float64)]
    for row in range(1, (lmax + 1) ** 2):
        terms = range(starts[row], starts[row + 1])
        found.append(sum(coefficients[n] * points[:, axes[n]] * found[rows[n]] for n in terms))
    expected = solid_harmonics(lmax, points)
    assert (torch.stack(found, dim=1) - expected).abs().max() < 1e-13 * expected.abs().max()
    assert starts[-1] == len(axes) == len(rows) == len(coefficients)
    assert list(degrees) == [degree for degree in range(lmax + 1) for _ in range(2 * degree + 1)]


def dense(paths, part):
    """The coefficients of a part, and the same from its adjoint table; how often each occurs."""
    _, moment_rows = part.moments
    input_rows, pair_starts, pair_moments = part.pairs
    moment_of = [paths.harmonic_rows.index(moment_rows[m]) for m in pair_moments]
    input_of = [
        row for n, row in enumerate(input_rows) for _ in range(pair_starts[n], pair_starts[n + 1])
    ]
    shape = paths.num_rows, paths.num_moments, paths.num_inputs
    forward, adjoint, counts = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))

    output_rows, starts, pairs, coefficients = part.coupling
    rows = [row for n, row in enumerate(output_rows) for _ in range(starts[n], starts[n + 1])]
    place = tuple(
        map(torch.tensor, (rows, [moment_of[n] for n in pairs], [input_of[n] for n in pairs]))
    )
    values = torch.tensor(coefficients, dtype=torch.float64)
    forward.index_put_(place, values, accumulate=True)
    counts.index_put_(place, torch.ones_like(values), accumulate=True)

    needed, starts, positions, coefficients, met = part.adjoint
    pairs = [n for n in range(len(pair_moments)) for _ in range(starts[n], starts[n + 1])]
    rows = [needed[n] for n in positions]
    # Rows are loaded as pairs come to need them, each once.
    assert len(set(needed)) == len(needed) == met[-1] and met[0] == 0
    assert all(n < met[pair + 1] for n, pair in zip(positions, pairs, strict=True))
    place = tuple(
        map(torch.tensor, (rows, [moment_of[n] for n in pairs], [input_of[n] for n in pairs]))
    )
    adjoint.index_put_(place, torch.tensor(coefficients, dtype=torch.float64), accumulate=True)
    return forward, adjoint, counts


def check(paths, channels, wide, heads=8, d=16, functions=4):
    parts = tables.parts(paths, heads, channels, d, functions, wide)
    firsts = sorted({part.first for part in parts})
    block = parts[0].block
    assert firsts == list(range(0, channels, block))
    expected = paths.dense()
    for first in firsts:
        forward, adjoint, counts = 0, 0, 0
        written: set[int] = set()
        for part in (part for part in parts if part.first == first):
            sizes = part.tile, part.row_tile, part.heads, part.block, part.d, part.functions
            assert all(size & (size - 1) == 0 for size in sizes)
            assert part.d >= d and part.functions >= functions
            # Sums of all pairs fit the registers of a lane.
            lanes = part.heads * part.block / 32
            assert part.heads == 1 or len(part.pairs[2]) * lanes * (1 + wide) <= 168
            assert [paths.orders[n] ** 2 for n in part.moments[0]] == [
                int(row**0.5) ** 2 for row in part.moments[1]
            ]
            # Parts are stored one after the other: no two may write the same row.
            assert written.isdisjoint(part.coupling[0])
            written.update(part.coupling[0])
            tensors = dense(paths, part)
            forward, adjoint, counts = (
                forward + tensors[0],
                adjoint + tensors[1],
                counts + tensors[2],
            )
        assert written == set(range(paths.num_rows))
        assert torch.equal(counts, expected.abs().gt(1e-12).double())
        assert (forward - expected).abs().max() < 1e-14
        assert torch.equal(forward, adjoint)


def all_paths(lmax, orders, parity, lmax_out=None):
    # High enough that there is a path.
    return coupling(lmax, max(lmax, min(orders)) if lmax_out is None else lmax_out, orders, parity)


@pytest.mark.parametrize("parity", ["so3", "o3"])
@pytest.mark.parametrize("lmax", range(7))
def test_parts_hold_every_path_once(lmax, parity):
    for orders in ALL_ORDERS if lmax < 2 else SOME_ORDERS:
        check(all_paths(lmax, orders, parity), 16, wide=False)


@pytest.mark.parametrize("channels", [1, 3, 16, 20, 40])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_parts_of_channels(channels, wide):
    for orders in ((1,), (0, 1, 2)):
        check(all_paths(2, orders, "so3"), channels, wide)
        check(all_paths(2, orders, "o3", lmax_out=1), channels, wide)


@pytest.mark.parametrize(
    "heads, channels, expected",
    [(8, 16, (8, 16)), (6, 16, (8, 16)), (16, 16, (8, 16)), (1, 200, (1, 128)), (2, 3, (2, 4))],
)
def test_shape_of_a_program(heads, channels, expected):
    part = tables.parts(all_paths(1, (0, 1), "so3"), heads, channels, 4, 3, False)[0]
    assert (part.heads, part.block) == expected
