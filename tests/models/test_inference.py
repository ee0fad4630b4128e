"""The fast path of potentials gives what potentials give."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch

from e2former_pyg import E2FormerAttention
from e2former_pyg.graph import CSRNeighborhood, radius_graph
from e2former_pyg.graph.padded import PaddedNeighborhood
from e2former_pyg.models import inference
from e2former_pyg.models.graphs import GraphInput, sorted_edges
from e2former_pyg.models.inference import without_long_edges

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
devices = pytest.mark.parametrize("device", DEVICES)


def differences(found, expected):
    """Largest deviations, in eV, eV/Å and eV/Å³."""
    assert (found.forces is None, found.stress is None) == (
        expected.forces is None,
        expected.stress is None,
    )
    pairs = zip(found, expected, strict=True)
    both = [(one, other) for one, other in pairs if other is not None]
    assert all(one.shape == other.shape and one.dtype == other.dtype for one, other in both)
    assert not any(one.requires_grad for one, _ in both)
    return [float((one - other).detach().abs().max()) for one, other in both if other.numel() > 0]


def systems(lab, device, dtype):
    """Molecules that differ in size, elements and edges, one of them a lone atom."""
    for atoms in (8, 1, 6, 10):
        z, pos = lab.molecule(atoms, dtype=dtype)
        yield z.to(device), pos.to(device)
    yield z.flip(0).to(device), (0.8 * pos).to(device)  # same number, more edges
    yield torch.full_like(z, 16).to(device), (0.5 * pos).to(device)  # a new element, still more


@devices
@pytest.mark.parametrize("forces", ["conservative", "direct", None])
@pytest.mark.parametrize("elements", [None, [1, 6, 7, 8, 16]], ids=["any", "given"])
def test_systems_one_after_the_other(lab, device, forces, elements):
    model = lab.make("potential", forces=forces, elements=elements).to(device)
    fast = model.compile_for_inference(spare_edges=0.0)
    first = []
    for z, pos in systems(lab, device, torch.float64):
        for _ in range(3):
            out = fast(z, pos)
            assert max(differences(out, model(z, pos))) < 1e-12
            first.append((out, tuple(None if value is None else value.clone() for value in out)))
            pos = 1.01 * pos
    # Later calls leave earlier results alone.
    for out, copy in first:
        assert all(one is None or torch.equal(one, two) for one, two in zip(out, copy, strict=True))


@devices
@pytest.mark.parametrize("elements", [None, [1, 6, 7, 8, 16]], ids=["any", "given"])
def test_radial_functions_of_all_elements_alike(lab, device, elements):
    model = lab.make("potential", pair_radial=False, elements=elements).to(device)
    fast = model.compile_for_inference()
    for z, pos in systems(lab, device, torch.float64):
        for _ in range(3):
            assert max(differences(fast(z, pos), model(z, pos))) < 1e-12


@devices
def test_activation_checkpointing(lab, device):
    model = lab.make("potential", stress=True, num_layers=2).to(device).eval()
    z, pos, cell = (tensor.to(device) for tensor in lab.crystal())
    expected = model(z, pos, cell=cell)
    runs = []
    for block in model.backbone.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    for checkpointing, count in ((False, 2), (True, 4)):
        model.backbone.activation_checkpointing = checkpointing
        runs.clear()
        with torch.no_grad():
            assert max(differences(model(z, pos, cell=cell), expected)) < 1e-12
        assert len(runs) == count
    fast = model.compile_for_inference()
    for scale in (1.0, 0.95, 1.1):  # the last of them from a graph
        out = fast(z, scale * pos, cell=scale * cell)
        assert max(differences(out, model(z, scale * pos, cell=scale * cell))) < 1e-12


@pytest.mark.cuda
def test_activation_checkpointing_takes_less_memory(lab):
    model = lab.make("potential", dtype=torch.float32, hidden_channels=64, num_layers=4).cuda()
    pos = 35 * torch.rand(4096, 3, generator=torch.Generator().manual_seed(0)).cuda()
    z = torch.full((4096,), 6, device="cuda")
    peaks = []
    for checkpointing in (False, True):
        model.backbone.activation_checkpointing = checkpointing
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.no_grad():
                model(z, pos)
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[3] < 0.75 * peaks[1]


@devices
def test_batches(lab, device):
    model = lab.make("potential").to(device)
    fast = model.compile_for_inference()
    data = [lab.as_data(*lab.molecule(atoms)) for atoms in (3, 1, 7)]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        batch = Batch.from_data_list([data[n] for n in order]).to(device)
        assert max(differences(fast(batch), model(batch))) < 1e-12


@devices
def test_stress(lab, device):
    model = lab.make("potential", stress=True).to(device)
    fast = model.compile_for_inference()
    z, pos, cell = (tensor.to(device) for tensor in lab.crystal())
    for scale in (1.0, 0.95, 1.1):
        out, expected = (
            fast(z, scale * pos, cell=scale * cell),
            model(z, scale * pos, cell=scale * cell),
        )
        assert max(differences(out, expected)) < 1e-12
        assert expected.stress.abs().max() > 1e-3


@devices
def test_edges_that_stay_while_atoms_move(lab, device):
    model = lab.make("potential").to(device)
    fast = model.compile_for_inference()
    z, pos, cell = (tensor.to(device) for tensor in lab.crystal())
    edge_index, edge_shift = radius_graph(pos, model.cutoff + 1.0, cell=cell)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        expected = model(z, pos, cell=cell)
        out = fast(z, pos, cell=cell, edge_index=edge_index, edge_shift=edge_shift)
        assert max(differences(out, expected)) < 1e-12
        pos = pos + 0.1 * torch.rand(3, 3, dtype=torch.float64, generator=generator).to(device)
    # The same tensors with other content.
    edge_index.copy_(edge_index.flip(1))
    edge_shift.copy_(edge_shift.flip(0))
    z.copy_(z.flip(0))
    out = fast(z, pos, cell=cell, edge_index=edge_index, edge_shift=edge_shift)
    assert max(differences(out, model(z, pos, cell=cell))) < 1e-12


@devices
def test_unsorted_edges_and_charges(lab, device):
    model = lab.make("potential", charge=True, spin=True).to(device)
    fast = model.compile_for_inference()
    z, pos = (tensor.to(device) for tensor in lab.molecule())
    edge_index, _ = radius_graph(pos, model.cutoff)
    perm = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(1))
    edge_index = edge_index[:, perm.to(device)]
    energies = set()
    for charge, spin in ((0, 1), (1, 2), (-2, 1)):
        system = {
            "charge": torch.tensor([charge], device=device),
            "spin": torch.tensor([spin], device=device),
        }
        out = fast(z, pos, edge_index=edge_index, **system)
        assert max(differences(out, model(z, pos, **system))) < 1e-12
        energies.add(float(out.energy))
    assert len(energies) == 3


@devices
def test_inference_mode(lab, device):
    model = lab.make("potential").to(device)
    fast = model.compile_for_inference()
    with torch.inference_mode():
        z, pos = (tensor.to(device) for tensor in lab.molecule())
        for _ in range(3):
            assert max(differences(fast(z, pos), model(z, pos))) < 1e-12
            pos.mul_(0.9)


@devices
def test_edges_are_checked_again_for_another_system(lab, device):
    fast = lab.make("potential").to(device).compile_for_inference()
    z, pos, cell = (tensor.to(device) for tensor in lab.crystal())
    edge_index, _ = radius_graph(pos, 3.5)
    for _ in range(2):
        fast(z, pos, edge_index=edge_index)
    with pytest.raises(ValueError, match="`edge_shift` must be given"):
        fast(z, pos, edge_index=edge_index, cell=cell)
    if device == "cpu":
        with pytest.raises(IndexError, match="`edge_index` holds"):
            fast(z[:1], pos[:1], edge_index=edge_index)


def test_weights_are_those_of_the_time(lab):
    model = lab.make("potential")
    fast = model.compile_for_inference()
    z, pos = lab.molecule()
    before = model(z, pos)
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert max(differences(fast(z, pos), model.eval()(z, pos))) > 1e-3
    out = fast(z, pos)
    assert float((out.energy - before.energy).abs()) < 1e-12


@devices
def test_errors_are_those_of_potentials(lab, device):
    fast = lab.make("potential", elements=[1, 6, 7, 8]).to(device).compile_for_inference()
    z, pos = (tensor.to(device) for tensor in lab.molecule())
    with pytest.raises(ValueError, match="`pos` must have shape"):
        fast(z, pos[:-1])
    with pytest.raises(ValueError, match="coincident"):
        fast(z, torch.zeros_like(pos))
    with pytest.raises(ValueError, match="finite"):
        fast(z, pos / 0)
    with pytest.raises(ValueError, match="`z` holds atomic number 16"):
        fast(torch.full_like(z, 16), pos)
    with pytest.raises(ValueError, match="`spare_edges`"):
        fast.potential.compile_for_inference(spare_edges=-1.0)
    # And a good call still works.
    assert fast(z, pos).energy.isfinite().all()


def test_padded_edges_are_no_edges(lab):
    """What a CUDA graph reads, seen by interpreted kernels."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    layer = E2FormerAttention(4, 4, 1, heads=2, cutoff=3.5, backend="triton").double()
    z, pos = lab.molecule(4)
    x = torch.randn(4, 4, 4, dtype=torch.float64)
    padded = PaddedNeighborhood(4, 20, pos.dtype, pos.device)
    for scale in (1.6, 1.0, 1.6):
        place = (scale * pos).requires_grad_()
        edge_index, shift = radius_graph(place.detach(), 3.5, cell=8.0 * torch.eye(3).double())
        assert 0 < edge_index.size(1) < 20
        padded.update(CSRNeighborhood.from_edge_index(edge_index, 4), shift, pos)
        out = layer(x, place, padded.edge_index, z, padded.edge_shift)
        expected = layer(x, place, edge_index, z, shift)
        # Whoever looks at the edges themselves finds the same within the cutoff.
        source, target = padded.edge_index.as_tensor()
        vectors = place[target] - place[source] - padded.edge_shift
        count = int((vectors.norm(dim=1) < 3.5).sum())
        assert count == edge_index.size(1)
        assert torch.equal(torch.stack([source, target])[:, :count], edge_index)
        grads = (torch.autograd.grad(y.square().sum(), place)[0] for y in (out, expected))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_edges_within_the_cutoff_are_taken_anew(lab):
    """What a CUDA graph does with the edges of a Verlet list."""
    z, pos, cell = lab.crystal()
    edge_index, shift = radius_graph(pos, 5.0, cell=cell)
    perm = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(0))
    edge_index, shift = edge_index[:, perm], shift[perm]
    given, taken = (PaddedNeighborhood(len(z), 300, pos.dtype, pos.device) for _ in range(2))
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, len(z))
    given.update(neighborhood, shift[neighborhood.perm], pos)
    counts = set()
    for scale in (1.0, 1.2, 0.9, 5.0, 1.0):
        # As in `radius_graph`, offsets stay while atoms move.
        place = scale * pos
        taken.take_within(given, place, 3.5)
        vectors = place[edge_index[1]] - place[edge_index[0]] - shift
        short = (vectors.norm(dim=1) < 3.5).nonzero().squeeze(1)
        counts.add(len(short))
        expected = CSRNeighborhood.from_edge_index(edge_index[:, short], len(z))
        found = CSRNeighborhood.from_edge_index(taken.edge_index, (len(z), len(z)))
        for one, other in ((found, expected), (found.transpose(), expected.transpose())):
            assert torch.equal(one.rowptr, other.rowptr)
            assert torch.equal(one.col[: len(short)], other.col)
        transposed, count = found.transpose(), len(short)
        assert torch.equal(transposed.perm[:count], expected.transpose().perm)
        assert torch.equal(found.order(pos), neighborhood.order(pos))
        pairs = taken.edge_index.as_tensor()
        assert torch.equal(pairs[:, :count], edge_index[:, short][:, expected.perm])
        assert torch.equal(taken.edge_shift[:count], shift[short][expected.perm])
        assert not taken.is_within(place, 3.5)[count:].any()
    assert min(counts) < 0.5 * max(counts) and max(counts) < edge_index.size(1)
    # Edges of an atom that is nowhere stay, so that the result tells of it.
    place = pos.clone()
    place[0] = torch.nan
    taken.take_within(given, place, 3.5)
    there = (taken.edge_index.as_tensor() == 0).any(0)[: int(taken.is_within(place, 3.5).sum())]
    assert int(there.sum()) == int((edge_index == 0).any(0).sum())


