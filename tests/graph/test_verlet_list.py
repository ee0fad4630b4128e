"""A list with a skin holds, at every step, the pairs that a fresh list finds."""

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from e2former_pyg.graph import VerletList, radius_graph

CUTOFF = 3.0


def system(num_atoms: int = 20, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Atoms in and around a triclinic cell, some of whose heights are below the cutoff."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.tensor([[2.7, 0, 0], [0.9, 5.5, 0], [-0.6, 0.8, 6.1]], dtype=torch.float64)
    fractions = torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64)
    return ((1.6 * fractions - 0.3) @ cell).to(dtype), cell.to(dtype)


def within(pos: Tensor, edge_index: Tensor, edge_shift: Tensor | None) -> set[tuple]:
    """Pairs within the cutoff, with offsets rounded so that they compare."""
    edge_index = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
    source, target = edge_index
    shift = pos.new_zeros(source.numel(), 3) if edge_shift is None else edge_shift
    near = (pos[target] - pos[source] - shift).norm(dim=1) < CUTOFF - 1e-9
    rows = zip(
        source[near].tolist(),
        target[near].tolist(),
        [tuple(row) for row in (shift[near] * 1e6).round().long().tolist()],
        strict=True,
    )
    return set(rows)


def check(neighbors: VerletList, pos: Tensor, batch=None, cell=None, pbc=None) -> None:
    edge_index, edge_shift = neighbors.update(pos, batch, cell, pbc)
    assert edge_index.is_sorted_by_col and edge_index.sparse_size() == (pos.size(0),) * 2
    expected = within(pos, *radius_graph(pos, CUTOFF, batch, cell, pbc))
    assert len(expected) > 0
    assert within(pos, edge_index, edge_shift) == expected


def small_strain(generator: torch.Generator, size: float) -> Tensor:
    noise = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + size * noise


@pytest.mark.parametrize("pbc", [(1, 1, 1), (0, 0, 0), (1, 0, 1)])
@pytest.mark.parametrize("skin", [0.0, 0.3, 1.0])
def test_random_walk(pbc, skin) -> None:
    pos, cell = system()
    pbc = torch.tensor(pbc, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    neighbors = VerletList(CUTOFF, skin)
    for _ in range(60):
        pos = pos + 0.02 * torch.randn(pos.shape, generator=generator, dtype=pos.dtype)
        check(neighbors, pos, None, cell, pbc)
    assert neighbors.num_builds == 60 if skin == 0 else 1 < neighbors.num_builds < 40


@pytest.mark.parametrize("follow", [True, False], ids=["atoms-follow", "atoms-stay"])
@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0)])
def test_changing_cell(pbc, follow) -> None:
    pos, cell = system()
    pbc = torch.tensor(pbc, dtype=torch.bool)
    generator = torch.Generator().manual_seed(2)
    neighbors = VerletList(CUTOFF, 1.0)
    for step in range(60):
        # A cell that shrinks steadily, besides: what brings pairs into the cutoff.
        matrix = small_strain(generator, 0.002) * (0.996 if step < 30 else 1.004)
        cell = cell @ matrix
        pos = pos @ matrix if follow else pos
        pos = pos + 0.01 * torch.randn(pos.shape, generator=generator, dtype=pos.dtype)
        check(neighbors, pos, None, cell, pbc)
    if follow and bool(pbc.all()):
        assert 1 < neighbors.num_builds < 30


def test_cell_shrinks_onto_atoms_that_the_list_lacks() -> None:
    """Two atoms beyond cutoff and skin that only the change of the cell brings together."""
    cell = torch.eye(3, dtype=torch.float64) * 9.0
    pos = torch.tensor([[0.0, 0, 0], [3.6, 0, 0], [1.0, 1.0, 0]], dtype=torch.float64)
    neighbors = VerletList(CUTOFF, 0.5)
    check(neighbors, pos, None, cell)
    factor = 0.8
    check(neighbors, pos * factor, None, cell * factor)
    assert neighbors.num_builds == 2


def test_batch_of_open_and_periodic_systems() -> None:
    pos, cell = system()
    molecule, _ = system(9, seed=3)
    sizes = [20, 9, 20]
    batch = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    cells = torch.stack([cell, torch.zeros_like(cell), 1.1 * cell])
    pbc = torch.tensor([[True] * 3, [False] * 3, [True] * 3])
    pos = torch.cat([pos, molecule, 1.1 * pos])
    generator = torch.Generator().manual_seed(4)
    neighbors = VerletList(CUTOFF, 1.0)
    for _ in range(40):
        matrix = small_strain(generator, 0.002)
        cells = torch.cat([cells[:2], cells[2:] @ matrix])
        pos = torch.cat([pos[:29], pos[29:] @ matrix])
        pos = pos + 0.05 * torch.randn(pos.shape, generator=generator, dtype=pos.dtype)
        check(neighbors, pos, batch, cells, pbc)
    assert 1 < neighbors.num_builds < 30


