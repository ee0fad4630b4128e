"""A training loop for energies and forces, shared by the examples.

The learning rate follows the time that has passed, so that a run ends where its budget ends.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SchNet
from tqdm import tqdm

from e2former_pyg import PotentialOutput
from e2former_pyg.models import ElementReferences
from e2former_pyg.transforms import RadiusGraph


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a run."""

    minutes: float
    batch_size: int = 10
    lr: float = 2e-3
    weight_decay: float = 1e-6
    warmup: float = 0.02
    """Part of the time in which the learning rate rises."""
    ema: float = 0.998
    clip: float = 10.0
    energy_weight: float = 0.1
    """Weight of the energy error of a molecule (eV) beside the force errors (eV/Å)."""
    seed: int = 0

    def lr_factor(self, progress: float) -> float:
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)
        rest = (progress - self.warmup) / (1 - self.warmup)
        return 0.002 + 0.499 * (1 + math.cos(math.pi * min(rest, 1.0)))


class SchNetPotential(nn.Module):
    """PyG's SchNet with the interface of an ``E2FormerPotential``, as the baseline."""

    def __init__(self, cutoff: float = 5.0, hidden_channels: int = 64, interactions: int = 4):
        super().__init__()
        self.schnet = SchNet(
            hidden_channels,
            hidden_channels,
            interactions,
            50,
            cutoff,
            interaction_graph=RadiusGraph(cutoff),
        )
        self.references = ElementReferences()

    def forward(self, data: Data) -> PotentialOutput:
        with torch.enable_grad():
            pos = data.pos.detach().requires_grad_()
            out = self.schnet(data.z, pos, data.batch).squeeze(-1)
            (grad,) = torch.autograd.grad(out.sum(), pos, create_graph=self.training)
        scale = self.references.scale
        base = torch.zeros_like(out, dtype=torch.float64)
        base = base.index_add(0, data.batch, self.references.energies[data.z])
        energy = out.double() * scale + base
        return PotentialOutput(energy, energy.new_zeros(0), -grad * scale.to(grad.dtype), None)


def loss_function(out: PotentialOutput, data: Data, energy_weight: float) -> Tensor:
    """Mean length of the force errors, plus the weighted mean energy error."""
    assert out.forces is not None
    # The small constant keeps the derivative of a length finite at zero.
    forces = ((out.forces - data.forces).square().sum(-1) + 1e-10).sqrt().mean()
    energy = (out.energy - data.energy.view_as(out.energy)).abs().mean()
    return forces + energy_weight * energy.to(forces.dtype)


def exponential_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """An exponential moving average that forgets the start of a run faster."""

    def update(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        weight = max(1 - decay, 9 / (10 + int(count)))
        torch._foreach_lerp_(averages, values, weight)

    return update


def train(
    model: nn.Module,
    frames: Sequence[Data],
    settings: Settings,
    checkpoint: Path | None = None,
    pause_after: float = math.inf,
    description: str = "train",
) -> nn.Module:
    """Trains for ``settings.minutes`` and returns the averaged model, in eval mode.

    Args:
        model: Takes a batch and returns a ``PotentialOutput``.
        frames: Training frames with ``energy`` (eV) and ``forces`` (eV/Å).
        settings: The hyper-parameters.
        checkpoint: Where the state is kept; an interrupted run goes on from there.
        pause_after: Stop, with the state kept, after so many minutes of this call.
        description: Label of the progress bar.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(
        frames, settings.batch_size, shuffle=True, drop_last=True, generator=generator
    )
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    average = AveragedModel(model, multi_avg_fn=exponential_average(settings.ema))
    state = {"elapsed": 0.0, "step": 0}
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        state = saved["state"]

    model.train()
    before, started = state["elapsed"], time.perf_counter()
    running = torch.zeros(())
    total = settings.minutes * 60
    with tqdm(total=round(total), initial=round(before), desc=description, unit="s") as bar:
        while state["elapsed"] < total:
            for data in loader:
                factor = settings.lr_factor(state["elapsed"] / total)
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor
                loss = loss_function(model(data), data, settings.energy_weight)
                optimizer.zero_grad(set_to_none=True)
                # Naming the inputs spares the second derivatives by the positions.
                loss.backward(inputs=parameters)
                nn.utils.clip_grad_norm_(parameters, settings.clip)
                optimizer.step()
                average.update_parameters(model)
                running = loss.detach() if state["step"] == 0 else running.lerp(loss.detach(), 0.02)
                state["step"] += 1
                state["elapsed"] = before + time.perf_counter() - started
                if state["elapsed"] >= total:
                    break
            bar.update(round(min(state["elapsed"], total)) - bar.n)
            bar.set_postfix(step=state["step"], loss=f"{float(running):.4f}")
            if state["elapsed"] - before > pause_after * 60:
                break
    if checkpoint is not None:
        saved = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "state": state,
        }
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(saved, temporary)
        os.replace(temporary, checkpoint)
    trained = average.module.eval()
    trained.steps = state["step"]
    return trained


@torch.no_grad()
def evaluate(model: nn.Module, frames: Sequence[Data], batch_size: int = 50) -> dict[str, float]:
    """Mean absolute errors: energy in meV, forces in meV/Å."""
    model.eval()
    energy, forces, atoms = 0.0, 0.0, 0
    for data in DataLoader(frames, batch_size):
        out = model(data)
        energy += float((out.energy - data.energy.view_as(out.energy)).abs().sum())
        forces += float((out.forces - data.forces).abs().sum()) / 3
        atoms += data.num_nodes
    return {
        "energy_mae_mev": 1e3 * energy / len(frames),
        "force_mae_mev_per_angstrom": 1e3 * forces / atoms,
    }
