"""Traced and captured gradients are those of autograd."""

import pytest
import torch
from small_runs import MODEL, Frames, last, make_trainer
from torch_geometric.data import Batch, Data

from e2former_pyg import E2FormerPotential
from e2former_pyg.training import E2FormerModule, GraphDataModule, TracedE2FormerModule
from e2former_pyg.training import traced_module as traced
from e2former_pyg.transforms import RadiusGraph

Z = torch.tensor([6, 8, 1, 1, 1, 1])


class Molecule(torch.utils.data.Dataset):
    """Frames of one molecule, with all pairs as edges unless their cutoff is short."""

    def __init__(self, count: int = 9, cutoff: float = 30.0) -> None:
        generator = torch.Generator().manual_seed(0)
        rest = 1.5 * torch.randn(6, 3, generator=generator)
        self.frames = []
        for _ in range(count):
            pos = rest + 0.3 * torch.randn(6, 3, generator=generator)
            labels = {
                "energy": torch.randn(1, generator=generator).double() - 100.0,
                "forces": torch.randn(6, 3, generator=generator),
            }
            self.frames.append(RadiusGraph(cutoff)(Data(z=Z, pos=pos, **labels)))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Data:
        return self.frames[index]


class Crystals(torch.utils.data.Dataset):
    """Cells of 2 to 5 atoms, with stresses, some of which bring their edges."""

    def __init__(self, count: int = 9, edges: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.randn(shape, generator=generator)

        self.frames = []
        for size in torch.randint(2, 6, (count,), generator=generator).tolist():
            frame = Data(
                z=Z[:size],
                pos=1.5 * torch.arange(size).unsqueeze(1) + 0.1 * random(size, 3),
                cell=(6 * torch.eye(3) + 0.2 * random(3, 3)).unsqueeze(0),
                pbc=torch.ones(1, 3, dtype=torch.bool),
                energy=random(1).double() - 50.0,
                forces=random(size, 3),
                stress=0.1 * random(1, 3, 3),
            )
            self.frames.append(RadiusGraph(4.0)(frame) if edges else frame)

    __len__, __getitem__ = Molecule.__len__, Molecule.__getitem__


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.cuda)])
def accelerator(request):
    """A GPU, or a CPU whose work can be captured."""
    if request.param == "cpu":
        request.getfixturevalue("replayed")
    return request.param


class Recorded(TracedE2FormerModule):
    """Remembers what it had traced and captured when training ended."""

    def on_train_end(self):
        self.last = self._graphs


def make(cls, model=None, **kwargs):
    torch.manual_seed(0)
    settings = {"lr": 1e-2, "warmup_steps": 2, "total_steps": 20}
    settings["energy_weight"] = {0: 1.0, 6: 10.0}
    # Tracing takes its time, which grows with the model.
    potential = E2FormerPotential(**(MODEL | {"num_layers": 0} | (model or {})), elements=[1, 6, 8])
    return cls(potential, **(settings | kwargs))


def fit(module, root, frames=None, bounds=None, **kwargs):
    data = GraphDataModule(frames or Molecule(), **(bounds or {"batch_size": 3}), val_size=1)
    losses = []
    module.log = lambda name, value, **_: name == "train/loss" and losses.append(float(value))
    module.norms = []  # of gradients, whose size Adam does not mind

    def add_norm(optimizer):
        gradients = [p.grad.flatten() for p in module.model.parameters() if p.grad is not None]
        module.norms.append(float(torch.cat(gradients).norm()))

    module.on_before_optimizer_step = add_norm
    path = last(root)
    trainer = make_trainer(root, limit_val_batches=0, **({"max_steps": 6, "devices": 1} | kwargs))
    trainer.fit(module, data, ckpt_path=path if path.exists() else None)
    return losses


def test_a_run_is_that_of_autograd(tmp_path):
    """Eight graphs make batches of three and two, and the weights change from step to step."""
    modules = make(E2FormerModule), make(Recorded)
    losses = [fit(module, tmp_path / type(module).__name__) for module in modules]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 6
    assert len(modules[1].last.traces) == 2
    check_weights(*modules)


def check_weights(expected, found):
    assert found.norms == pytest.approx(expected.norms, rel=1e-3)
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_added_up_gradients_and_a_restart(tmp_path):
    """Six graphs make two batches of three, which one step takes."""
    options = {"frames": Molecule(7), "accumulate_grad_batches": 2}
    expected = fit(make(E2FormerModule), tmp_path / "eager", **options)
    found = fit(make(TracedE2FormerModule), tmp_path / "traced", max_steps=4, **options)
    found += fit(make(TracedE2FormerModule), tmp_path / "traced", **options)
    assert found == pytest.approx(expected, rel=1e-4) and len(found) == 12


