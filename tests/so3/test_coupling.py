import itertools
import math
import random

import pytest
import torch
from e3nn import o3
from sympy.physics.wigner import wigner_6j as sympy_6j

from e2former_pyg.so3 import clebsch_gordan, wigner_6j


def triads(*ranges):
    for l1, l2 in itertools.product(*ranges):
        for l3 in range(abs(l1 - l2), l1 + l2 + 1):
            yield l1, l2, l3


def test_clebsch_gordan_matches_e3nn():
    for l1, l2, l3 in [*triads(range(5), range(5)), (8, 8, 16), (8, 8, 8), (8, 7, 9), (16, 8, 8)]:
        expected = o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)
        found = clebsch_gordan(l1, l2, l3)
        assert found.dtype == torch.float64
        assert (found - expected).abs().max() < 4e-15, (l1, l2, l3)


def test_clebsch_gordan_is_orthonormal_and_complete():
    for l1, l2 in ((2, 3), (8, 8), (7, 4)):
        tables = [clebsch_gordan(l1, l2, l3) for l3 in range(abs(l1 - l2), l1 + l2 + 1)]
        matrix = torch.cat([table.flatten(0, 1) for table in tables], dim=1)
        identity = torch.eye(matrix.size(0), dtype=torch.float64)
        assert (matrix.T @ matrix - identity).abs().max() < 4e-15
        assert (matrix @ matrix.T - identity).abs().max() < 4e-15


