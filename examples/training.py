"""A training loop for energies and forces, or with a loss of one's own, shared by the examples.

The learning rate follows the time that has passed, so that a run ends where its budget ends.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gradients import EagerGradients, Gradients, choose_gradients
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SchNet
from tqdm import tqdm

from e2former_pyg import E2FormerPotential, PotentialOutput
from e2former_pyg.models import ElementReferences
from e2former_pyg.optim import Muon, muon_groups
from e2former_pyg.transforms import RadiusGraph


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a run."""

    minutes: float
    batch_size: int = 10
    lr: float = 2e-3
    weight_decay: float = 1e-6
    optimizer: str = "adamw"
    """``"adamw"`` or ``"muon"``."""
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
        def energies(pos: Tensor) -> Tensor:
            return self.schnet(data.z, pos, data.batch).squeeze(-1)

        return energy_and_forces(energies, data, self.references, self.training)


def energy_and_forces(
    energies: Callable[[Tensor], Tensor], data: Data, references: ElementReferences, training: bool
) -> PotentialOutput:
    """What a potential returns, from the energies of graphs that a network gives for positions."""
    with torch.enable_grad():
        pos = data.pos.detach().requires_grad_()
        out = energies(pos)
        (grad,) = torch.autograd.grad(out.sum(), pos, create_graph=training)
    base = torch.zeros_like(out, dtype=torch.float64)
    base = base.index_add(0, data.batch, references.energies[data.z])
    energy = out.double() * references.scale + base
    forces = -grad * references.scale.to(grad.dtype)
    return PotentialOutput(energy, energy.new_zeros(0), forces, None)


def keep_freed_memory() -> None:
    """Lets glibc keep the blocks that tensors free.

    By default those above some 100 KiB go back to the system, and getting them again costs a page
    fault for every 4 KiB: more than a thousand in a training step of a small model.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, 1 << 28)
        mallopt(trim_threshold, 1 << 30)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Takes numbers too small for full precision for zero.

    On a CPU an operation on one of them can take a hundred times as long as on another number, and
    SchNet's Gaussians of distances are full of them: its training steps took four times as long.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def exponential_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """An exponential moving average that forgets the start of a run faster."""

    def update(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        weight = max(1 - decay, 9 / (10 + int(count)))
        torch._foreach_lerp_(averages, values, weight)

    return update


def fit_references(model: E2FormerPotential | SchNetPotential, frames: Sequence[Data]) -> None:
    """Energy references and the force scale from training frames."""
    energy, forces = labels(frames)
    sizes = torch.tensor([frame.num_nodes for frame in frames])
    batch = torch.arange(len(frames)).repeat_interleave(sizes)
    model.references.fit(torch.cat([frame.z for frame in frames]), energy, batch, forces)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if settings.optimizer == "muon":
        return Muon(muon_groups(model, settings.weight_decay), settings.lr)
    if settings.optimizer != "adamw":
        raise ValueError(f"`optimizer` must be 'adamw' or 'muon', got {settings.optimizer!r}")
    parameters, decay = model.parameters(), settings.weight_decay
    return torch.optim.AdamW(parameters, settings.lr, weight_decay=decay, fused=True)


def train(
    model: nn.Module,
    frames: Sequence[Data],
    settings: Settings,
    checkpoint: Path | None = None,
    pause_after: float = math.inf,
    description: str = "train",
    loss: Callable[[Any, Batch], Tensor] | None = None,
    gradients: Gradients | None = None,
    loader: Callable[[torch.Generator], Iterable[Batch]] | None = None,
    clock: Callable[[], float] | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """Trains for ``settings.minutes``; returns the averaged model, in eval mode, and the number of
    steps and seconds.

    Args:
        model: Takes a batch and returns a ``PotentialOutput``.
        frames: Training frames with ``energy`` (eV) and ``forces`` (eV/Å).
        settings: The hyper-parameters.
        checkpoint: Where the state is kept, once a minute; an interrupted run goes on from there.
        pause_after: Stop, with the state kept, after so many minutes of this call.
        description: Label of the progress bar.
        loss: Of what the model returns and a batch, instead of that of energies and forces; model
            and frames are then any that suit it.
        gradients: What sets the gradients of a batch, instead of what suits the frames.
        loader: Makes what iterates over the batches of an epoch, drawn by the generator that it is
            given, instead of a ``DataLoader``.
        clock: What tells the seconds that count, instead of those that pass.
    """
    clock = time.perf_counter if clock is None else clock
    if len(frames) < settings.batch_size:
        raise ValueError(
            f"`frames` must fill a batch of {settings.batch_size}, got {len(frames)} frames"
        )
    generator = torch.Generator().manual_seed(settings.seed)
    if loader is None:
        batches = endless(
            DataLoader(
                frames, settings.batch_size, shuffle=True, drop_last=True, generator=generator
            )
        )
    else:
        batches = endless(loader(generator))
    parameters = list(model.parameters())
    optimizer = make_optimizer(model, settings)
    average = AveragedModel(model, multi_avg_fn=exponential_average(settings.ema))
    state = {"elapsed": 0.0, "step": 0}
    if checkpoint is not None and checkpoint.exists():
        device = parameters[0].device
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"].cpu())
        state = saved["state"]

    def keep_state() -> None:
        if checkpoint is None:
            return
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

    model.train()
    keep_freed_memory()
    if gradients is None and loss is None:
        gradients = choose_gradients(model, frames, settings.energy_weight)
    elif gradients is None:
        gradients = EagerGradients(model, settings.energy_weight, loss)
    total = settings.minutes * 60
    before = kept = state["elapsed"]
    end = min(total, before + pause_after * 60)
    running = None
    started = clock()
    with flushed_denormals(), progress_bar(total, before, description) as bar:
        while state["elapsed"] < end:
            data = next(batches)
            factor = settings.lr_factor(state["elapsed"] / total)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * factor
            value = gradients(data)
            nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            average.update_parameters(model)
            running = value if running is None else running.lerp(value, 0.02)
            state["step"] += 1
            state["elapsed"] = before + clock() - started
            bar.set_postfix_str(f"step {state['step']}, loss {float(running):.4f}", refresh=False)
            bar.update(min(state["elapsed"], total) - bar.n)
            if state["elapsed"] - kept > 60:
                keep_state()
                kept = state["elapsed"]
    keep_state()
    return average.module.eval(), state


def endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of one epoch after the other."""
    while True:
        yield from loader


