"""Traced gradients are those of autograd."""

import pytest
import torch
from small_runs import MODEL, last, make_trainer
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


def make(cls, **kwargs):
    torch.manual_seed(0)
    settings = {"lr": 1e-2, "warmup_steps": 2, "total_steps": 20}
    settings["energy_weight"] = {0: 1.0, 6: 10.0}
    # Tracing takes its time, which grows with the model.
    potential = E2FormerPotential(**(MODEL | {"num_layers": 0}), elements=[1, 6, 8])
    return cls(potential, **(settings | kwargs))


def fit(module, root, frames=None, **kwargs):
    data = GraphDataModule(frames or Molecule(), batch_size=3, val_size=1)
    losses = []
    module.log = lambda name, value, **_: name == "train/loss" and losses.append(float(value))
    path = last(root)
    trainer = make_trainer(root, limit_val_batches=0, **({"max_steps": 6} | kwargs))
    trainer.fit(module, data, ckpt_path=path if path.exists() else None)
    return losses


def test_a_run_is_that_of_autograd(tmp_path):
    """Eight graphs make batches of three and two, and the weights change from step to step."""
    modules = make(E2FormerModule), make(TracedE2FormerModule)
    losses = [fit(module, tmp_path / type(module).__name__) for module in modules]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 6
    assert len(modules[1]._traces) == 2
    for ours, theirs in zip(modules[1].parameters(), modules[0].parameters(), strict=True):
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
