"""Bad input: errors that name the argument, what was found and what was expected."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from e2former_pyg import E2FormerPotential
from e2former_pyg.graph import radius_graph
from e2former_pyg.transforms import RadiusGraph

NAN, INF = float("nan"), float("inf")
PAIR = torch.tensor([[0, 1], [1, 0]])
ONE_GRAPH = torch.zeros(8, dtype=torch.long)
KINDS = pytest.mark.parametrize("kind", ["backbone", "potential", "property"])


def moved(row, values):
    """A change of one position."""

    def change(pos):
        pos = pos.clone()
        pos[row] = torch.as_tensor(values, dtype=pos.dtype)
        return pos

    return change


def flat(cell):
    cell = cell.clone()
    cell[2] = cell[0] + cell[1]
    return cell


# Argument, what replaces it (a tensor, or a function of the good value), the error, its message.
BAD_MOLECULES = {
    "z shape": ("z", lambda z: z[:, None], ValueError, r"`z`.*\[8, 1\]"),
    "z dtype": ("z", lambda z: z.double(), TypeError, "`z`.*float64"),
    "z bytes": ("z", lambda z: z.byte(), TypeError, "`z`.*uint8"),
    "z high": ("z", lambda z: z + 111, ValueError, "`z`.*118.*119"),
    "z negative": ("z", lambda z: z - 7, ValueError, "`z`.*-6"),
    "z length": ("z", lambda z: z[:-1], ValueError, "`pos`"),
    "pos shape": ("pos", lambda pos: pos[:, :2], ValueError, r"`pos`.*\[8, 2\]"),
    "pos rank": ("pos", lambda pos: pos[None], ValueError, r"`pos`.*\[1, 8, 3\]"),
    "pos dtype": ("pos", lambda pos: pos.long(), TypeError, "`pos`.*int64"),
    "pos nan": ("pos", moved(2, [0, NAN, 0]), ValueError, "`pos`.*finite.*nan.*atom 2"),
    "pos inf": ("pos", moved(5, [0, 0, INF]), ValueError, "`pos`.*finite.*inf.*atom 5"),
    "coincident": ("pos", moved(2, [0, 1.1, 0]), ValueError, "`pos`.*coincident.*1 and 2"),
    "nearly": ("pos", moved(2, [0, 1.1, 1e-8]), ValueError, "`pos`.*coincident.*1 and 2"),
    "batch shape": ("batch", ONE_GRAPH[:5], ValueError, r"`batch`.*\[5\]"),
    "batch dtype": ("batch", ONE_GRAPH.double(), TypeError, "`batch`.*float64"),
    "batch negative": ("batch", ONE_GRAPH - 1, ValueError, "`batch`.*-1"),
    "pbc alone": ("pbc", True, ValueError, "`pbc`.*`cell`"),
    "batch_size": ("batch_size", 0, ValueError, "`batch_size`.*0"),
    "negative size": ("batch_size", -2, ValueError, "`batch_size`.*-2"),
    "shift alone": ("edge_shift", torch.zeros(2, 3), ValueError, "`edge_index`.*`edge_shift`"),
}
BAD_EDGES = {
    "dtype": ({"edge_index": PAIR.double()}, TypeError, "`edge_index`.*float64"),
    "shape": ({"edge_index": PAIR[:1]}, ValueError, r"`edge_index`.*\[1, 2\]"),
    "high": ({"edge_index": PAIR + 7}, IndexError, "`edge_index`.*8"),
    "negative": ({"edge_index": PAIR - 1}, IndexError, "`edge_index`.*-1"),
    "loop": ({"edge_index": PAIR * 0}, ValueError, "`edge_index`.*to itself.*atom 0"),
    "shift shape": ({"edge_shift": torch.zeros(3, 3)}, ValueError, r"`edge_shift`.*\[3, 3\]"),
    "shift dtype": ({"edge_shift": torch.ones(2, 3).long()}, TypeError, "`edge_shift`.*int64"),
    "shift nan": ({"edge_shift": torch.full((2, 3), NAN)}, ValueError, "`edge_shift`.*finite"),
    "pos nan": ({"pos": torch.full((8, 3), NAN)}, ValueError, "`pos`.*finite"),
    "pos dtype": ({"pos": torch.ones(8, 3).long()}, TypeError, "`pos`.*int64"),
    "batch high": ({"batch": ONE_GRAPH + 1, "batch_size": 1}, ValueError, r"`batch`.*0\.\.0.*1"),
    "batch low": ({"batch": ONE_GRAPH - 1, "batch_size": 1}, ValueError, r"`batch`.*0\.\.0.*-1"),
}
BAD_CELLS = {
    "shape": (lambda cell: cell[:2], ValueError, r"`cell`.*\[2, 3\]"),
    "count": (lambda cell: cell.repeat(2, 1), ValueError, r"`cell`.*\[6, 3\]"),
    "dtype": (lambda cell: cell.long(), TypeError, "`cell`.*int64"),
    "singular": (flat, ValueError, "`cell`.*singular"),
    "zero": (torch.zeros_like, ValueError, "`cell`.*singular"),
    "nan": (lambda cell: cell * NAN, ValueError, "`cell`.*finite"),
}


@KINDS
@pytest.mark.parametrize("case", BAD_MOLECULES)
def test_bad_molecules(lab, kind, case):
    name, change, error, message = BAD_MOLECULES[case]
    arguments = dict(zip(("z", "pos"), lab.molecule(), strict=True))
    arguments[name] = change(arguments[name]) if callable(change) else change
    z = arguments.pop("z")
    with pytest.raises(error, match=message):
        lab.make(kind, num_layers=1)(z, **arguments)


@KINDS
@pytest.mark.parametrize("case", BAD_EDGES)
def test_bad_edges(lab, kind, case):
    changes, error, message = BAD_EDGES[case]
    z, pos = lab.molecule()
    arguments = {"pos": pos, "edge_index": PAIR} | changes
    with pytest.raises(error, match=message):
        lab.make(kind, num_layers=1)(z, **arguments)


def test_coincident_atoms_of_given_edges(lab):
    """Periodic images too, whose distance is rarely zero to the last bit."""
    model = lab.make("potential", num_layers=1)
    z, pos, cell = lab.crystal()
    pos = torch.cat([pos, pos[:1] + cell[0] + 1e-9])
    z = torch.cat([z, z[:1]])
    with pytest.raises(ValueError, match=r"`pos`.*coincident.*0 and 3"):
        model(z, pos, edge_index=torch.tensor([[0], [3]]), edge_shift=cell[:1], cell=cell)


@KINDS
@pytest.mark.parametrize("case", BAD_CELLS)
def test_bad_cells(lab, kind, case):
    change, error, message = BAD_CELLS[case]
    z, pos, cell = lab.crystal()
    with pytest.raises(error, match=message):
        lab.make(kind, num_layers=1)(z, pos, cell=change(cell))


@pytest.mark.parametrize("change", [flat, torch.zeros_like, lambda cell: cell * NAN])
def test_stress_needs_a_volume(lab, change):
    """Also where edges are given, and the cell serves for its volume alone."""
    model = lab.make("potential", num_layers=1, stress=True)
    z, pos, cell = lab.crystal()
    with pytest.raises(ValueError, match="`cell`"):
        model(z, pos, edge_index=PAIR, edge_shift=torch.zeros(2, 3), cell=change(cell))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"cutoff": -1.0}, "cutoff"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": NAN}, "cutoff"),
        ({"cutoff": INF}, "cutoff"),
        ({"heads": 3}, "heads"),
        ({"heads": 0}, "heads"),
        ({"hidden_channels": 0}, "hidden_channels"),
        ({"qk_channels": 0}, "qk_channels"),
        ({"ffn_channels": 0}, "ffn_channels"),
        ({"num_layers": -1}, "num_layers"),
        ({"lmax": -1}, "lmax"),
        ({"lmax": 9}, "lmax"),
        ({"lmax_out": -1}, "lmax_out"),
        ({"lmax": 1, "lmax_out": 2}, "lmax_out"),
        ({"order": 9}, "order"),
        ({"order": ()}, "order"),
        ({"num_radial": 3}, "num_radial"),
        ({"avg_num_neighbors": 0.0}, "avg_num_neighbors"),
        ({"dropout": 1.0}, "dropout"),
        ({"parity": "even"}, "parity"),
        ({"elements": []}, "elements"),
        ({"elements": [1, 119]}, "elements"),
        ({"backend": "cuda"}, "backend"),
        ({"algorithm": "fast"}, "algorithm"),
        ({"forces": "indirect"}, "forces"),
        ({"forces": "direct", "lmax": 0}, "forces"),
    ],
)
def test_bad_settings(lab, settings, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        lab.make("potential", **settings)


@KINDS
def test_elements_that_the_model_does_not_know(lab, kind):
    model = lab.make(kind, elements=[1, 6, 8], num_layers=1)
    z, pos = lab.molecule(5)
    model(z, pos)
    z[2] = 7
    with pytest.raises(ValueError, match=r"`elements`.*\[1, 6, 8\]"):
        model(z, pos)


@pytest.mark.parametrize("kind", ["potential", "property"])
@pytest.mark.parametrize("collated", [False, True])
def test_bonds_are_refused(lab, kind, collated):
    """PyG's QM9 keeps bonds in `edge_index`."""
    z, pos = lab.molecule()
    data = Data(z=z, pos=pos, edge_index=PAIR, edge_attr=torch.ones(2, 4))
    data = Batch.from_data_list([data, data]) if collated else data
    with pytest.raises(ValueError, match=r"edge_index.*RadiusGraph.*bonds"):
        lab.make(kind)(data)


