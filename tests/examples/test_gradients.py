"""Traced gradients are the eager ones, and are chosen only where they hold."""

import pytest
import torch
from gradients import EagerGradients, TracedGradients, choose_gradients
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from training import Settings, train

from e2former_pyg import E2FormerPotential
from e2former_pyg.transforms import RadiusGraph


def make_frames(number: int, spread: float = 0.1) -> list[Data]:
    """Distorted copies of one molecule."""
    generator = torch.Generator().manual_seed(0)
    pos = torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [0, 1.2, 0.3], [-0.8, 0.4, 0.9]])
    frames = []
    for _ in range(number):
        moved = pos + spread * torch.randn(4, 3, generator=generator)
        energy = torch.randn(1, generator=generator, dtype=torch.float64)
        forces = torch.randn(4, 3, generator=generator)
        data = Data(z=torch.tensor([6, 1, 8, 1]), pos=moved, energy=energy, forces=forces)
        frames.append(RadiusGraph(5.0)(data))
    return frames


def make_model(elements: list[int] | None) -> E2FormerPotential:
    torch.manual_seed(0)
    settings = {"hidden_channels": 8, "num_layers": 1, "heads": 2, "lmax": 1}
    return E2FormerPotential(**settings, elements=elements).train()


def test_traced_gradients_are_the_eager_ones() -> None:
    frames = make_frames(8)
    model = make_model([1, 6, 8])
    eager, traced = EagerGradients(model, 0.1), choose_gradients(model, frames, 0.1)
    assert isinstance(traced, TracedGradients)
    for data in DataLoader(frames, batch_size=4):
        loss = eager(data)
        expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        assert float(traced(data)) == pytest.approx(float(loss), rel=1e-6)
        for parameter, want in zip(model.parameters(), expected, strict=True):
            want = torch.zeros_like(parameter) if want is None else want
            torch.testing.assert_close(parameter.grad, want, rtol=1e-4, atol=1e-5)


def test_gradients_share_no_memory() -> None:
    frames = make_frames(4)
    model = make_model([1, 6, 8])
    data = Batch.from_data_list(frames)
    traced = TracedGradients(model, 0.1)
    traced(data)
    first = [p.grad for p in model.parameters()]
    assert len({grad.untyped_storage().data_ptr() for grad in first}) == len(first)
    expected = [grad.clone() for grad in first]
    for grad in first:
        grad.fill_(7.0)  # as clipping does, which must not reach the next step
    traced(data)
    for parameter, want in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, want)


def test_eager_gradients_where_graphs_or_shapes_vary() -> None:
    frames, fixed = make_frames(4), [1, 6, 8]
    apart = make_frames(4, spread=3.0)
    assert len({data.num_edges for data in apart}) > 1
    swapped = [frames[0], frames[1].clone()]
    swapped[1].z = frames[1].z.flip(0)
    without = Data(z=frames[0].z, pos=frames[0].pos)
    cases = [(fixed, apart), (fixed, swapped), (fixed, [*frames, without]), (None, frames)]
    for elements, given in cases:
        assert isinstance(choose_gradients(make_model(elements), given, 0.1), EagerGradients)
    linear = torch.nn.Linear(2, 2)
    assert isinstance(choose_gradients(linear, frames, 0.1), EagerGradients)


def test_bonds_are_refused_when_traced() -> None:
    data = Batch.from_data_list(make_frames(2))
    del data.edge_cutoff
    with pytest.raises(ValueError, match="edge_cutoff"):
        TracedGradients(make_model([1, 6, 8]), 0.1)(data)


def test_training_goes_through_the_traced_route(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    call = TracedGradients.__call__
    monkeypatch.setattr(
        TracedGradients, "__call__", lambda self, data: seen.append(1) or call(self, data)
    )
    model = make_model([1, 6, 8])
    before = [p.detach().clone() for p in model.parameters()]
    _, state = train(model, make_frames(4), Settings(minutes=0.05, batch_size=2))
    assert len(seen) == state["step"] > 0
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
