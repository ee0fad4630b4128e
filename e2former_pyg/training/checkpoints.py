r"""Checkpoints of training runs, and models for use from them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from ..models import E2FormerPotential, E2FormerProperty
from ..models.checkpoint import build_model
from .base import KEY

MODELS = {cls.__name__: cls for cls in (E2FormerPotential, E2FormerProperty)}


def load_model(path: str | Path) -> E2FormerPotential | E2FormerProperty:
    r"""The model of a checkpoint of a training run, with averaged weights where there are any, in
    eval mode. Its :obj:`save` writes the file for use.

    Args:
        path (str or Path): The :obj:`.ckpt` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a checkpoint file, found none at {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        saved = checkpoint[KEY]
        cls, config = MODELS[saved["class"]], json.loads(saved["config"])
        state = checkpoint["state_dict"]
    except (EOFError, KeyError, OSError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        reason = f"`path` is damaged or no checkpoint of a run: {path} ({error})"
        raise ValueError(reason) from error
    prefix = "model."
    state = {key[len(prefix) :]: state[key] for key in state if key.startswith(prefix)}
    model: Any = build_model(cls, config, state, path)
    return model.eval()


class BestCheckpoint(ModelCheckpoint):
    r"""Keeps the checkpoint of the best validation as :obj:`best.ckpt` in the folder
    :obj:`checkpoints` of the trainer's :obj:`default_root_dir`. When training ends, its model is
    written to :obj:`best.safetensors`, and that of :obj:`last.ckpt` to :obj:`last.safetensors`,
    for :meth:`E2FormerPotential.load <e2former_pyg.E2FormerPotential.load>`.

    Args:
        monitor (str, optional): What makes the best. (default: :obj:`"val/loss"`)
        mode (str, optional): :obj:`"min"` or :obj:`"max"`. (default: :obj:`"min"`)
    """

    def __init__(self, monitor: str = "val/loss", mode: str = "min") -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best",
            save_top_k=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(folder(trainer.default_root_dir))
        super().setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for path in (
                folder(trainer.default_root_dir) / "best.ckpt",
                folder(trainer.default_root_dir) / LastCheckpoint.NAME,
            ):
                if path.exists():
                    load_model(path).save(path.with_suffix(".safetensors"))


class LastCheckpoint(Checkpoint):
    r"""Keeps the state to go on from as :obj:`last.ckpt` beside :obj:`best.ckpt`, after every so
    many steps, after validations and epochs, and when training ends.

    A new run does not begin where another one has left a checkpoint, and weights that are not
    finite end a run instead of taking the place of those before.

    Args:
        every_n_steps (int, optional): Steps of the optimizer between two checkpoints.
            (default: :obj:`500`)
    """

    NAME = "last.ckpt"

    def __init__(self, every_n_steps: int = 500) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be positive, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before, strategies that shard have not looked for a checkpoint to go on with.
        path = folder(trainer.default_root_dir) / self.NAME
        # Nobody writes before all have looked.
        exists = trainer.strategy.broadcast(path.exists())
        if exists and trainer.ckpt_path is None and not _trial(trainer):
            raise FileExistsError(
                f"'{path}' is the checkpoint of another run: pass `ckpt_path` to go on with it, "
                "or another `default_root_dir`"
            )
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        stepped, self.step = self.step != trainer.global_step, trainer.global_step
        # Once an epoch that was cut short is over, Lightning takes it for a whole one.
        ends = trainer.should_stop or trainer.is_last_batch
        ends |= trainer.global_step == trainer.max_steps
        # Gradients that are still to be added up would be lost.
        due = ends or (stepped and self.step % self.every_n_steps == 0)
        # A run that goes on from here would leave out the validation that follows.
        if due and not _validates_next(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not all(bool(p.isfinite().all()) for p in trainer.lightning_module.parameters()):
            raise ValueError(
                f"weights are not finite after step {trainer.global_step}, such as by too high a "
                "learning rate or damaged labels; the last checkpoint is kept"
            )
        if _trial(trainer):
            return
        path = folder(trainer.default_root_dir) / self.NAME
        # What is written takes the place of the one before when it is complete. Lightning's own way
        # leads through the system's folder for temporary files, from which a move may be a copy.
        unfinished = path.with_name(f".{path.name}.tmp")
        trainer.save_checkpoint(unfinished, weights_only=False)
        if trainer.is_global_zero:
            os.replace(unfinished, path)


def folder(root: str | None) -> Path:
    """Where the checkpoints of a trainer with this ``default_root_dir`` are."""
    return Path(root or ".") / "checkpoints"


def _validates_next(trainer: Any) -> bool:
    """Whether a validation follows the present step, which Lightning leaves out where it finds no
    data for it.
    """
    loop = trainer.fit_loop
    if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
        return False
    return trainer.val_dataloaders is None or sum(trainer.num_val_batches) > 0


def _trial(trainer: Any) -> bool:
    """Whether the run is to find mistakes only and keeps nothing."""
    return bool(trainer.fast_dev_run)