def test_other_edges_are_not_taken_for_the_same(tmp_path, monkeypatch):
    """Where edges change from frame to frame, all but a few batches go to autograd."""
    monkeypatch.setattr(traced, "MAX_TRACES", 1)
    frames = Molecule(cutoff=4.0)
    assert len({frame.num_edges for frame in frames}) > 3
    expected = fit(make(E2FormerModule), tmp_path / "eager", frames)
    with pytest.warns(UserWarning, match="more than 1 kinds of batches, whose gradients are not"):
        found = fit(make(TracedE2FormerModule), tmp_path / "traced", frames)
    assert found == pytest.approx(expected, rel=1e-4)


def test_batches_without_edges(tmp_path):
    frames = Molecule()
    for frame in frames:
        del frame.edge_index, frame.edge_cutoff
    with pytest.warns(UserWarning, match="batches have no edges, whose gradients are not traced"):
        fit(make(TracedE2FormerModule), tmp_path, frames, max_steps=1)


def test_charges_are_part_of_what_is_traced(tmp_path):
    """Frames of a molecule and of its ion."""
    frames = Molecule()
    for number, frame in enumerate(frames):
        frame.charge, frame.spin = torch.tensor([number % 2]), torch.tensor([1 + number % 2])
    options = {"frames": frames, "bounds": {"batch_size": 1}}
    modules = [make(cls, {"charge": True, "spin": True}) for cls in (E2FormerModule, Recorded)]
    losses = [fit(module, tmp_path / type(module).__name__, **options) for module in modules]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(modules[1].last.traces) == 2
    check_weights(*modules)


# Gradients are clipped to less than they are, and those of two batches are added up.
CAPTURED = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2, "max_steps": 5}
# Adam makes large steps of rounding errors where a gradient vanishes.
SLOW = {"lr": 1e-3}


def test_one_molecule_runs_as_a_cuda_graph(tmp_path, accelerator, request):
    modules = [make(cls, **SLOW) for cls in (E2FormerModule, Recorded)]
    losses = [
        fit(module, tmp_path / type(module).__name__, accelerator=accelerator, **CAPTURED)
        for module in modules
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) > 7
    check_weights(*modules)
    graphs = modules[1].last
    assert len(graphs.traces) == 2 and graphs.padded._captured is None
    if accelerator == "cpu":
        assert len(request.getfixturevalue("replayed")) == 2


def with_edges(count):
    frames = Frames(count)
    frames.frames = [RadiusGraph(4.0)(frame) for frame in frames]
    return frames


@pytest.mark.parametrize(
    "make_frames",
    [lambda: with_edges(12), lambda: Frames(12), Crystals, lambda: Crystals(edges=False)],
    ids=["molecules", "without edges", "crystals", "crystals without edges"],
)
def test_other_batches_run_as_one_cuda_graph(tmp_path, accelerator, recwarn, make_frames):
    """Batches of few or many graphs; none is left to autograd."""
    frames = make_frames()
    periodic = isinstance(frames, Crystals)
    options = {"stress_weight": {0: 0.0, 6: 3.0}, "stress_loss": "huber"} if periodic else {}
    classes = E2FormerModule, Recorded
    modules = [make(cls, {"stress": periodic}, **SLOW, **options) for cls in classes]
    options = {"frames": frames, "bounds": {"max_atoms": 14}, "accelerator": accelerator}
    losses = [
        fit(module, tmp_path / type(module).__name__, **options, **CAPTURED) for module in modules
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) > 7
    check_weights(*modules)
    graphs = modules[1].last
    assert not graphs.traces and graphs.padded._captured is not None
    assert not any("are not traced" in str(warning.message) for warning in recwarn)


def test_a_second_run_captures_anew(tmp_path, accelerator):
    """Parameters may have moved in between, and averages are copies of the module."""
    module = make(Recorded, **SLOW)
    options = {"accelerator": accelerator, "max_steps": 2}
    fit(module, tmp_path / "first", **options)
    assert module.last.traces and not module._graphs.traces
    expected = make(E2FormerModule, fit_references=False, **SLOW)
    expected.load_state_dict(module.state_dict())
    module.fit_references = False
    first = module._graphs
    found = fit(module, tmp_path / "second", **options)
    assert module.last is not first
    assert found == pytest.approx(fit(expected, tmp_path / "eager", **options), rel=1e-4)
    check_weights(expected, module)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="`model` must be made with `elements`"):
        TracedE2FormerModule(E2FormerPotential(**MODEL))
    with pytest.raises(ValueError, match=r"`model` must have no dropout to be traced, got 0.1"):
        TracedE2FormerModule(E2FormerPotential(**MODEL, elements=[1], dropout=0.1))
    with pytest.raises(ValueError, match="need full precision, the trainer has bf16-mixed"):
        fit(make(TracedE2FormerModule), tmp_path, precision="bf16-mixed")
    frames = Molecule()
    for frame in frames:
        del frame.forces
    module = make(TracedE2FormerModule, fit_references=False)
    module.trainer = make_trainer(None)
    with pytest.raises(ValueError, match="`forces_weight` is not zero, but the batch has no"):
        module.training_step(Batch.from_data_list(frames.frames[:3]), 0)