@pytest.mark.parametrize("kind", ["potential", "property"])
def test_edge_cutoff_too_small(lab, kind):
    data = RadiusGraph(3.4)(lab.as_data(*lab.molecule()))
    with pytest.raises(ValueError, match=r"edge_cutoff.*3\.5.*3\.4"):
        lab.make(kind)(data)


@pytest.mark.parametrize("kind", ["potential", "property"])
def test_bad_data(lab, kind):
    model = lab.make(kind)
    z, pos = lab.molecule()
    with pytest.raises(ValueError, match=r"`data` must hold `z`.*pos"):
        model(Data(pos=pos))
    with pytest.raises(ValueError, match=r"`data` must hold `pos`.*z"):
        model(Data(z=z))
    with pytest.raises(TypeError, match=r"`data`.*dict"):
        model({"z": z, "pos": pos})
    with pytest.raises(ValueError, match="`pos`"):
        model(z)
    with pytest.raises(ValueError, match=r"`pos`.*`data`"):
        model(lab.as_data(z, pos), pos)
    with pytest.raises(ValueError, match=r"`cell`.*`data`"):
        model(lab.as_data(z, pos), cell=torch.eye(3))


@pytest.mark.parametrize("kind", ["potential", "property"])
def test_ways_to_call(lab, kind):
    """``forward(data)`` or ``forward(z, pos, ...)``, also by keyword."""
    model = lab.make(kind, num_layers=1)
    z, pos = lab.molecule()

    def value(*args, **kwargs):
        out = model(*args, **kwargs)
        return out.energy if kind == "potential" else out

    expected = value(z, pos)
    data = lab.as_data(z, pos)
    for found in (value(z=z, pos=pos), value(z, pos=pos), value(data), value(data=data)):
        assert torch.equal(found, expected)
    for arguments in ({"pos": pos}, {"data": data, "z": z}, {"data": z, "z": z, "pos": pos}):
        with pytest.raises(ValueError, match="`data` or `z`"):
            model(**arguments)
    with pytest.raises(TypeError, match=r"`z`.*list"):
        model(z=z.tolist(), pos=pos)


