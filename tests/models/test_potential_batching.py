"""A batch gives what its graphs give one by one; edges and cells may be written in many ways."""

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch

from e2former_pyg.graph import radius_graph
from e2former_pyg.transforms import RadiusGraph

ZERO = torch.zeros(3, 3, dtype=torch.float64)


def systems(lab, dtype):
    """Open and periodic systems, a lone atom, an isolated atom, a graph without atoms."""
    z, pos = lab.molecule(7)
    lone = (z[:1], pos[:1], ZERO)
    far = (torch.cat([z, z[:1]]), torch.cat([pos, pos[:1] + 50.0]), ZERO)
    empty = (z[:0], pos[:0], ZERO)
    crystals = [lab.crystal(seed) for seed in range(2)]
    parts = [(z, pos, ZERO), crystals[0], lone, empty, far, crystals[1], empty]
    return [(z, pos.to(dtype), cell.to(dtype)) for z, pos, cell in parts]


def collate(parts):
    z, pos, cell = (torch.cat(values) for values in zip(*parts, strict=True))
    counts = torch.tensor([part[0].numel() for part in parts])
    batch = torch.arange(len(parts)).repeat_interleave(counts)
    pbc = torch.stack([part[2].any().expand(3) for part in parts])
    return z, pos, batch, cell, pbc


def same(lab, found, expected, bound):
    for name, value, want in zip(found._fields, found, expected, strict=True):
        if not want.any():
            assert not value.any(), name
        else:
            assert lab.relative(value, want) < bound, name


# Forces of the crystals are a tenth of a molecule's, so that float32 is up to 1.9e-6 of them off,
# and two results up to twice that apart: how far depends on the processor.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 4e-6)])
@pytest.mark.parametrize("forces", ["conservative", "direct"])
def test_batch_is_one_by_one(lab, dtype, bound, forces):
    model = lab.make("potential", stress=True, forces=forces, dtype=dtype)
    parts = systems(lab, dtype)
    z, pos, batch, cell, pbc = collate(parts)
    together = model(z, pos, batch, cell=cell, pbc=pbc, batch_size=len(parts))
    assert together.energy.shape == (len(parts),)
    assert together.stress.shape == (len(parts), 3, 3)
    for index, (z, pos, cell) in enumerate(parts):
        alone = model(z, pos, cell=cell, pbc=bool(cell.any()), batch_size=1)
        atoms = batch == index
        found = together._replace(
            energy=together.energy[index : index + 1],
            atomic_energies=together.atomic_energies[atoms],
            forces=together.forces[atoms],
            stress=together.stress[index : index + 1],
        )
        same(lab, found, alone, bound)
        assert bool(alone.stress.any()) == bool(cell.any())


def test_lone_atom(lab):
    """Not the same for all elements, beyond the references, and without forces."""
    model = lab.make("potential", stress=True)
    model.references.energies.zero_()
    outs = [model(torch.tensor([z]), ZERO[:1]) for z in (1, 6)]
    assert all(out.energy.isfinite().all() and not out.forces.any() for out in outs)
    assert abs(float(outs[0].energy - outs[1].energy)) > 1e-3


@pytest.mark.parametrize("batch_size", [0, 3])
def test_no_atoms(lab, batch_size):
    model = lab.make("potential", stress=True)
    none = torch.empty(0, dtype=torch.long)
    out = model(none, ZERO[:0], none, batch_size=batch_size)
    assert out.energy.tolist() == [0.0] * batch_size
    assert out.forces.shape == (0, 3) and out.stress.shape == (batch_size, 3, 3)


def test_batch_need_not_be_sorted(lab):
    model = lab.make("potential", stress=True)
    z, pos, batch, cell, pbc = collate(systems(lab, torch.float64))
    perm = torch.randperm(z.numel(), generator=torch.Generator().manual_seed(0))
    expected = model(z, pos, batch, cell=cell, pbc=pbc, batch_size=7)
    found = model(z[perm], pos[perm], batch[perm], cell=cell, pbc=pbc, batch_size=7)
    assert lab.relative(found.energy, expected.energy) < 1e-12
    assert lab.relative(found.forces, expected.forces[perm]) < 1e-12
    assert lab.relative(found.stress, expected.stress) < 1e-12


@pytest.mark.parametrize("skin", [0.0, 0.8])
@pytest.mark.parametrize("form", ["sorted", "unsorted", "EdgeIndex", "unsorted EdgeIndex"])
def test_given_edges(lab, skin, form):
    model = lab.make("potential", stress=True)
    z, pos, batch, cell, pbc = collate(systems(lab, torch.float64))
    expected = model(z, pos, batch, cell=cell, pbc=pbc, batch_size=7)
    edges, shift = radius_graph(pos, model.cutoff + skin, batch, cell, pbc, batch_size=7)
    sort_order = "col"
    if form.startswith("unsorted"):
        perm = torch.randperm(edges.size(1), generator=torch.Generator().manual_seed(0))
        edges, shift, sort_order = edges[:, perm], shift[perm], None
    if form.endswith("EdgeIndex"):
        edges = EdgeIndex(edges, sparse_size=(z.numel(), z.numel()), sort_order=sort_order)
    found = model(
        z, pos, batch, edge_index=edges, edge_shift=shift, cell=cell, pbc=pbc, batch_size=7
    )
    same(lab, found, expected, 1e-12)


