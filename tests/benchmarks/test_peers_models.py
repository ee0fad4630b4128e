"""Models of other libraries are run and trained on the atoms and edges that they are given."""

import dataclasses

import model_systems
import peers_models
import peers_systems
import pytest
import torch
from model_train import eager_step, squared_errors
from peers_cases import TRAINING, Case


@pytest.mark.parametrize("name", peers_models.PEERS)
def test_models_get_the_periodic_system(monkeypatch, name: str) -> None:
    """Forces are the gradient of the energy, and an atom may be replaced by its image."""
    if name in ("mace", "nequip"):
        pytest.importorskip(name)
    system = model_systems.solid(40, "cpu")
    pos, shifts = system.pos, system.edge_shift
    length = (40 / model_systems.DENSITY) ** (1 / 3)
    case = Case(name, "model", "energy+forces", 40, 16)

    def results(pos: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        moved = dataclasses.replace(system, pos=pos, edge_shift=shift)
        monkeypatch.setattr(peers_systems, "solid", lambda *args: moved)
        peer = peers_models.PEERS[name](peers_systems.Atoms.make(case, "cpu"), False)
        return dict(zip(("energy", "forces"), peer.evaluate(), strict=True))

    out = results(pos, shifts)
    direction = torch.randn(pos.shape, generator=torch.Generator().manual_seed(0))
    step = 5e-4 * direction
    energies = [results(pos + sign * step, shifts)["energy"].double() for sign in (1, -1)]
    slope = float((energies[0] - energies[1]).sum() / 1e-3)
    scale = float(out["forces"].norm())  # of the sum below, for a direction of normal numbers
    assert slope == pytest.approx(-float((out["forces"] * direction).sum()), abs=0.01 * scale)

    offset = torch.zeros_like(pos)
    offset[:20] = length * torch.tensor([1.0, 0.0, -1.0])
    source, target = system.edge_index.as_tensor()
    image = results(pos + offset, shifts - offset[source] + offset[target])
    torch.testing.assert_close(image["energy"], out["energy"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(image["forces"], out["forces"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", peers_models.PEERS)
def test_peers_are_trained_with_forces(name: str) -> None:
    """The gradients of a loss with forces are its derivatives by the weights."""
    if name in ("mace", "nequip"):
        pytest.importorskip(name)
    atoms = peers_systems.Atoms.make(Case(name, "ethanol", TRAINING, 2 * 9, 16), "cpu")
    peer, labels = peers_models.PEERS[name](atoms, True), atoms.system.labels()

    def loss() -> torch.Tensor:
        energies, forces = peer.evaluate()
        assert energies.shape == (2,) and forces.shape == (18, 3)
        return squared_errors(torch.zeros(2), 100 * forces, labels | {"energy": torch.zeros(2)})

    parameters = list(peer.module.parameters())
    eager_step(peer.module, loss)()  # which leaves gradients, at the weights before it
    peer.module.zero_grad()
    loss().backward(inputs=parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    assert sum(bool(gradient.count_nonzero()) for gradient in gradients) > len(gradients) / 2
    step = 1e-3 / sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
    values = []
    for factor in (step, -2 * step):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += factor * gradient
        values.append(float(loss().detach().double()))
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=0.05)


def test_settings_of_the_process_are_kept() -> None:
    import e3nn

    def settings() -> tuple:
        fusion = torch.jit.set_fusion_strategy([("STATIC", 2)])
        torch.jit.set_fusion_strategy(fusion)
        scalars = torch._dynamo.config.capture_scalar_outputs
        return torch.get_default_dtype(), e3nn.get_optimization_defaults(), fusion, scalars

    before = settings()
    with pytest.raises(RuntimeError, match="inside"), peers_models.kept_settings():
        torch.set_default_dtype(torch.float64)
        e3nn.set_optimization_defaults(jit_mode="eager")
        torch.jit.set_fusion_strategy([("DYNAMIC", 7)])
        torch._dynamo.config.capture_scalar_outputs = not before[3]
        raise RuntimeError("inside")
    assert settings() == before
