import importlib
import warnings

import numpy as np
import pytest
import torch
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from vesin import NeighborList

from e2former_pyg.graph import radius_graph

FLAGS = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (0, 0, 1), (1, 0, 0), (0, 0, 0)]


def random_system(num_atoms, size, skew=0.2, spread=1.0, seed=0, dtype=torch.float64):
    """Atoms in a triclinic cell, with `spread` > 1 also outside of it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    cell = size * (torch.eye(3, dtype=torch.float64) + skew * noise)
    fractional = torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64)
    pos = ((fractional - 0.5) * spread + 0.5) @ cell
    return pos.to(dtype), cell.to(dtype)


def edge_set(edge_index, edge_shift, cell=None, pbc=(1, 1, 1)):
    """The edges as a sorted list of (target, source, image)."""
    image = torch.zeros(edge_index.size(1), 3, dtype=torch.int64)
    flags = torch.tensor(pbc, dtype=torch.bool)
    if cell is not None and flags.any():
        vectors = cell[flags].double()
        exact = torch.linalg.lstsq(vectors.t(), edge_shift.double().t()).solution.t()
        image[:, flags] = exact.round().long()
        assert torch.allclose(image[:, flags].double() @ vectors, edge_shift.double(), atol=1e-4)
    edges = list(zip(edge_index[1].tolist(), edge_index[0].tolist(), image.tolist(), strict=True))
    assert edges == sorted(edges)
    assert len({(i, j, *s) for i, j, s in edges}) == len(edges)
    return edges


def ase_edges(pos, cutoff, cell=None, pbc=(0, 0, 0)):
    cell = np.zeros((3, 3)) if cell is None else cell.numpy()
    i, j, image = primitive_neighbor_list("ijS", np.array(pbc, bool), cell, pos.numpy(), cutoff)
    return sorted(zip(i.tolist(), j.tolist(), image.tolist(), strict=True))


def vesin_edges(pos, cutoff, cell=None, pbc=(0, 0, 0)):
    cell = np.zeros((3, 3)) if cell is None else cell.numpy()
    i, j, image = NeighborList(cutoff=cutoff, full_list=True).compute(
        pos.numpy(), cell, [bool(flag) for flag in pbc], "ijS"
    )
    return sorted(zip(i.tolist(), j.tolist(), image.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_atoms", [1, 2, 30, 400])
def test_open_systems(num_atoms, seed):
    pos, _ = random_system(num_atoms, size=14.0, seed=seed)
    edges = edge_set(*radius_graph(pos, 4.0))
    assert edges == ase_edges(pos, 4.0) == vesin_edges(pos, 4.0)


@pytest.mark.parametrize("pbc", FLAGS)
@pytest.mark.parametrize("spread", [1.0, 5.0])
@pytest.mark.parametrize(
    ("num_atoms", "size", "skew"), [(60, 11.0, 0.1), (30, 7.0, 0.4), (4, 3.0, 0.3), (1, 1.6, 0.1)]
)
def test_periodic_systems(num_atoms, size, skew, spread, pbc):
    for seed in range(4):
        pos, cell = random_system(num_atoms, size, skew, spread, seed)
        flags = torch.tensor(pbc, dtype=torch.bool)
        edges = edge_set(*radius_graph(pos, 4.8, cell=cell, pbc=flags), cell, pbc)
        assert edges == ase_edges(pos, 4.8, cell, pbc)
        # Cells of open directions do not matter.
        cell = torch.where(flags.unsqueeze(1), cell, 0.0)
        assert edges == edge_set(*radius_graph(pos, 4.8, cell=cell, pbc=flags), cell, pbc)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    num_atoms=st.integers(1, 40),
    size=st.floats(1.5, 12.0),
    skew=st.floats(0.0, 0.5),
    spread=st.floats(0.1, 6.0),
    cutoff=st.floats(0.5, 5.0),
)
def test_agrees_with_vesin(seed, num_atoms, size, skew, spread, cutoff):
    pos, cell = random_system(num_atoms, size, skew, spread, seed)
    if torch.linalg.det(cell).abs() < 0.1 * size**3:
        cell = size * torch.eye(3, dtype=torch.float64)
    expected = vesin_edges(pos, cutoff, cell, (1, 1, 1))
    assert edge_set(*radius_graph(pos, cutoff, cell=cell), cell) == expected


def test_cutoff_three_times_the_cell():
    pos, cell = random_system(2, size=2.0, skew=0.15, seed=3)
    edges = edge_set(*radius_graph(pos, 6.0, cell=cell), cell)
    assert edges == ase_edges(pos, 6.0, cell, (1, 1, 1)) == vesin_edges(pos, 6.0, cell, (1, 1, 1))
    assert sum(i == j for i, j, _ in edges) > 50


def test_strongly_skewed_cell():
    cell = torch.tensor([[4.0, 0, 0], [17.0, 4.0, 0], [-9.0, 23.0, 4.0]], dtype=torch.float64)
    pos = torch.rand(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ cell
    edges = edge_set(*radius_graph(pos, 5.0, cell=cell), cell)
    assert edges == ase_edges(pos, 5.0, cell, (1, 1, 1))
    # The same lattice, written with short vectors, has the same pairs.
    short = torch.tensor([[4.0, 0, 0], [1.0, 4.0, 0], [-2.0, 3.0, 4.0]], dtype=torch.float64)
    assert torch.equal(radius_graph(pos, 5.0, cell=short)[0], radius_graph(pos, 5.0, cell=cell)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("periodic", [False, True])
def test_distances_and_both_directions(periodic, dtype):
    pos, cell = random_system(300, 14.0, seed=5, dtype=dtype, spread=2.0)
    edge_index, edge_shift = radius_graph(pos, 5.0, cell=cell if periodic else None)
    assert edge_index.dtype == torch.int64 and edge_shift.dtype == dtype
    source, target = edge_index
    distance = (pos[target] - pos[source] - edge_shift).norm(dim=-1)
    assert distance.max() < 5.0 + 1e-4
    forward = {(i, j, *s) for i, j, s in edge_set(edge_index, edge_shift, cell)}
    assert forward == {(j, i, -a, -b, -c) for i, j, a, b, c in forward}


@pytest.mark.parametrize("periodic", [False, True])
def test_pairs_at_the_cutoff_are_symmetric(periodic):
    # A lattice in float32, with its distances equal to the cutoff up to rounding.
    axis = torch.arange(7, dtype=torch.float32) * 1.1
    pos = torch.cartesian_prod(axis, axis, axis) @ random_system(1, 1.0, 0.0)[1].float()
    pos = pos + torch.tensor([0.3, -31.7, 1000.1])
    cell = 7.7 * torch.eye(3) if periodic else None
    for cutoff in (1.1, 1.1 * 2**0.5, 2.2, 3.3):
        edge_index, edge_shift = radius_graph(pos, cutoff, cell=cell)
        forward = {(i, j, *s) for i, j, s in edge_set(edge_index, edge_shift, cell)}
        assert 0 < len(forward) < 343 * 150
        assert forward == {(j, i, -a, -b, -c) for i, j, a, b, c in forward}


def mixed_batch():
    """Open, periodic and partly periodic graphs, empty ones, lone atoms."""
    parts = [
        (random_system(12, 6.0, seed=1), (1, 1, 1)),
        (random_system(0, 6.0, seed=2), (1, 1, 1)),
        (random_system(9, 5.0, seed=3), (0, 0, 0)),
        (random_system(1, 2.0, seed=4), (1, 1, 0)),
        (random_system(1, 2.0, seed=5), (0, 0, 0)),
        (random_system(80, 9.0, seed=6, spread=3.0), (0, 1, 0)),
        (random_system(0, 6.0, seed=7), (0, 0, 0)),
    ]
    pos = [system[0] for system, _ in parts]
    pbc = torch.tensor([flags for _, flags in parts], dtype=torch.bool)
    cell = torch.stack([system[1] for system, _ in parts])
    cell = torch.where(pbc.unsqueeze(-1), cell, 0.0)
    return pos, cell, pbc


def one_by_one(pos, cutoff, cell=None, pbc=None):
    edges, shifts, offset = [], [], 0
    for graph, points in enumerate(pos):
        periodic = {} if cell is None else {"cell": cell[graph], "pbc": pbc[graph]}
        edge_index, edge_shift = radius_graph(points, cutoff, **periodic)
        edges.append(edge_index + offset)
        shifts.append(edge_shift)
        offset += points.size(0)
    return torch.cat(edges, dim=1), torch.cat(shifts)


@pytest.mark.parametrize("layout", ["B", "3B"])
def test_mixed_batch_equals_one_by_one(layout):
    pos, cell, pbc = mixed_batch()
    batch = torch.arange(len(pos)).repeat_interleave(torch.tensor([len(p) for p in pos]))
    expected_index, expected_shift = one_by_one(pos, 4.5, cell, pbc)
    given_cell, given_pbc = (cell, pbc) if layout == "B" else (cell.view(-1, 3), pbc.view(-1))
    edge_index, edge_shift = radius_graph(torch.cat(pos), 4.5, batch, given_cell, given_pbc)
    assert torch.equal(edge_index, expected_index)
    assert torch.equal(edge_shift, expected_shift)


def test_open_batch_equals_one_by_one():
    sizes = [5, 0, 1, 700, 30, 0]
    pos = [random_system(n, 16.0, seed=n)[0] for n in sizes]
    batch = torch.arange(6).repeat_interleave(torch.tensor(sizes))
    edge_index, edge_shift = radius_graph(torch.cat(pos), 4.0, batch, batch_size=6)
    assert torch.equal(edge_index, one_by_one(pos, 4.0)[0])
    assert edge_shift.shape == (edge_index.size(1), 3) and not edge_shift.any()


def test_all_pairs_and_cell_lists_agree(monkeypatch):
    module = importlib.import_module("e2former_pyg.graph.radius_graph")
    pos, _ = random_system(250, 13.0, seed=8)
    batch = torch.arange(250) // 50
    expected = radius_graph(pos, 4.0, batch)
    for limit in (2**16, 300):
        for name in ("all_pairs", "cell_list"):
            path = f"e2former_pyg.graph.{name}.slice_limit"
            monkeypatch.setattr(path, lambda device, limit=limit: limit)
        for pairs in (0, 2**16):
            monkeypatch.setattr(module, "ALL_PAIRS", pairs)
            monkeypatch.setattr(module, "ALL_PAIRS_PER_ATOM", 0)
            found = radius_graph(pos, 4.0, batch)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("pbc", FLAGS)
def test_nearest_images_and_cell_lists_agree(monkeypatch, pbc):
    """Of a batch in cells more than twice as high as the cutoff, with atoms outside of them."""
    module = importlib.import_module("e2former_pyg.graph.radius_graph")
    systems = [random_system(60, size, spread=3.0, seed=size) for size in (11, 12, 13)]
    pos = torch.cat([pos for pos, _ in systems])
    cells = torch.stack([cell for _, cell in systems])
    batch = torch.arange(180) // 60
    flags = torch.tensor(pbc, dtype=torch.bool)
    used = []
    found = []
    for name in ("all_pairs", "cell_list_pairs"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=function: (used.append(n), f(*a))[1])
    for pairs in (2**16, 0):
        monkeypatch.setattr(module, "ALL_PAIRS", pairs)
        monkeypatch.setattr(module, "ALL_PAIRS_PER_ATOM", 0)
        found.append(radius_graph(pos, 4.0, batch, cells, flags))
    assert used == ["all_pairs", "cell_list_pairs"]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].any() == flags.any()
    # One cell of the batch that is lower needs more images.
    monkeypatch.setattr(module, "ALL_PAIRS", 2**16)
    radius_graph(pos, 4.0, batch, cells * torch.tensor([1.0, 1.0, 0.4]).view(3, 1, 1), flags)
    assert used[2] == ("cell_list_pairs" if any(pbc) else "all_pairs")


def test_slices_do_not_matter(monkeypatch):
    pos, cell, pbc = mixed_batch()
    batch = torch.arange(len(pos)).repeat_interleave(torch.tensor([len(p) for p in pos]))
    expected = radius_graph(torch.cat(pos), 4.5, batch, cell, pbc)
    for limit in (1, 50, 1000):
        path = "e2former_pyg.graph.cell_list.slice_limit"
        monkeypatch.setattr(path, lambda device, limit=limit: limit)
        found = radius_graph(torch.cat(pos), 4.5, batch, cell, pbc)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_unsorted_batch_and_permutation():
    pos, cell, pbc = mixed_batch()
    batch = torch.arange(len(pos)).repeat_interleave(torch.tensor([len(p) for p in pos]))
    pos = torch.cat(pos)
    perm = torch.randperm(len(pos), generator=torch.Generator().manual_seed(0))
    expected_index, expected_shift = radius_graph(pos, 4.5, batch, cell, pbc)
    edge_index, edge_shift = radius_graph(pos[perm], 4.5, batch[perm], cell, pbc)
    assert (edge_index[1].diff() >= 0).all()

    def rows(edge_index, edge_shift):
        shift = (edge_shift * 1e6).round().long()
        return sorted(torch.cat((edge_index.t(), shift), dim=1).tolist())

    assert rows(perm[edge_index], edge_shift) == rows(expected_index, expected_shift)


def test_wrapping_changes_shifts_only():
    pos, cell = random_system(50, 8.0, seed=2)
    image = torch.randint(-40, 40, (50, 3), generator=torch.Generator().manual_seed(0))
    edge_index, edge_shift = radius_graph(pos, 5.0, cell=cell)
    moved = pos + image.double() @ cell
    moved_index, moved_shift = radius_graph(moved, 5.0, cell=cell)
    vectors = torch.cat((edge_index.t(), pos[edge_index[1]] - pos[edge_index[0]] - edge_shift), 1)
    moved_vectors = moved[moved_index[1]] - moved[moved_index[0]] - moved_shift
    moved_vectors = torch.cat((moved_index.t(), moved_vectors), dim=1)

    def canonical(vectors):
        return torch.tensor(sorted((vectors * 1e6).round().tolist())) / 1e6

    assert torch.allclose(canonical(vectors), canonical(moved_vectors), atol=2e-6)


def test_far_apart_and_isolated_atoms():
    pos = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [1e7, 1e7, -1e7], [1e7, 1e7 + 1.0, -1e7]])
    pos = torch.cat((pos, torch.arange(1, 600).unsqueeze(1) * torch.tensor([900.0, 0, 7.0])))
    edge_index, _ = radius_graph(pos.double(), 2.0)
    assert edge_index.tolist() == [[1, 0, 3, 2], [0, 1, 2, 3]]


def test_edge_shift_is_differentiable_in_the_cell():
    pos, cell, pbc = mixed_batch()
    batch = torch.arange(len(pos)).repeat_interleave(torch.tensor([len(p) for p in pos]))
    pos = torch.cat(pos).requires_grad_()
    cell.requires_grad_()
    assert radius_graph(pos, 4.5, batch, cell, pbc)[1].requires_grad
    assert torch.autograd.gradcheck(lambda c: radius_graph(pos, 3.0, batch, c, pbc)[1], cell)
    single, vectors = random_system(4, 3.0)
    vectors.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: radius_graph(single, 3.0, cell=c)[1], vectors)


@pytest.mark.parametrize("batch_size", [None, 0, 3])
def test_no_atoms(batch_size):
    pos = torch.empty(0, 3)
    batch = torch.empty(0, dtype=torch.int64)
    for given_batch in (batch, None):
        edge_index, edge_shift = radius_graph(pos, 5.0, given_batch, batch_size=batch_size)
        assert edge_index.shape == (2, 0) and edge_shift.shape == (0, 3)
        assert edge_index.dtype == torch.int64 and edge_shift.dtype == pos.dtype
    edge_index, edge_shift = radius_graph(pos, 5.0, batch, torch.eye(3), batch_size=batch_size)
    assert edge_index.shape == (2, 0) and edge_shift.shape == (0, 3)


def test_max_num_neighbors():
    pos, cell = random_system(200, 12.0, seed=4)
    full_index, full_shift = radius_graph(pos, 5.0, cell=cell)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loose = radius_graph(pos, 5.0, cell=cell, max_num_neighbors=1000)
    assert torch.equal(loose[0], full_index) and torch.equal(loose[1], full_shift)
    with pytest.warns(UserWarning, match=r"`max_num_neighbors=7` leaves out \d+ of \d+ edges"):
        edge_index, edge_shift = radius_graph(pos, 5.0, cell=cell, max_num_neighbors=7)
    edge_set(edge_index, edge_shift, cell)

    def lengths(edge_index, edge_shift):
        distance = (pos[edge_index[1]] - pos[edge_index[0]] - edge_shift).norm(dim=-1)
        return [distance[edge_index[1] == i].sort().values for i in range(200)]

    for kept, full in zip(
        lengths(edge_index, edge_shift), lengths(full_index, full_shift), strict=True
    ):
        assert torch.equal(kept, full[:7])


def test_coincident_atoms():
    pos, cell = random_system(30, 9.0, seed=1)
    pos[17] = pos[4]
    with pytest.raises(ValueError, match=r"`pos` must not hold coincident atoms, .* 4 and 17"):
        radius_graph(pos, 3.0)
    with pytest.raises(ValueError, match="atoms 4 and 17"):
        radius_graph(pos, 3.0, cell=cell)
    pos[17] = pos[4] + 2 * cell[0] - cell[2]
    radius_graph(pos, 3.0)
    with pytest.raises(ValueError, match="atoms 4 and 17"):
        radius_graph(pos, 3.0, cell=cell)
    # In different graphs, atoms may coincide; an unsorted batch keeps the caller's numbers.
    batch = torch.arange(30) % 2
    pos[17] = pos[4]
    radius_graph(pos, 3.0, batch)
    pos[16] = pos[4]
    with pytest.raises(ValueError, match="atoms 4 and 16"):
        radius_graph(pos, 3.0, batch)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_positions_that_are_not_finite(value):
    pos, _ = random_system(5, 5.0)
    pos[3, 1] = value
    with pytest.raises(ValueError, match=r"`pos` must be finite, .* for atom 3"):
        radius_graph(pos, 3.0)


def test_bad_input():
    pos, cell = random_system(6, 5.0)
    for cutoff in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`cutoff` must be positive and finite"):
            radius_graph(pos, cutoff)
    for bad in (torch.zeros(4, 2), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"`pos` must have shape \[num_nodes, 3\]"):
            radius_graph(bad, 3.0)
    with pytest.raises(TypeError, match=r"`pos`.*int64"):
        radius_graph(torch.zeros(4, 3, dtype=torch.int64), 3.0)
    singular = cell.clone()
    singular[2] = singular[0] - 2 * singular[1]
    with pytest.raises(ValueError, match="`cell` of graph 0 is singular"):
        radius_graph(pos, 3.0, cell=singular)
    with pytest.raises(ValueError, match="`cell` of graph 0 is singular"):
        radius_graph(pos, 3.0, cell=torch.zeros(3, 3))
    assert not radius_graph(pos, 3.0, cell=torch.zeros(3, 3), pbc=False)[1].any()
    with pytest.raises(ValueError, match="`cell` must be finite"):
        radius_graph(pos, 3.0, cell=cell * float("nan"))
    with pytest.raises(ValueError, match=r"`batch` must have shape \[6\]"):
        radius_graph(pos, 3.0, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"`batch`.*float"):
        radius_graph(pos, 3.0, torch.zeros(6))
    for batch in ([0, 0, 1, 1, 2, 3], [-1, 0, 0, 0, 0, 0]):
        with pytest.raises(IndexError, match=r"`batch` holds graph .*\[0, 3\)"):
            radius_graph(pos, 3.0, torch.tensor(batch), batch_size=3)
    with pytest.raises(ValueError, match=r"`cell` must have shape .* found \[2, 3, 3\]"):
        radius_graph(pos, 3.0, cell=torch.stack((cell, cell)))
    with pytest.raises(ValueError, match="`max_num_neighbors`"):
        radius_graph(pos, 3.0, max_num_neighbors=-1)


@pytest.mark.parametrize("periodic", [False, True])
def test_work_is_linear_in_the_number_of_atoms(periodic, monkeypatch):
    """Counts the distances computed, which does not depend on the machine."""
    module = importlib.import_module("e2former_pyg.graph.cell_list")
    squared_distance = module.squared_distance
    counts, largest = [], []
    for num_atoms in (1000, 4000, 16000):
        evaluated = []

        def counting(a, index_a, *args, evaluated=evaluated):
            evaluated.append(index_a.numel())
            return squared_distance(a, index_a, *args)

        monkeypatch.setattr(module, "squared_distance", counting)
        pos, cell = random_system(num_atoms, (num_atoms / 0.1) ** (1 / 3), skew=0.0)
        radius_graph(pos, 5.0, cell=cell if periodic else None)
        counts.append(sum(evaluated) / num_atoms)
        largest.append(max(evaluated))
    # The number for one atom tends to 27 bins of at most twice the cutoff's volume.
    assert max(counts) < 2.5 * 27 * 5.0**3 * 0.1
    assert counts[2] < 1.3 * counts[1]
    # Few candidates are held at a time.
    assert max(largest) < 2**16 + 5000