@KINDS
def test_periodic_edges_need_shifts(lab, kind):
    model = lab.make(kind, num_layers=1)
    z, pos, cell = lab.crystal()
    edges = {"edge_index": PAIR, "cell": cell}
    for pbc in (None, torch.tensor([True, False, False])):
        with pytest.raises(ValueError, match=r"`edge_shift`.*`cell`"):
            model(z, pos, pbc=pbc, **edges)
        model(z, pos, pbc=pbc, edge_shift=torch.zeros(2, 3), **edges)
    model(z, pos, pbc=torch.zeros(3, dtype=torch.bool), **edges)


@KINDS
def test_int32_atomic_numbers(lab, kind):
    z, pos = lab.molecule()
    for elements in (None, [1, 6, 7, 8]):
        model = lab.make(kind, num_layers=1, elements=elements)
        found, expected = model(z.int(), pos), model(z, pos)
        if kind == "potential":
            found, expected = found.energy, expected.energy
        assert torch.equal(found, expected)


@pytest.fixture(scope="module")
def small_model(lab):
    return lab.make("potential", num_layers=1, stress=True)


@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_atoms=st.integers(0, 5),
    rows=st.integers(0, 6),
    columns=st.integers(1, 4),
    low=st.integers(-2, 1),
    high=st.integers(2, 130),
    spread=st.sampled_from([0.0, 1e-9, 1.0, 1e6, INF, NAN]),
    with_edges=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_input_works_or_is_explained(
    small_model, num_atoms, rows, columns, low, high, spread, with_edges, seed
):
    """Either finite results of the right shapes, or an error that names an argument."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(low, high, (num_atoms,), generator=generator)
    pos = spread * torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    edges = torch.randint(low, 6, (2, 7), generator=generator) if with_edges else None
    try:
        out = small_model(z, pos, edge_index=edges)
    except (ValueError, TypeError, IndexError) as error:
        assert str(error).startswith("`")
    else:
        assert num_atoms == rows and columns == 3 and int(z.sum()) >= 0
        assert out.energy.shape == (1,) and out.forces.shape == (rows, 3)
        assert all(value.isfinite().all() for value in out)


def test_edges_between_graphs_are_refused(lab):
    """As in batches made by hand, where the second graph's atoms were not counted on."""
    z, pos = lab.molecule(4)
    batch = torch.tensor([0, 0, 1, 1])
    edges = torch.tensor([[1, 0, 3, 2], [0, 1, 2, 1]])
    for kind in ("potential", "property"):
        with pytest.raises(ValueError, match=r"`edge_index`.* edge \[2, 1\] of graphs \[1, 0\]"):
            lab.make(kind)(z, pos, batch, edge_index=edges)


def test_a_backbone_is_a_module():
    with pytest.raises(TypeError, match="`backbone` must be a Module, got int"):
        E2FormerPotential(64)


def test_shifts_may_be_more_exact_than_positions(lab):
    """Neighbour lists of others give them in float64."""
    model = lab.make("potential", stress=True).float()
    z, pos = lab.molecule(6, dtype=torch.float32)
    cell = 9.0 * torch.eye(3)
    edge_index, shift = radius_graph(pos, model.cutoff, cell=cell)
    expected = model(z, pos, edge_index=edge_index, edge_shift=shift, cell=cell)
    out = model(z, pos, edge_index=edge_index, edge_shift=shift.double(), cell=cell.double())
    for found, other in zip(out, expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5, check_dtype=False)
