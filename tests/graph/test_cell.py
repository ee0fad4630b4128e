import pytest
import torch

from e2former_pyg.graph import as_cell, volume
from e2former_pyg.graph.cell import search_basis


def random_cells(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)


def test_layouts_agree():
    cells = random_cells(4)
    flags = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    for cell in (cells, cells.reshape(12, 3)):
        for pbc in (flags, flags.reshape(12), flags.int(), flags.tolist()):
            out, periodic = as_cell(cell, pbc, 4)
            assert torch.equal(out, cells)
            assert torch.equal(periodic, flags)


def test_one_cell_serves_all_graphs():
    cell = random_cells(1)
    for given in (cell, cell[0]):
        for pbc in (None, True, torch.tensor(True), torch.ones(3), torch.ones(1, 3).bool()):
            out, periodic = as_cell(given, pbc, 5, torch.float32)
            assert out.dtype == torch.float32
            assert torch.equal(out, cell.float().expand(5, 3, 3))
            assert periodic.dtype == torch.bool and periodic.shape == (5, 3) and periodic.all()


def test_open_systems():
    for pbc in (None, False, torch.zeros(3).bool(), torch.zeros(2, 3).bool()):
        out, periodic = as_cell(None, pbc, 2, torch.float64)
        assert out.shape == (2, 3, 3) and out.dtype == torch.float64 and not out.any()
        assert periodic.shape == (2, 3) and not periodic.any()


def test_keeps_gradients():
    cell = random_cells(1)[0].requires_grad_()
    as_cell(cell, None, 2)[0].sum().backward()
    assert torch.equal(cell.grad, torch.full((3, 3), 2.0).double())


@pytest.mark.parametrize("shape", [(3,), (9,), (3, 4), (5, 3, 3), (5, 3), (1, 1, 3, 3)])
def test_bad_cell_shape(shape):
    with pytest.raises(ValueError, match=r"`cell` must have shape .*\[2, 3, 3\].*found"):
        as_cell(torch.zeros(shape), None, 2)


def test_bad_input():
    with pytest.raises(TypeError, match=r"`cell`.*int64"):
        as_cell(torch.zeros(3, 3, dtype=torch.int64), None, 1)
    with pytest.raises(TypeError, match=r"`cell`.*list"):
        as_cell([[1.0]], None, 1)
    with pytest.raises(ValueError, match=r"`pbc` must have shape .*found \[2\]"):
        as_cell(torch.zeros(3, 3), torch.ones(2), 1)
    with pytest.raises(ValueError, match="`pbc` is true, but no `cell`"):
        as_cell(None, True, 1)


def test_volume():
    cells = random_cells(3).requires_grad_()
    assert torch.allclose(volume(cells), torch.linalg.det(cells).abs())
    assert torch.autograd.gradcheck(volume, cells)
    assert torch.autograd.gradgradcheck(volume, cells)
    zero = torch.zeros(1, 3, 3, requires_grad=True)
    volume(zero).sum().backward()
    assert not zero.grad.any()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_search_basis(scale):
    flags = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    cells = random_cells(8) * scale
    # The vectors of open directions may be anything, also zero or dependent.
    cells[1:4] = torch.where(flags[1:4, :, None], cells[1:4], 0.0)
    basis = search_basis(cells, flags)
    assert torch.equal(basis[flags], cells[flags])
    for matrix, flag in zip(basis, flags, strict=True):
        free = matrix[~flag]
        assert torch.allclose(free @ free.t(), torch.eye(len(free)).double(), atol=1e-12)
        if 0 < len(free) < 3:
            assert (free @ matrix[flag].t()).abs().max() < 1e-12 * max(scale, 1)
        assert torch.linalg.det(matrix).abs() > 1e-3 * scale ** int(flag.sum())


def test_search_basis_refuses_singular_cells():
    cell = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0]]).double().expand(2, 3, 3)
    search_basis(cell, torch.tensor([[True, True, False]] * 2))
    with pytest.raises(ValueError, match="`cell` of graph 1 is singular"):
        search_basis(cell, torch.tensor([[True, True, False], [True, True, True]]))
    with pytest.raises(ValueError, match="`cell` of graph 0 is singular"):
        search_basis(torch.zeros(1, 3, 3).double(), torch.tensor([[False, True, False]]))
    with pytest.raises(ValueError, match="`cell` must be finite"):
        search_basis(cell * torch.nan, torch.tensor([[True, False, False]] * 2))
