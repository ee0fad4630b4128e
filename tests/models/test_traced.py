"""Traces of repeated evaluations on the CPU give what the potential gives."""

import copy
import pickle

import pytest
import torch
from torch_geometric.data import Batch

from e2former_pyg.graph import radius_graph
from e2former_pyg.models import traced


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """The traces that were made, the first one at the third call."""
    found = []
    make = traced.RepeatedEvaluation._make

    def counted(self, *args):
        found.append(make(self, *args))
        return found[-1]

    monkeypatch.setattr(traced, "TRACE_AFTER", 2)
    monkeypatch.setattr(traced.RepeatedEvaluation, "_make", counted)
    return found


def agree(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert not one.requires_grad and one.dtype == other.dtype
            torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=1e-12)


def moved(pos, step):
    generator = torch.Generator().manual_seed(step)
    return pos + 0.05 * torch.rand(pos.shape, dtype=pos.dtype, generator=generator)


SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"repulsion": True, "charge": True, "spin": True}, DOUBLE),
        ({"forces": "direct", "order": (0, 1, 2), "directional": True, "qk_norm": True}, DOUBLE),
        ({"forces": None}, DOUBLE),
        ({"num_layers": 2}, SINGLE),
    ],
    ids=["repulsion-charge-spin", "direct-order-directional-normed", "energies", "float32"],
)
def test_a_molecule_that_moves(lab, made, options, dtype):
    model = lab.make("potential", **{"num_layers": 1} | options).to(dtype)
    fast = model.compile_for_inference()
    z, pos = lab.molecule(8, dtype=dtype)
    labels = {"charge": torch.tensor([1]), "spin": torch.tensor([2])} if "charge" in options else {}
    edge_index, _ = radius_graph(pos, model.cutoff + 1.0)
    results = []
    for step in range(5):
        system = {"edge_index": edge_index.clone(), **labels}  # equal edges are enough
        found, expected = (each(z, moved(pos, step), **system) for each in (fast, model))
        if dtype == torch.float64:
            agree(found, expected)
        else:
            torch.testing.assert_close(found.energy, expected.energy.detach(), rtol=1e-6, atol=1e-6)
        results.append((found, [None if value is None else value.clone() for value in found]))
    assert len(made) == 1
    for found, copies in results:  # later calls leave earlier results alone
        agree(found, copies)


def test_stress_now_and_then(lab, made):
    """A trace each with and without it, neither of which is given up."""
    model = lab.make("potential", num_layers=1, stress=True)
    fast = model.compile_for_inference()
    z, pos, cell = lab.crystal()
    edge_index, edge_shift = radius_graph(pos, model.cutoff + 1.0, cell=cell)
    for step in range(12):
        fast.potential.stress = model.stress = step % 2 == 0
        system = {"edge_index": edge_index, "edge_shift": edge_shift, "cell": cell}
        agree(*(each(z, moved(pos, step), **system) for each in (fast, model)))
    assert len(made) == 2


def test_a_crystal_whose_cell_changes(lab, made):
    model = lab.make("potential", num_layers=1, stress=True, repulsion=True)
    fast = model.compile_for_inference()
    z, pos, cell = lab.crystal()
    edge_index, edge_shift = radius_graph(pos, model.cutoff + 1.0, cell=cell)
    for step in range(5):
        scale = 1 + 0.01 * step
        system = {
            "cell": scale * cell,
            "edge_index": edge_index,
            "edge_shift": scale * edge_shift,
        }
        pos_now = scale * moved(pos, step)
        found, expected = (each(z, pos_now, **system) for each in (fast, model))
        agree(found, expected)
        assert float(found.stress.abs().max()) > 1e-3
    assert len(made) == 1
    # As calculators do for systems that are no solids.
    fast.potential.stress = model.stress = False
    agree(fast(z, pos_now, **system), model(z, pos_now, **system))


def test_batches_and_lone_atoms(lab, made):
    model = lab.make("potential", num_layers=1)
    fast = model.compile_for_inference()
    for sizes in ([3, 1, 5], [1], [1, 1]):
        batch = Batch.from_data_list([lab.as_data(*lab.molecule(atoms)) for atoms in sizes])
        for _ in range(4):
            found = fast(batch)
            agree(found, model(batch))
            found.energy.zero_()
            found.forces.add_(1.0)
    assert len(made) == 3


def test_other_systems_are_not_taken_for_the_same(lab, made):
    model = lab.make("potential", num_layers=1)
    fast = model.compile_for_inference()
    z, pos = lab.molecule(8)
    edge_index, _ = radius_graph(pos, model.cutoff)

    def check(**system):
        agree(fast(z, pos, **system), model(z, pos, **system))

    for _ in range(4):
        check(edge_index=edge_index)
    assert len(made) == 1
    agree(fast(z.int(), pos, edge_index=edge_index), model(z, pos, edge_index=edge_index))
    z.copy_(z.flip(0))
    check(edge_index=edge_index)
    edge_index.copy_(edge_index.flip(0))
    check(edge_index=edge_index)
    pos.mul_(0.8)
    check()  # more edges
    check(batch=torch.tensor([0] * 4 + [1] * 4))
    assert len(made) == 1


def test_large_systems_are_not_traced(lab, made, monkeypatch):
    model = lab.make("potential", num_layers=1)
    fast = model.compile_for_inference()
    z, pos = lab.molecule(8)
    edges = radius_graph(pos, model.cutoff)[0].size(1)
    for limit, traces in ((edges - 1, 0), (edges, 1)):
        monkeypatch.setattr(traced, "MAX_TRACED_EDGES", limit)
        for _ in range(4):
            agree(fast(z, pos), model(z, pos))
        assert len(made) == traces


def test_copies_and_pickles(lab, made):
    """Calculators are copied and sent to other processes."""
    model = lab.make("potential", num_layers=1)
    fast = model.compile_for_inference()
    z, pos = lab.molecule(5)
    for _ in range(3):
        fast(z, pos)
    assert len(made) == 1
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        agree(other(z, pos), model(z, pos))
    agree(fast(z, pos), model(z, pos))
    assert len(made) == 1


def test_autocast_is_not_traced(lab, made):
    model = lab.make("potential", num_layers=1).float()
    fast = model.compile_for_inference()
    z, pos = lab.molecule(5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(4):
            out, expected = fast(z, pos), model(z, pos)
            torch.testing.assert_close(out.energy, expected.energy.detach(), rtol=1e-6, atol=1e-6)
    assert not made


def test_derivatives_of_the_potential_itself_are_left_alone(lab, made):
    """A trace has none, the potential it was made from keeps its own."""
    model = lab.make("potential", num_layers=1)
    fast = model.compile_for_inference()
    z, pos = lab.molecule(5)
    for _ in range(4):
        assert not fast(z, pos.clone().requires_grad_()).forces.requires_grad
    out = model.train()(z, pos)
    assert out.forces.requires_grad
