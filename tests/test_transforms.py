import copy
import warnings

import ase.units
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SchNet
from torch_geometric.transforms import Compose

from e2former_pyg.graph import radius_graph
from e2former_pyg.transforms import ConvertUnits, RadiusGraph, RandomRotation, SelectTarget


def make_data(num_atoms=8, seed=0, cell=False, pbc=True, layout=(3, 3)):
    generator = torch.Generator().manual_seed(seed)
    data = Data(
        z=torch.randint(1, 9, (num_atoms,), generator=generator),
        pos=4.0 * torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64),
    )
    if cell:
        noise = torch.rand(3, 3, generator=generator, dtype=torch.float64)
        data.cell = (4.0 * torch.eye(3, dtype=torch.float64) + noise).view(layout)
        data.pbc = torch.full(layout[:-1], pbc)
        if not pbc:
            data.cell = torch.zeros_like(data.cell)
    return data


def snapshot(data):
    return {key: copy.deepcopy(value) for key, value in data.to_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[key]), key
        else:
            assert value == right[key], key


def test_radius_graph_on_molecules():
    transform = RadiusGraph(2.5)
    assert str(transform) == "RadiusGraph(cutoff=2.5)"
    limited = RadiusGraph(2.5, max_num_neighbors=9)
    assert str(limited) == "RadiusGraph(cutoff=2.5, max_num_neighbors=9)"
    data = make_data()
    data.edge_index, data.edge_attr = torch.zeros(2, 5).long(), torch.zeros(5, 4)
    before = snapshot(data)
    out = transform(data)
    assert_same(snapshot(data), before)
    assert torch.equal(out.edge_index, radius_graph(data.pos, 2.5)[0])
    assert (out.edge_index[1].diff() >= 0).all()
    assert out.edge_cutoff == 2.5 and isinstance(out.edge_cutoff, float)
    assert "edge_shift" not in out and "edge_attr" not in out
    assert out.validate()


@pytest.mark.parametrize("layout", [(3, 3), (1, 3, 3)])
def test_radius_graph_collates(layout):
    flags = (True, False, True)
    graphs = [make_data(6 + k, k, cell=True, pbc=flags[k], layout=layout) for k in range(3)]
    transform = RadiusGraph(3.0)
    separate = Batch.from_data_list([transform(data) for data in graphs])
    assert not separate.edge_shift[separate.batch[separate.edge_index[1]] == 1].any()
    assert separate.edge_shift.any()

    batch = Batch.from_data_list(graphs)
    before = snapshot(batch)
    together = transform(batch)
    assert_same(snapshot(batch), before)
    assert "edge_index" not in batch._slice_dict
    for key in ("edge_index", "edge_shift", "cell", "pbc", "batch", "ptr"):
        assert torch.equal(together[key], separate[key])
    assert torch.equal(together.edge_cutoff, torch.full((3,), 3.0, dtype=torch.float64))

    # Graphs come back out of the batch, also where it held other edges before.
    for out in (together, RadiusGraph(3.0)(RadiusGraph(2.0)(batch))):
        for data, expected in zip(out.to_data_list(), graphs, strict=True):
            expected = transform(expected)
            assert torch.equal(data.edge_index, expected.edge_index)
            assert torch.equal(data.edge_shift, expected.edge_shift)
            assert float(data.edge_cutoff) == 3.0


def test_radius_graph_in_loader_and_compose():
    transform = Compose([RadiusGraph(3.0), RandomRotation()])
    graphs = [transform(make_data(5, k)) for k in range(4)] + [transform(make_data(1, 9))]
    batch = next(iter(DataLoader(graphs, batch_size=5)))
    expected = radius_graph(batch.pos, 3.0, batch.batch)[0]
    assert torch.equal(batch.edge_index, expected)
    assert batch.edge_cutoff.shape == (5,)


def test_radius_graph_max_num_neighbors():
    data = make_data(20)
    with pytest.warns(UserWarning, match="`max_num_neighbors=3` leaves out"):
        out = RadiusGraph(4.0, max_num_neighbors=3)(data)
    assert out.edge_index[1].bincount().max() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RadiusGraph(4.0, max_num_neighbors=30)(data)


def test_radius_graph_bad_input():
    with pytest.raises(ValueError, match="`data` has no `pos`"):
        RadiusGraph(3.0)(Data(z=torch.ones(3)))
    with pytest.raises(TypeError, match=r"`data`.*HeteroData"):
        RadiusGraph(3.0)(HeteroData())
    with pytest.raises(ValueError, match="`cutoff`"):
        RadiusGraph(-1.0)(make_data())