def progress_bar(total: float, initial: float, description: str, unit: str = "s") -> tqdm:
    """A progress bar, by default of seconds; in a file it writes a line every ten of them."""
    # Where the terminal does not know its size, this is 80 x 24, and tqdm alone draws nothing.
    size = shutil.get_terminal_size()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        miniters=0,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        unit=unit,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit}{postfix}",
        ncols=size.columns,
        nrows=size.lines,
    )


@torch.no_grad()
def predict(
    model: nn.Module, frames: Sequence[Data], batch_size: int = 50
) -> tuple[Tensor, Tensor]:
    """Energies of all frames in eV and forces on all atoms in eV/Å."""
    model.eval()
    device = next(model.parameters(), torch.empty(0)).device
    outputs = [model(data.to(device)) for data in DataLoader(frames, batch_size)]
    energies, forces = zip(*((out.energy.cpu(), out.forces.cpu()) for out in outputs), strict=True)
    return torch.cat(energies), torch.cat(forces)


def labels(frames: Sequence[Data]) -> tuple[Tensor, Tensor]:
    """The reference values of what :func:`predict` returns."""
    return torch.cat([frame.energy for frame in frames]), torch.cat([f.forces for f in frames])


def mean_absolute_errors(
    predicted: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Mean absolute errors: energy in meV, forces in meV/Å."""
    energy, forces = (
        1e3 * float((ours.double() - theirs.double()).abs().mean())
        for ours, theirs in zip(predicted, reference, strict=True)
    )
    return {"energy_mae_mev": energy, "force_mae_mev_per_angstrom": forces}


def evaluate(model: nn.Module, frames: Sequence[Data]) -> dict[str, float]:
    """Mean absolute errors of a model."""
    return mean_absolute_errors(predict(model, frames), labels(frames))


def mean_predictor(train_frames: Sequence[Data], test_frames: Sequence[Data]) -> dict[str, float]:
    """Mean absolute errors of predicting the mean energy and no forces."""
    energy, forces = labels(test_frames)
    mean = labels(train_frames)[0].mean()
    return mean_absolute_errors(
        (mean.expand_as(energy), torch.zeros_like(forces)), (energy, forces)
    )
