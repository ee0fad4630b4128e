"""The training loop of the examples, with a model whose only parameter is a force constant."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from training import Settings, evaluate, mean_predictor, train

from e2former_pyg import PotentialOutput

pytestmark = pytest.mark.usefixtures("step_clock")

SETTINGS = Settings(minutes=2.0, batch_size=4, lr=0.05)


class Springs(nn.Module):
    """Atoms tied to the origin; ``fail_at`` interrupts that step."""

    def __init__(self, constant: float, fail_at: int | None = None) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant))
        self.fail_at = fail_at
        self.calls = 0

    def forward(self, data: Data) -> PotentialOutput:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        atomic = (self.constant * data.pos.square().sum(-1)).double()
        energy = atomic.new_zeros(data.num_graphs).index_add(0, data.batch, atomic)
        return PotentialOutput(energy, atomic, -2 * self.constant * data.pos, None)


class Shifted(nn.Module):
    """The labels of a batch with known errors."""

    def forward(self, data: Data) -> PotentialOutput:
        signs = torch.tensor([1.0, -1.0]).repeat(data.num_graphs)[: data.num_graphs]
        return PotentialOutput(
            data.energy + 0.002 * signs,
            data.energy,
            data.forces + torch.tensor([0.0, 0.0, -0.03]),
            None,
        )


@pytest.fixture
def frames() -> list[Data]:
    generator = torch.Generator().manual_seed(0)

    def frame(atoms: int) -> Data:
        pos = torch.randn(atoms, 3, generator=generator)
        energy = 1.5 * pos.double().square().sum().view(1)
        return Data(z=torch.ones(atoms, dtype=torch.long), pos=pos, energy=energy, forces=-3 * pos)

    return [frame(atoms) for atoms in (3, 5, 1, 4, 2, 3, 3, 6, 2, 4)]


def constant(model: nn.Module) -> Tensor:
    return model.constant.detach()


def test_tiny_numbers_are_zero_while_training_alone(frames: list[Data]) -> None:
    class Watched(Springs):
        def forward(self, data: Data) -> PotentialOutput:
            seen.append(float(torch.tensor(1e-40) * 0.5))
            return super().forward(data)

    seen: list[float] = []
    train(Watched(0.5), frames, SETTINGS)
    assert seen and not any(seen)
    with pytest.raises(KeyboardInterrupt):
        train(Springs(0.5, fail_at=3), frames, SETTINGS)
    assert float(torch.tensor(1e-40) * 0.5) > 0


def test_learns_and_ends_with_its_budget(frames: list[Data]) -> None:
    trained, state = train(Springs(0.5), frames, SETTINGS)
    assert state == {"elapsed": 120.0, "step": 120}
    assert not trained.training
    assert float(constant(trained)) == pytest.approx(1.5, abs=0.02)
    errors = evaluate(trained, frames)
    untrained = evaluate(Springs(0.5), frames)
    assert all(errors[key] < 0.05 * untrained[key] for key in errors)


def test_paused_run_goes_on(frames: list[Data], tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    paused, state = train(Springs(0.5), frames, SETTINGS, path, pause_after=0.5)
    assert state == {"elapsed": 30.0, "step": 30}
    # No time to go on: exactly what was kept, whatever the model given.
    kept, same = train(Springs(-7.0), frames, SETTINGS, path, pause_after=0.0)
    assert same == state
    assert torch.equal(constant(kept), constant(paused))
    resumed = Springs(-7.0)
    trained, end = train(resumed, frames, SETTINGS, path)
    assert end == {"elapsed": 120.0, "step": 120}
    assert resumed.calls == 90
    assert float(constant(trained)) == pytest.approx(1.5, abs=0.02)
    # A finished run is only read.
    again, end = train(Springs(-7.0), frames, SETTINGS, path)
    assert end == {"elapsed": 120.0, "step": 120}
    assert torch.equal(constant(again), constant(trained))


def test_interrupted_run_goes_on_from_the_last_minute(frames: list[Data], tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(Springs(0.5, fail_at=100), frames, SETTINGS, path)
    resumed = Springs(0.5)
    _, state = train(resumed, frames, SETTINGS, path)
    assert state == {"elapsed": 120.0, "step": 120}
    assert resumed.calls == 120 - 61


def test_too_few_frames_are_refused(frames: list[Data]) -> None:
    with pytest.raises(ValueError, match="`frames` must fill a batch of 4, got 3 frames"):
        train(Springs(0.5), frames[:3], SETTINGS)


def test_evaluate_on_known_errors(frames: list[Data]) -> None:
    errors = evaluate(Shifted(), frames)
    assert errors["energy_mae_mev"] == pytest.approx(2.0)
    # One of three components is wrong by 30 meV/Å.
    assert errors["force_mae_mev_per_angstrom"] == pytest.approx(10.0, rel=1e-5)


def test_mean_predictor_on_known_errors(frames: list[Data]) -> None:
    errors = mean_predictor(frames[:2], frames[2:4])
    mean = (frames[0].energy + frames[1].energy) / 2
    energy = (abs(frames[2].energy - mean) + abs(frames[3].energy - mean)) / 2
    components = [abs(value) for f in frames[2:4] for value in f.forces.flatten().tolist()]
    assert errors["energy_mae_mev"] == pytest.approx(1e3 * float(energy))
    force = 1e3 * sum(components) / len(components)
    assert errors["force_mae_mev_per_angstrom"] == pytest.approx(force)


def test_learning_rate_warms_up_and_ends_low() -> None:
    settings = Settings(minutes=1.0, warmup=0.1)
    factors = [settings.lr_factor(step / 100) for step in range(101)]
    assert factors[0] == 0.01
    assert max(factors) == factors[10] == 1.0
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.002)