def test_interaction_graph_distances():
    data = make_data()
    pos = data.pos.requires_grad_()
    batch = torch.tensor([0] * 5 + [1] * 3)
    transform = RadiusGraph(3.0)
    edge_index, weight = transform(pos, batch)
    assert torch.equal(edge_index, radius_graph(pos, 3.0, batch)[0])
    assert torch.autograd.gradcheck(lambda pos: transform(pos, batch)[1], pos)
    assert torch.equal(transform(pos)[0], radius_graph(pos, 3.0)[0])
    assert torch.allclose(weight, (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=-1))


def test_schnet():
    torch.manual_seed(0)
    cutoff = 3.0
    kwargs = {"hidden_channels": 8, "num_filters": 8, "num_interactions": 2, "cutoff": cutoff}

    def all_pairs(pos, batch):
        near = torch.cdist(pos, pos) < cutoff
        near &= batch.unsqueeze(0) == batch.unsqueeze(1)
        edge_index = (near & ~torch.eye(len(pos), dtype=torch.bool)).nonzero().t()
        return edge_index, (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=-1)

    batch = Batch.from_data_list([make_data(7, 1), make_data(4, 2)])
    model = SchNet(interaction_graph=RadiusGraph(cutoff), **kwargs).double()
    reference = SchNet(interaction_graph=all_pairs, **kwargs).double()
    reference.load_state_dict(model.state_dict())
    pos = batch.pos.requires_grad_()
    results = []
    for net in (model, reference):
        energy = net(batch.z, pos, batch.batch)
        results.append((energy, torch.autograd.grad(energy.sum(), pos)[0]))
    assert results[0][1].abs().max() > 1e-4
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def with_labels(data, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    data.forces = torch.randn(data.num_nodes, 3, generator=generator, dtype=dtype)
    data.stress = torch.randn(data.cell.shape, generator=generator, dtype=dtype)
    data.energy = torch.randn(1, generator=generator, dtype=dtype)
    return data


def rotation_matrix(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize("layout", [(3, 3), (1, 3, 3)])
def test_rotation_turns_everything_alike(layout):
    rotation = rotation_matrix()
    graphs = [with_labels(make_data(6, k, cell=True, layout=layout)) for k in range(3)]
    graphs = [RadiusGraph(3.0)(data) for data in graphs]
    before = [snapshot(data) for data in graphs]
    turned = [RandomRotation(rotation)(data) for data in graphs]
    for data, old in zip(graphs, before, strict=True):
        assert_same(snapshot(data), old)
    batch = RandomRotation(rotation)(Batch.from_data_list(graphs))
    for key in ("pos", "cell", "edge_shift", "forces", "stress"):
        assert torch.allclose(batch[key], Batch.from_data_list(turned)[key], atol=1e-14)

    for old, new in zip(graphs, turned, strict=True):
        # The same edges, found anew, with the offsets that were turned.
        again = RadiusGraph(3.0)(new)
        assert torch.equal(again.edge_index, new.edge_index)
        assert torch.allclose(again.edge_shift, new.edge_shift, atol=1e-12)
        for i in range(3):
            vector = torch.eye(3, dtype=torch.float64)[i]
            stress, turned_stress = old.stress.view(3, 3), new.stress.view(3, 3)
            assert torch.allclose(turned_stress @ (rotation @ vector), rotation @ stress @ vector)
            assert torch.allclose(new.forces[i], rotation @ old.forces[i])
            assert torch.allclose(new.cell.view(3, 3)[i], rotation @ old.cell.view(3, 3)[i])
        assert torch.equal(new.energy, old.energy)


def test_random_rotations_are_uniform_and_reproducible():
    data = Data(pos=torch.eye(3, dtype=torch.float64))

    def draw(count):
        transform = RandomRotation(generator=torch.Generator().manual_seed(3))
        return torch.stack([transform(data).pos.t() for _ in range(count)])

    rotations = draw(4000)
    assert torch.equal(rotations[:5], draw(5))
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotations)
    assert torch.allclose(rotations @ rotations.mT, identity, atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(4000).double())
    # Moments of the uniform distribution: <R> = 0, <R_ab R_cd> = d_ac d_bd / 3.
    flat = rotations.view(-1, 9)
    assert flat.mean(0).abs().max() < 0.04
    assert (flat.t() @ flat / 4000 - torch.eye(9) / 3).abs().max() < 0.04
    # The third moment of the trace is 1 for proper rotations, 0 with reflections among them.
    assert (rotations.diagonal(dim1=1, dim2=2).sum(1) ** 3).mean() == pytest.approx(1.0, abs=0.3)


def test_rotation_keeps_dtypes_and_checks_input():
    data = with_labels(make_data(cell=True), torch.float32)
    out = RandomRotation()(data)
    assert out.pos.dtype == torch.float64 and out.forces.dtype == torch.float32
    with pytest.raises(ValueError, match="`rotation` must be orthogonal"):
        RandomRotation(1.1 * torch.eye(3))
    with pytest.raises(ValueError, match=r"`rotation` must have shape \[3, 3\]"):
        RandomRotation(torch.eye(2))
    data.stress = torch.zeros(6)
    with pytest.raises(ValueError, match=r"`stress` must have shape .*\[6\]"):
        RandomRotation()(data)


def test_units_agree_with_ase():
    named = {"kcal/mol": ase.units.kcal / ase.units.mol, "kJ/mol": ase.units.kJ / ase.units.mol}
    named |= {"Hartree": ase.units.Hartree, "eV": ase.units.eV, "meV": 1e-3 * ase.units.eV}
    for name, value in named.items():
        assert ConvertUnits(energy=name).energy == pytest.approx(value, rel=1e-7)
    for name, value in {"Bohr": ase.units.Bohr, "nm": ase.units.nm, "Angstrom": 1.0}.items():
        assert ConvertUnits(length=name).length == pytest.approx(value, rel=1e-8)


def test_convert_units():
    data = RadiusGraph(3.0)(with_labels(make_data(cell=True), torch.float32))
    data.force = data.forces
    del data.forces
    data.y = torch.tensor([[1.5]])
    before = snapshot(data)
    out = ConvertUnits("Hartree", "Bohr")(data)
    assert_same(snapshot(data), before)
    hartree, bohr = 27.211386245981, 0.529177210544
    assert "force" not in out and out.forces.dtype == torch.float32
    assert torch.allclose(out.forces, data.force * (hartree / bohr))
    assert torch.allclose(out.stress, data.stress * (hartree / bohr**3))
    for key in ("pos", "cell", "edge_shift"):
        assert torch.equal(out[key], data[key] * bohr)
    assert out.edge_cutoff == pytest.approx(3.0 * bohr)
    assert out.energy.dtype == torch.float64
    assert torch.equal(out.energy, data.energy.double() * hartree)
    assert torch.equal(out.y, data.y)
    assert ConvertUnits("Hartree", energy_keys=["y"])(data).y.item() == 1.5 * hartree
    assert str(ConvertUnits(2.0, 3)) == "ConvertUnits(energy=2.0, length=3.0)"


def test_convert_units_of_a_batch():
    graphs = [Data(pos=torch.ones(k, 3), force=torch.full((k, 3), k), energy=k) for k in (2, 3)]
    out = ConvertUnits(energy=2.0)(Batch.from_data_list(graphs))
    assert [data.forces.tolist() for data in out.to_data_list()] == [
        [[4.0] * 3] * 2,
        [[6.0] * 3] * 3,
    ]
    assert out.energy.tolist() == [4.0, 6.0]


def test_convert_units_bad_input():
    with pytest.raises(ValueError, match=r"`energy` .*'kcal/mol'.* found 'furlong'"):
        ConvertUnits(energy="furlong")
    with pytest.raises(ValueError, match="`length` must be a number or one of"):
        ConvertUnits(length="eV")
    for factor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`length` must be positive and finite"):
            ConvertUnits(length=factor)
    data = Data(force=torch.zeros(2, 3), forces=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="both `force` and `forces`"):
        ConvertUnits()(data)


def test_select_target():
    graphs = [Data(y=torch.arange(19.0).view(1, 19) + 100 * k) for k in range(3)]
    before = snapshot(graphs[0])
    assert SelectTarget("gap")(graphs[0]).y.tolist() == [[4.0]]
    assert SelectTarget(["C", 0, "gap"])(graphs[1]).y.tolist() == [[118.0, 100.0, 104.0]]
    assert_same(snapshot(graphs[0]), before)
    batch = SelectTarget(["U0_atom"])(Batch.from_data_list(graphs))
    assert batch.y.tolist() == [[12.0], [112.0], [212.0]]
    assert batch.to_data_list()[1].y.tolist() == [[112.0]]
    own = SelectTarget("b", names=["a", "b"])
    assert own(Data(y=torch.tensor([[1.0, 2.0]]))).y.tolist() == [[2.0]]
    assert str(SelectTarget([1, "mu"])) == "SelectTarget(['alpha', 'mu'])"
    for target in ("Gap", 19, -1, ["mu", "nothing"]):
        with pytest.raises(ValueError, match=r"`target` must be one of .* or a number below 19"):
            SelectTarget(target)
    for y in (None, torch.zeros(19), torch.zeros(1, 18), 3.0):
        with pytest.raises(ValueError, match=r"`data.y` must have shape \[1, 19\], found"):
            SelectTarget("mu")(Data(y=y))