def test_long_edges_of_large_systems_are_left_out(lab):
    model = lab.make("potential")
    z, pos, cell = lab.crystal()
    edge_index, shift = radius_graph(pos, model.cutoff + 1.0, cell=cell)
    inputs = GraphInput(z, pos, None, edge_index, shift, cell)
    edges, shift = sorted_edges(inputs, model.cutoff, 1)
    inputs = inputs._replace(edge_index=edges, edge_shift=shift)
    fewer = without_long_edges(inputs, model.cutoff)
    assert fewer.edge_index.size(1) < 0.9 * edges.size(1)
    assert fewer.edge_index.is_sorted_by_col and len(fewer.edge_shift) == fewer.edge_index.size(1)
    expected = model(z, pos, cell=cell)
    out = model(z, pos, cell=cell, edge_index=fewer.edge_index, edge_shift=fewer.edge_shift)
    torch.testing.assert_close(out.forces, expected.forces, rtol=0, atol=1e-12)
    assert without_long_edges(fewer, model.cutoff) is fewer
    nowhere = inputs._replace(pos=torch.full_like(pos, torch.nan))
    assert without_long_edges(nowhere, model.cutoff) is nowhere
    nothing = edges.as_tensor()[:, :0]
    nothing = EdgeIndex(nothing, sparse_size=edges.sparse_size(), sort_order="col")
    empty = inputs._replace(edge_index=nothing, edge_shift=shift[:0])
    assert without_long_edges(empty, model.cutoff) is empty


