"""Small training runs, on graphs that differ in size. As a script, runs of two processes, or one
that kills itself.
"""

import logging
import os
import signal
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import Dataset
from torch_geometric.data import Data

from e2former_pyg import E2FormerPotential
from e2former_pyg.training import (
    BestCheckpoint,
    E2FormerModule,
    ExponentialAverage,
    GraphDataModule,
    LastCheckpoint,
    PredictionWriter,
)

MODEL = {
    "hidden_channels": 8,
    "num_layers": 1,
    "lmax": 1,
    "heads": 2,
    "num_radial": 6,
    "cutoff": 4.0,
}
STEPS = 13
"""Steps of a run, two epochs of 6 and a part of the third."""


class Frames(Dataset):
    """Graphs of 2 to 8 atoms that attract one another."""

    def __init__(self, count: int = 30, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(2, 9, (count,), generator=generator).tolist()
        self.frames = [self._frame(size, generator) for size in sizes]

    @staticmethod
    def _frame(size: int, generator: torch.Generator) -> Data:
        z = torch.tensor([1, 6, 8])[torch.randint(3, (size,), generator=generator)]
        pos = 1.5 * torch.randn(size, 3, generator=generator)
        pairs = pos[:, None] - pos
        # Of pairs that count twice: 0.1 eV/Å², and 10 eV for each unit of nuclear charge.
        energy = 0.1 * pairs.double().square().sum().view(1) - 10.0 * z.sum()
        return Data(z=z, pos=pos, energy=energy, forces=-0.4 * pairs.sum(1))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Data:
        return self.frames[index]


class Record(Callback):
    """What the steps and validations of a run were like; may end it with a bang."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.steps: list[tuple] = []
        self.validations: list[tuple] = []
        self.gradients: list[list] = []
        self.kill_at = kill_at

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append([p.grad.clone() for p in module.model.parameters()])

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        loss, lr = float(trainer.callback_metrics["train/loss"]), module.optimizers()
        energies = sorted(batch.energy.tolist())
        self.steps.append((trainer.global_step, loss, lr.param_groups[0]["lr"], energies))

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            values = {key: float(metrics[key]) for key in metrics if key.startswith("val/")}
            self.validations.append((trainer.global_step, values))


def make_module(model: dict | None = None, **kwargs) -> E2FormerModule:
    torch.manual_seed(0)
    potential = E2FormerPotential(**(MODEL | {"dropout": 0.2} | (model or {})))
    settings = {"lr": 1e-2, "warmup_steps": 3, "total_steps": 20}
    return E2FormerModule(potential, **(settings | kwargs))


def make_trainer(root: Path, *callbacks: Callback, every_n_steps: int = 4, **kwargs) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "gradient_clip_val": 10.0,
        "max_steps": STEPS,
    }
    kept = [ExponentialAverage(0.9), BestCheckpoint(), LastCheckpoint(every_n_steps)]
    return Trainer(default_root_dir=root, callbacks=[*kept, *callbacks], **(options | kwargs))


def last(root: Path) -> Path:
    return root / "checkpoints" / "last.ckpt"


def run(root: Path, *, resume: bool = False, seed: int = 1, kill_at: int | None = None, **kwargs):
    """Trains, or goes on, and returns the record and the module."""
    seed_everything(seed, verbose=False)
    module = make_module(optimizer=kwargs.pop("optimizer", "adamw"))
    data = GraphDataModule(Frames(), val_size=6, max_atoms=24, num_workers=kwargs.pop("workers", 0))
    record = Record(kill_at)
    trainer = make_trainer(root, record, *kwargs.pop("callbacks", ()), **kwargs)
    trainer.fit(module, data, ckpt_path=last(root) if resume else None)
    return record, module


def run_two_processes(root: Path) -> None:
    """Gradients, metrics and predictions; a run in one go and one in two parts."""
    seed_everything(1, verbose=False)
    parallel = {"devices": 2, "strategy": "ddp", "max_steps": 5}
    data = GraphDataModule(Frames(), val_size=7, max_atoms=24)
    module = make_module({"dropout": 0.0})
    module.model.double()
    record = Record()
    trainer = make_trainer(root / "gradients", record, **parallel)
    trainer.fit(module, data)
    result = {
        "gradients": record.gradients,
        "steps": record.steps,
        "validation": trainer.validate(module, data, verbose=False)[0],
        "weights": module.model.state_dict(),
    }
    predict = GraphDataModule(predict=Frames(11), batch_size=2)
    trainer = make_trainer(root, PredictionWriter(), **parallel)
    trainer.predict(module, predict, return_predictions=False)
    whole, _ = run(root / "whole", **(parallel | {"max_steps": 7}))
    first, _ = run(root / "parts", **parallel)
    second, module = run(root / "parts", resume=True, seed=9, **(parallel | {"max_steps": 7}))
    result["whole"], result["parts"] = whole.steps, first.steps + second.steps
    torch.save(result, root / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    if sys.argv[1] == "two":
        run_two_processes(Path(sys.argv[2]))
    else:
        run(Path(sys.argv[2]), kill_at=int(sys.argv[1]))