def test_kinds_of_edge_index(lab):
    """Sorted otherwise, of another dtype, or not knowing the isolated atom at the end."""
    model = lab.make("potential")
    z, pos = lab.molecule()
    z, pos = torch.cat([z, z[:1]]), torch.cat([pos, pos[:1] + 50.0])
    expected = model(z, pos)
    edges, _ = radius_graph(pos, model.cutoff)
    for edge_index in (
        edges.int(),
        EdgeIndex(edges, sort_order="col"),
        EdgeIndex(edges, sparse_size=(8, 8), sort_order="col"),
        EdgeIndex(edges.flip(0).contiguous(), sparse_size=(9, 9), sort_order="row"),
        EdgeIndex(edges.int(), sparse_size=(9, 9), sort_order="col", is_undirected=True),
    ):
        found = model(z, pos, edge_index=edge_index)
        assert lab.relative(found.energy, expected.energy) < 1e-12
        assert lab.relative(found.forces, expected.forces) < 1e-12


def test_supercell(lab):
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal()
    steps = torch.cartesian_prod(*[torch.arange(2.0, dtype=pos.dtype)] * 3) @ cell
    expected = model(z, pos, cell=cell)
    found = model(z.repeat(8), (steps[:, None] + pos).view(-1, 3), cell=2 * cell)
    assert lab.relative(found.energy, 8 * expected.energy) < 1e-12
    assert lab.relative(found.forces, expected.forces.repeat(8, 1)) < 1e-12
    assert lab.relative(found.stress, expected.stress) < 1e-12


def test_wrapped_positions(lab):
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal()
    images = torch.tensor([[0, 0, 0], [1, -2, 3], [-1, 0, 5]], dtype=pos.dtype)
    same(lab, model(z, pos + images @ cell, cell=cell), model(z, pos, cell=cell), 1e-12)


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 3)])
def test_layouts_of_one_cell(lab, shape):
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal()
    found = model(z, pos, cell=cell.view(shape), pbc=torch.ones(shape[:-1], dtype=torch.bool)[0])
    same(lab, found, model(z, pos, cell=cell), 1e-15)


def test_partly_periodic(lab):
    """A slab is a crystal with a wide gap, and has no stress."""
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal()
    wide = cell.clone()
    wide[2] = 20 * cell[2]
    slab = model(z, pos, cell=cell, pbc=torch.tensor([True, True, False]))
    gap = model(z, pos, cell=wide)
    assert lab.relative(slab.energy, gap.energy) < 1e-12
    assert lab.relative(slab.forces, gap.forces) < 1e-12
    assert not slab.stress.any() and gap.stress.any()


def data_list(lab, with_cells):
    parts = systems(lab, torch.float64)
    graphs = []
    for z, pos, cell in parts:
        graph = lab.as_data(z, pos)
        if with_cells:
            graph.cell, graph.pbc = cell, cell.any().expand(3)
        graphs.append(graph)
    return parts, graphs


@pytest.mark.parametrize("with_cells", [False, True])
@pytest.mark.parametrize("edges", [None, "each", "batch"])
def test_data_batch_and_tensors_agree(lab, edges, with_cells):
    model = lab.make("potential", stress=True)
    parts, graphs = data_list(lab, with_cells)
    z, pos, batch, cell, pbc = collate(parts)
    cells = {"cell": cell, "pbc": pbc} if with_cells else {}
    expected = model(z, pos, batch, batch_size=len(parts), **cells)
    if edges == "each":
        graphs = [RadiusGraph(model.cutoff + 0.5)(graph) for graph in graphs]
    collated = Batch.from_data_list(graphs)
    if edges == "batch":
        collated = RadiusGraph(model.cutoff)(collated)
    same(lab, model(collated), expected, 1e-12)
    first = model(graphs[0])
    assert first.energy.shape == (1,)
    assert lab.relative(first.energy, expected.energy[:1]) < 1e-12


@pytest.mark.parametrize("cutoff", [5.2, 3.3, 4.1, 6.0])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_edge_cutoff_survives_collation(lab, cutoff, default):
    """PyG collates floats to a tensor of the default dtype: 5.2 becomes 5.1999998."""
    model = lab.make("potential", cutoff=cutoff, num_layers=1)
    z, pos = lab.molecule()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        batch = Batch.from_data_list([RadiusGraph(cutoff)(lab.as_data(z, pos))] * 2)
    finally:
        torch.set_default_dtype(before)
    assert lab.relative(model(batch).energy, model(z, pos).energy.repeat(2)) < 1e-12
    batch.edge_cutoff = batch.edge_cutoff - 1e-3
    with pytest.raises(ValueError, match="edge_cutoff"):
        model(batch)


def test_shortest_edge_cutoff_of_a_batch_counts(lab):
    model = lab.make("potential", num_layers=1)
    z, pos = lab.molecule()
    graphs = [RadiusGraph(cutoff)(lab.as_data(z, pos)) for cutoff in (4.0, 3.0)]
    with pytest.raises(ValueError, match=r"edge_cutoff.*3\.5.*3\.0"):
        model(Batch.from_data_list(graphs))