@pytest.mark.cuda
def test_list_on_a_gpu_for_positions_on_the_cpu() -> None:
    pos, cell = system()
    cell = torch.stack([cell, torch.zeros_like(cell)])
    pbc = torch.tensor([[True] * 3, [False] * 3])
    pos, batch = torch.cat([pos, pos[:7]]), torch.tensor([0] * 20 + [1] * 7)
    neighbors, same = VerletList(CUTOFF, 1.0, device="cuda"), VerletList(CUTOFF, 1.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        pos = pos + 0.1 * torch.randn(pos.shape, generator=generator, dtype=torch.float64)
        cell = cell @ small_strain(generator, 0.003)
        found = neighbors.update(pos, batch, cell, pbc)
        expected = same.update(pos, batch, cell, pbc)
        assert {tensor.device.type for tensor in found} == {"cuda"}
        assert neighbors.num_builds == same.num_builds
        found = (tensor.cpu() for tensor in (found[0].as_tensor(), found[1]))
        assert within(pos, *found) == within(pos, *expected)
    assert 1 < neighbors.num_builds < 20


def test_one_atom_of_a_batch_is_enough() -> None:
    """Movement counts for each graph: a large graph at rest does not dilute it."""
    pos, _ = system(30)
    pair = torch.tensor([[0.0, 0, 0], [3.4, 0, 0]], dtype=torch.float64)
    batch = torch.tensor([0] * 30 + [1] * 2)
    neighbors = VerletList(CUTOFF, 0.3)
    neighbors.update(torch.cat([pos, pair]), batch)
    pair[1, 0] = 2.9
    check(neighbors, torch.cat([pos, pair]), batch)
    assert neighbors.num_builds == 2


def test_same_tensors_until_built_anew() -> None:
    pos, cell = system()
    neighbors = VerletList(CUTOFF, 0.5)
    first = neighbors.update(pos, cell=cell)
    again = neighbors.update(pos + torch.tensor([100.0, 0.0, 0.0]), cell=cell)  # a common motion
    assert again[0] is first[0] and again[1] is first[1]
    strained = neighbors.update(pos * 1.01, cell=cell * 1.01)
    assert strained[0] is first[0]
    torch.testing.assert_close(strained[1], 1.01 * first[1])
    # Back at the first cell, its offsets are back too.
    assert torch.equal(neighbors.update(pos, cell=cell)[1], first[1])
    assert neighbors.num_builds == 1
    moved = pos.clone()
    moved[3, 2] += 0.3
    assert neighbors.update(moved, cell=cell)[0] is not first[0]


@pytest.mark.parametrize("what", ["atoms", "pbc", "dtype", "batch"])
def test_other_systems_are_built_anew(what) -> None:
    pos, cell = system()
    neighbors = VerletList(CUTOFF, 0.5)
    neighbors.update(pos, cell=cell)
    batch = pbc = None
    if what == "atoms":
        pos = pos[:-1]
    elif what == "dtype":
        pos, cell = pos.float(), cell.float()
    elif what == "pbc":
        pbc = torch.tensor([True, True, False])
    else:
        batch = torch.tensor([0] * 10 + [1] * 10)
    edge_index, edge_shift = neighbors.update(pos, batch, cell, pbc)
    fresh = radius_graph(pos, 3.5, batch, cell, pbc)
    assert torch.equal(edge_index.as_tensor(), fresh[0])
    assert torch.equal(edge_shift, fresh[1])
    assert neighbors.num_builds == 2


def test_caller_may_change_positions_in_place() -> None:
    pos, cell = system()
    neighbors = VerletList(CUTOFF, 0.5)
    neighbors.update(pos, cell=cell)
    pos[0] += 1.0
    cell *= 0.9
    check(neighbors, pos, None, cell)


@pytest.mark.parametrize("where", ["pos", "cell"])
def test_values_that_are_not_finite_are_refused(where) -> None:
    pos, cell = system()
    neighbors = VerletList(CUTOFF, 0.5)
    neighbors.update(pos, cell=cell)
    bad_pos, bad_cell = pos.clone(), cell.clone()
    (bad_pos if where == "pos" else bad_cell)[1, 1] = float("nan")
    with pytest.raises(ValueError, match=f"`{where}` must be finite"):
        neighbors.update(bad_pos, cell=bad_cell)
    check(neighbors, pos, None, cell)  # and it still works


@pytest.mark.parametrize("bad", [{"cutoff": -1.0}, {"skin": -0.1}, {"skin": float("nan")}])
def test_bad_lengths_are_refused(bad) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        VerletList(**{"cutoff": 3.0, "skin": 0.5} | bad)


def test_repr_and_no_atoms() -> None:
    neighbors = VerletList(3.0, 0.5)
    assert repr(neighbors) == "VerletList(cutoff=3.0, skin=0.5)"
    edge_index, edge_shift = neighbors.update(torch.empty(0, 3))
    assert edge_index.shape == (2, 0) and edge_shift is None