@pytest.fixture
def float64_default():
    """e3nn builds the generators of its rotation matrices in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_clebsch_gordan_is_equivariant(float64_default):
    torch.manual_seed(0)
    rotation = o3.rand_matrix()
    for l1, l2, l3 in ((1, 1, 1), (3, 2, 4), (8, 1, 8)):
        d1, d2, d3 = (o3.Irrep(degree, 1).D_from_matrix(rotation) for degree in (l1, l2, l3))
        table = clebsch_gordan(l1, l2, l3)
        turned = torch.einsum("ia,jb,kc,abc->ijk", d1, d2, d3, table)
        assert (turned - table).abs().max() < 1e-13


def test_clebsch_gordan_of_vectors():
    x, y = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dot = torch.einsum("i,j,ijk->k", x, y, clebsch_gordan(1, 1, 0))
    cross = torch.einsum("i,j,ijk->k", x, y, clebsch_gordan(1, 1, 1))
    torch.testing.assert_close(dot[0], x @ y / math.sqrt(3))
    torch.testing.assert_close(cross, torch.linalg.cross(x, y) / math.sqrt(2))


def test_clebsch_gordan_forbidden_entries_are_exact_zeros():
    table = clebsch_gordan(8, 8, 15)
    assert table[table != 0].abs().min() > 1e-6
    assert (table == 0).sum() > 0.8 * table.numel()


def test_clebsch_gordan_does_not_share_its_cache():
    first = clebsch_gordan(2, 1, 1)
    expected = first.clone()
    first.zero_()
    assert torch.equal(clebsch_gordan(2, 1, 1), expected)


def test_clebsch_gordan_ignores_default_dtype_and_casts():
    expected = clebsch_gordan(3, 3, 2)
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(clebsch_gordan(3, 3, 2), expected)
        assert clebsch_gordan(4, 3, 2).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(clebsch_gordan(3, 3, 2, dtype=torch.float32), expected.float())


def test_clebsch_gordan_errors():
    with pytest.raises(ValueError, match=r"`l3` must lie between .* found 4"):
        clebsch_gordan(1, 2, 4)
    with pytest.raises(ValueError, match="`l3` must lie between"):
        clebsch_gordan(3, 1, 1)
    with pytest.raises(ValueError, match="`l2` must be a non-negative integer, found -1"):
        clebsch_gordan(1, -1, 1)
    with pytest.raises(ValueError, match=r"`l1` must be a non-negative integer, found 0\.5"):
        clebsch_gordan(0.5, 1, 1)
    for wrong in ("1", None, True, torch.tensor(1)):
        with pytest.raises(TypeError, match="`l1` must be an integer"):
            clebsch_gordan(wrong, 1, 1)


# Sympy is slow: it is asked once per class under the exchange of columns, we for every order.
def test_wigner_6j_matches_sympy_up_to_degree_4():
    compared = 0
    for upper in itertools.combinations_with_replacement(range(5), 3):
        for lower in itertools.product(range(5), repeat=3):
            columns = list(zip(upper, lower, strict=True))
            if columns != sorted(columns):
                continue
            expected = float(six_j_or_zero(*upper, *lower))
            compared += expected != 0
            for permuted in itertools.permutations(columns):
                top, bottom = zip(*permuted, strict=True)
                assert abs(wigner_6j(*top, *bottom) - expected) < 1e-15
    assert compared > 300


def six_j_or_zero(*degrees):
    try:
        return sympy_6j(*degrees)
    except ValueError:  # sympy's answer to a triad that fails
        return 0


def test_wigner_6j_matches_sympy_at_random_degrees_up_to_12():
    generator = random.Random(0)
    compared = 0
    while compared < 60:
        degrees = [generator.randint(0, 12) for _ in range(6)]
        expected = float(six_j_or_zero(*degrees))
        assert abs(wigner_6j(*degrees) - expected) < 1e-15
        compared += expected != 0


def test_wigner_6j_is_orthogonal():
    for j1, j2, j4, j5 in ((2, 3, 4, 3), (8, 7, 6, 8), (12, 12, 12, 12)):
        upper = range(max(abs(j1 - j2), abs(j4 - j5)), min(j1 + j2, j4 + j5) + 1)
        lower = range(max(abs(j1 - j5), abs(j2 - j4)), min(j1 + j5, j2 + j4) + 1)
        matrix = torch.tensor(
            [
                [
                    math.sqrt((2 * j3 + 1) * (2 * j6 + 1)) * wigner_6j(j1, j2, j3, j4, j5, j6)
                    for j6 in lower
                ]
                for j3 in upper
            ],
            dtype=torch.float64,
        )
        identity = torch.eye(len(upper), dtype=torch.float64)
        assert (matrix @ matrix.T - identity).abs().max() < 1e-14


def test_wigner_6j_recouples_clebsch_gordan():
    l1, l2, l12, l3, total, l23 = 2, 1, 2, 3, 4, 3
    left = torch.einsum(
        "abe,ecd->abcd", clebsch_gordan(l1, l2, l12), clebsch_gordan(l12, l3, total)
    )
    right = torch.einsum(
        "bcf,afd->abcd", clebsch_gordan(l2, l3, l23), clebsch_gordan(l1, l23, total)
    )
    overlap = (left * right).sum() / (2 * total + 1)
    factor = (-1) ** (l1 + l2 + l3 + total) * math.sqrt((2 * l12 + 1) * (2 * l23 + 1))
    expected = factor * wigner_6j(l1, l2, l12, l3, total, l23)
    assert abs(expected) > 1e-3
    assert abs(overlap.item() - expected) < 1e-14


def test_wigner_6j_errors_and_zeros():
    assert wigner_6j(1, 1, 3, 1, 1, 1) == 0.0
    assert wigner_6j(0, 0, 0, 0, 0, 0) == 1.0
    with pytest.raises(ValueError, match="`j4` must be a non-negative integer, found -2"):
        wigner_6j(1, 1, 1, -2, 1, 1)
    with pytest.raises(ValueError, match=r"`j6` must be a non-negative integer, found 1\.5"):
        wigner_6j(1, 1, 1, 1, 1, 1.5)
    with pytest.raises(TypeError, match="`j1` must be an integer, found str"):
        wigner_6j("1", 1, 1, 1, 1, 1)
