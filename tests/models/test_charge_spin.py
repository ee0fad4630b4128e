"""Total charge and spin multiplicity."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch_geometric.data import Batch


@pytest.mark.parametrize("name", ["charge", "spin"])
def test_value_matters_for_its_graph_only(lab, name):
    model = lab.make("potential", num_layers=1, **{name: True})
    z, pos = lab.molecule()
    batch = torch.arange(2).repeat_interleave(8)
    both = z.repeat(2), pos.repeat(2, 1), batch

    def energies(*values):
        return model(*both, **{name: torch.tensor(values)}).energy

    low, high = (1, 3) if name == "spin" else (-1, 2)
    first = energies(low, low)
    assert first[0] == first[1]
    second = energies(low, high)
    assert second[0] == first[0] and abs(float(second[1] - first[1])) > 1e-4
    default = energies(*([1, 1] if name == "spin" else [0, 0]))
    assert torch.equal(model(*both).energy, default)


def test_charge_and_spin_together(lab):
    model = lab.make("potential", num_layers=1, charge=True, spin=True)
    z, pos = lab.molecule()
    values = [
        float(model(z, pos, charge=torch.tensor([c]), spin=torch.tensor([s])).energy)
        for c in (0, 1)
        for s in (1, 2)
    ]
    assert len({round(value, 6) for value in values}) == 4


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.int8, torch.float32])
def test_forms_of_one_value(lab, shape, dtype):
    model = lab.make("potential", num_layers=1, charge=True)
    z, pos = lab.molecule()
    expected = model(z, pos, charge=torch.tensor([-1])).energy
    found = model(z, pos, charge=torch.tensor(-1, dtype=dtype).view(shape)).energy
    assert torch.equal(found, expected)


def test_from_data(lab):
    """Python numbers too, which PyG collates to tensors."""
    model = lab.make("potential", num_layers=1, charge=True, spin=True)
    z, pos = lab.molecule()
    graphs = [lab.as_data(z, pos) for _ in range(2)]
    for graph, charge, spin in zip(graphs, (1, -2), (2, 3), strict=True):
        graph.charge, graph.spin = charge, spin
    together = model(Batch.from_data_list(graphs)).energy
    for graph, energy in zip(graphs, together, strict=True):
        assert lab.relative(model(graph).energy, energy.view(1)) < 1e-12
        expected = model(z, pos, charge=torch.tensor(graph.charge), spin=torch.tensor(graph.spin))
        assert torch.equal(model(graph).energy, expected.energy)
    assert abs(float(together[0] - together[1])) > 1e-4


@pytest.mark.parametrize(("name", "trivial"), [("charge", 0), ("spin", 1)])
def test_given_but_disabled(lab, name, trivial):
    model = lab.make("potential", num_layers=1)
    z, pos = lab.molecule()
    found = model(z, pos, **{name: torch.tensor([trivial])}).energy
    assert torch.equal(found, model(z, pos).energy)
    with pytest.raises(ValueError, match=f"`{name}` was given"):
        model(z, pos, **{name: torch.tensor([2])})
    data = lab.as_data(z, pos)
    data[name] = trivial
    assert torch.equal(model(data).energy, found)
    data[name] = 2
    with pytest.raises(ValueError, match=f"`{name}` was given"):
        model(data)


@pytest.mark.parametrize("name", ["charge", "spin"])
def test_one_value_for_each_graph_even_if_disabled(lab, name):
    z, pos = lab.molecule()
    of_atoms = torch.full(z.shape, 1 if name == "spin" else 0)
    with pytest.raises(ValueError, match=rf"`{name}`.*shape \[1\].*\[8\]"):
        lab.make("potential", num_layers=1)(z, pos, **{name: of_atoms})


def test_disabled_where_values_are_not_known(lab):
    """On accelerators and in traced code, a look at the charge would wait for the device."""
    embedding = lab.make("backbone", num_layers=1).embedding
    z, batch, charge = torch.tensor([6, 1]), torch.zeros(2, dtype=torch.long), torch.tensor([0])
    traced = make_fx(lambda charge: embedding(z, batch, 1, charge))(charge)
    assert torch.equal(traced(charge), embedding(z, batch, 1))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("charge", [21], r"-20\.\.20, got 21"),
        ("charge", [-21], r"-20\.\.20, got -21"),
        ("spin", [0], r"1\.\.40, got 0"),
        ("spin", [41], r"1\.\.40, got 41"),
        ("charge", [0.5], "integers"),
        ("spin", [float("nan")], "integers"),
        ("charge", [0, 0], "shape"),
    ],
)
def test_bad_values(lab, name, values, message):
    model = lab.make("potential", num_layers=1, **{name: True})
    with pytest.raises(ValueError, match=f"`{name}`.*{message}"):
        model(*lab.molecule(), **{name: torch.tensor(values)})


def test_the_limits_are_allowed(lab):
    model = lab.make("potential", num_layers=1, charge=True, spin=True)
    z, pos = lab.molecule()
    for charge, spin in ((-20, 1), (20, 40)):
        out = model(z, pos, charge=torch.tensor([charge]), spin=torch.tensor([spin]))
        assert out.energy.isfinite().all()
