r"""Predictions, written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from ..files import written_whole
from ..models import PotentialOutput


class PredictionWriter(BasePredictionWriter):
    r"""Writes what :obj:`predict` gives to one :obj:`.npz` file, in the order of the dataset.

    Of potentials it has the layout of graphs of any size that
    :class:`~e2former_pyg.data.NPZDataset` reads: :obj:`z`, :obj:`pos`, :obj:`ptr`, :obj:`energy`
    and, as far as the model gives them, :obj:`forces`, :obj:`stress` with :obj:`cell` and
    :obj:`pbc`. Of properties it has :obj:`y` in the place of the energy.

    Args:
        path (str, optional): The file.
            (default: :obj:`None`, :obj:`predictions.npz` in the trainer's
            :obj:`default_root_dir`)
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("batch")
        self.path = path
        self.batches: list[dict[str, np.ndarray]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        arrays = {"z": batch.z, "pos": batch.pos, "sizes": batch.ptr.diff()}
        for key in ("charge", "spin"):
            if batch.get(key) is not None:
                arrays[key] = batch[key]
        if batch.get("cell") is not None:
            arrays["cell"] = batch.cell.reshape(-1, 3, 3)
            if batch.get("pbc") is not None:
                arrays["pbc"] = batch.pbc.reshape(-1, 3)
        if isinstance(prediction, PotentialOutput):
            for name in ("energy", "forces", "stress"):
                arrays[name] = getattr(prediction, name)
        else:
            arrays["y"] = prediction
        self.batches.append(
            {key: _array(value) for key, value in arrays.items() if value is not None}
        )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ranks: list[Any] = [self.batches]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, self.batches)
        if not trainer.is_global_zero:
            return
        # The sampler dealt the batches out in turn.
        rounds = range(max(len(batches) for batches in ranks))
        ordered = [batches[i] for i in rounds for batches in ranks if i < len(batches)]
        arrays: Any = {key: np.concatenate([b[key] for b in ordered]) for key in ordered[0]}
        arrays["ptr"] = np.concatenate([[0], np.cumsum(arrays.pop("sizes"))])
        path = Path(self.path or Path(trainer.default_root_dir) / "predictions.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