@pytest.mark.cuda
@pytest.mark.parametrize("largest", [32768, 0], ids=["graph", "launched"])
def test_edges_beyond_the_cutoff_cost_nothing(lab, monkeypatch, largest):
    monkeypatch.setattr(inference, "MAX_CAPTURED_ATOMS", largest)
    model = lab.make("potential").cuda()
    fast = model.compile_for_inference()
    z, pos, cell = (tensor.cuda() for tensor in lab.crystal())
    edge_index, edge_shift = radius_graph(pos, model.cutoff + 2.0, cell=cell)
    generator = torch.Generator(device="cuda").manual_seed(0)
    for _ in range(5):
        expected = model(z, pos, cell=cell)
        out = fast(z, pos, cell=cell, edge_index=edge_index, edge_shift=edge_shift)
        assert max(differences(out, expected)) < 1e-12
        pos = pos + 0.2 * torch.rand(3, 3, dtype=torch.float64, generator=generator, device="cuda")
    pos[0] = torch.nan
    out = fast(z, pos, cell=cell, edge_index=edge_index, edge_shift=edge_shift)
    assert out.energy.isnan().all()


@pytest.mark.cuda
def test_a_graph_is_captured_once(lab):
    model = lab.make("potential").cuda()
    fast = model.compile_for_inference(spare_edges=1.0)
    z, pos = (tensor.cuda() for tensor in lab.molecule())
    graphs = []
    for scale in (1.0, 1.0, 0.9, 1.2, 0.5):
        out = fast(z, scale * pos)
        assert max(differences(out, model(z, scale * pos))) < 1e-12
        graphs += fast._captured.values()
    assert graphs[0] is None and graphs[1] is graphs[2] is graphs[3]
    assert graphs[4].capacity > graphs[3].capacity or graphs[4] is graphs[3]


