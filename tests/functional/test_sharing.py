"""The layers of a model share the geometry of edges within one forward pass, and only there."""

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from e2former_pyg import E2FormerPotential
from e2former_pyg.functional import chunks, torch_backend


@pytest.mark.parametrize("options", [{}, {"cell": 8 * torch.eye(3)}], ids=["open", "periodic"])
@pytest.mark.parametrize("stress", [False, True])
def test_geometry_is_computed_once(monkeypatch, options, stress):
    calls = []
    original = torch_backend.edge_geometry
    monkeypatch.setattr(
        torch_backend, "edge_geometry", lambda *args: calls.append(1) or original(*args)
    )
    torch.manual_seed(0)
    model = E2FormerPotential(
        hidden_channels=8, num_layers=3, heads=2, lmax=1, order=(0, 2), cutoff=3.0, stress=stress
    )
    z, pos = torch.tensor([6, 1, 8, 1, 7]), torch.randn(5, 3)
    first, second = model(z, pos, **options), model(z, pos, **options)
    assert len(calls) == 2
    # Each pass has a graph of its own.
    (first.energy.sum() + first.forces.square().sum()).backward()
    (second.energy.sum() + second.forces.square().sum()).backward()


@pytest.mark.parametrize("budget", [2**22, 200])
def test_checkpointed_blocks_give_the_same(monkeypatch, budget):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    torch.manual_seed(0)
    model = E2FormerPotential(hidden_channels=8, num_layers=2, heads=2, lmax=1, cutoff=3.0).double()
    z, pos = torch.tensor([6, 1, 8, 1, 7]), torch.randn(5, 3, dtype=torch.float64)
    results = []
    for _ in range(2):
        model.zero_grad()
        out = model(z, pos)
        (out.energy.sum() + out.forces.square().sum()).backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([out.energy, out.forces, *grads])
        for block in model.backbone.blocks:
            inner = block.forward
            block.forward = functools.partial(checkpoint, inner, use_reentrant=False)
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-10, atol=1e-12)
