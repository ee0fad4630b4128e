"""Captured training steps give what autograd gives, whatever the sizes of a batch."""

import weakref

import pytest
import torch
from torch_geometric.data import Batch, Data

from e2former_pyg import E2FormerPotential, capture
from e2former_pyg.transforms import RadiusGraph

CUTOFF = 4.0
ELEMENTS = [1, 6, 8]


def make_model(**options):
    torch.manual_seed(0)
    options = {"hidden_channels": 8, "num_layers": 1, "lmax": 1, "heads": 2} | options
    return E2FormerPotential(cutoff=CUTOFF, elements=ELEMENTS, **options)


def make_frame(size, periodic=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(shape, generator=generator)

    data = Data(
        z=torch.tensor(ELEMENTS)[(3 * random(size)).long()],
        pos=3 * random(size, 3) + 0.8 * torch.arange(size).unsqueeze(1),
        energy=random(1).double(),
        forces=random(size, 3),
    )
    if periodic:
        data.cell = (5 + size) * torch.eye(3).unsqueeze(0) + random(1, 3, 3)
        data.pbc = torch.ones(1, 3, dtype=torch.bool)
        data.stress = random(1, 3, 3)
    return RadiusGraph(CUTOFF)(data)


def make_batch(*sizes, periodic=False, **extra):
    frames = [make_frame(size, periodic, seed) for seed, size in enumerate(sizes)]
    for frame in frames:
        for name, value in extra.items():
            frame[name] = torch.tensor([value])
    return Batch.from_data_list(frames)


def loss(out, labels):
    forces = ((out.forces - labels.forces).square().sum(-1) + 1e-10).sqrt()
    energy = ((out.energy - labels.energy) / labels.num_atoms).abs().float()
    value = labels.atom_weight @ forces + labels.graph_weight @ energy
    if out.stress is not None:
        value = value + labels.graph_weight @ (out.stress - labels.stress).abs().mean((1, 2))
    return value


def eager(model, data):
    """The loss and the gradients of autograd."""
    labels = data.clone()
    labels.num_atoms = data.ptr.diff()
    labels.graph_weight = torch.full((data.num_graphs,), 1 / data.num_graphs).to(data.pos)
    labels.atom_weight = torch.full((data.num_nodes,), 1 / data.num_nodes).to(data.pos)
    value = loss(model(data), labels)
    parameters = list(model.parameters())
    return value.detach(), torch.autograd.grad(value, parameters, materialize_grads=True)


def check(model, data, value, gradients, rtol):
    expected, expected_gradients = eager(model, data)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=0)
    size = max(float(gradient.abs().max()) for gradient in expected_gradients)
    for found, gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=0, atol=rtol * size)


@pytest.mark.parametrize("periodic", [False, True])
def test_padding_changes_nothing(replayed, periodic):
    """Batches of other sizes, some with fewer graphs, in the memory of the first."""
    model = make_model(stress=periodic, repulsion=periodic).train()
    gradients = capture.CapturedGradients(model, loss, spare=0.5)
    for sizes in ((5, 1, 4), (3, 2, 4, 1), (6,), (5, 1, 4)):
        data = make_batch(*sizes, periodic=periodic)
        value = gradients(data)
        check(model, data, value, [p.grad for p in model.parameters()], 1e-5)
    assert len(replayed) == 1


def test_charges_and_spins(replayed):
    model = make_model(charge=True, spin=True).train()
    gradients = capture.CapturedGradients(model, loss, spare=0.5)
    for sizes in ((2, 3, 1), (4,)):
        data = make_batch(*sizes, charge=-1, spin=2)
        value = gradients(data)
        check(model, data, value, [p.grad for p in model.parameters()], 1e-5)
    assert len(replayed) == 1


def test_what_has_room(replayed):
    gradients = capture.CapturedGradients(make_model().train(), loss, spare=0.0)

    def captures(data):
        """Whether a batch is captured anew."""
        before = len(replayed)
        gradients(data)
        return len(replayed) > before

    assert captures(make_batch(5, 4))
    assert not captures(make_batch(5, 4))
    assert not captures(make_batch(3, 2))
    assert not captures(make_batch(8))
    assert captures(make_batch(5, 6))
    assert captures(make_batch(2, 2, 1))
    # There is room for the largest number of each.
    assert not captures(make_batch(5, 6))
    assert not captures(make_batch(4, 4, 3))
    assert captures(make_batch(2, 2, periodic=True))


def test_a_graph_that_is_replaced_goes_at_once(replayed):
    """Before the next one is captured, whose memory is beside its own otherwise."""
    gradients = capture.CapturedGradients(make_model().train(), loss)
    gradients(make_batch(2, 2))
    first = weakref.ref(gradients._captured)
    gradients(make_batch(9, 9))
    assert first() is None


def test_numbers_are_read_at_each_call(replayed):
    model = make_model().train()
    gradients = capture.CapturedGradients(
        model, lambda out, labels: labels.factor * loss(out, labels) + labels.offset.float()
    )
    data = make_batch(5, 4)
    value, expected = eager(model, data)
    size = max(float(gradient.abs().max()) for gradient in expected)
    for factor, offset in ((1.0, 0.0), (3.0, 1.0), (0.5, 2.0)):
        found = gradients(data, factor=factor, offset=offset)
        torch.testing.assert_close(found.float(), factor * value + offset, rtol=1e-5, atol=0)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, factor * gradient, rtol=0, atol=1e-5 * size)
    assert len(replayed) == 1
    with pytest.raises(ValueError, match="`energy` is the name of a label"):
        gradients(data, energy=1.0)


def test_errors():
    with pytest.raises(ValueError, match=r"`model` must be made with `elements`.*None"):
        capture.CapturedGradients(E2FormerPotential(hidden_channels=8, heads=2), loss)
    with pytest.raises(ValueError, match=r"`model` must have no dropout.*0.1"):
        capture.CapturedGradients(make_model(dropout=0.1), loss)
    with pytest.raises(ValueError, match=r"`spare` must not be negative, got -1"):
        capture.CapturedGradients(make_model(), loss, spare=-1)
    with pytest.raises(ValueError, match=r"`data` must be on a GPU.*cpu"):
        capture.CapturedGradients(make_model(), loss)(make_batch(2, 3))


def test_eval_mode_is_refused(monkeypatch):
    gradients = capture.CapturedGradients(make_model().eval(), loss)
    monkeypatch.setattr(gradients, "takes", lambda data: True)
    with pytest.raises(ValueError, match=r"`model` must be in training mode .* got eval mode"):
        gradients(make_batch(2, 3))


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{"backend": "torch"}, {"algorithm": "factorized"}])
def test_other_backends_are_refused(options):
    """They would go on with the edges that they were captured with."""
    gradients = capture.CapturedGradients(make_model(**options).cuda().train(), loss)
    data = make_batch(2, 3).cuda()
    assert not gradients.takes(data)
    with pytest.raises(ValueError, match="`data` must be on a GPU where the kernels serve"):
        gradients(data)


@pytest.mark.cuda
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
def test_batches_of_other_molecules(periodic, checkpointing):
    model = make_model(stress=periodic, repulsion=periodic).cuda().train()
    model.backbone.activation_checkpointing = checkpointing
    gradients = capture.CapturedGradients(model, loss)
    for sizes in ((5, 3, 7), (2, 1, 4), (9, 9, 9), (8, 9, 8), (3, 4)):
        data = make_batch(*sizes, periodic=periodic).cuda()
        value = gradients(data)
        check(model, data, value, [p.grad for p in model.parameters()], 1e-4)
        with torch.no_grad():  # as optimizers do
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