@pytest.mark.cuda
@pytest.mark.parametrize(
    "settings", [{"algorithm": "factorized"}, {"backend": "torch"}, {"lmax": 7}], ids=str
)
def test_what_waits_for_the_device_is_not_captured(lab, settings):
    model = lab.make("potential", num_layers=1, **settings).cuda()
    fast = model.compile_for_inference()
    z, pos = (tensor.cuda() for tensor in lab.molecule())
    for scale in (1.0, 1.1, 0.9):
        assert max(differences(fast(z, scale * pos), model(z, scale * pos))) < 1e-12
    assert not fast._captured


@pytest.mark.cuda
def test_graphs_in_autocast_regions_are_their_own(lab):
    model = lab.make("potential").float().cuda()
    fast = model.compile_for_inference()
    z, pos = (tensor.cuda() for tensor in lab.molecule(dtype=torch.float32))
    forces = {}
    for half in (False, False, True, True, False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            out, expected = fast(z, pos), model(z, pos)
        assert max(differences(out, expected)) < 1e-5
        forces[half] = out.forces
    assert len(fast._captured) == 2
    assert float((forces[True] - forces[False]).abs().max()) > 1e-4


@pytest.mark.cuda
def test_few_graphs_are_kept(lab):
    fast = lab.make("potential").cuda().compile_for_inference()
    for atoms in range(1, 11):
        z, pos = (tensor.cuda() for tensor in lab.molecule(atoms))
        fast(torch.full_like(z, 6), pos)
    assert len(fast._captured) == 8


@devices
def test_copies(lab, device):
    model = lab.make("potential").to(device)
    fast = model.compile_for_inference()
    z, pos = (tensor.to(device) for tensor in lab.molecule())
    for _ in range(2):  # on a GPU there is a graph now
        expected = fast(z, pos)
    for same in (deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        for _ in range(2):
            assert max(differences(same(z, pos), expected)) < 1e-12
