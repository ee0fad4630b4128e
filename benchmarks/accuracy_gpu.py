"""The accuracy benchmark on a GPU: larger models, trained with CUDA graphs of whole steps.

Frames of one molecule have all pairs of atoms as edges, so that every batch is the same graph
(``trace_gradients``). Those of other molecules are padded (``CapturedGradients``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accuracy_models import SMOOTH, make_model
from accuracy_rows import MOLECULES, Row
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from gradients import TracedGradients
from training import Settings

from e2former_pyg import PotentialOutput
from e2former_pyg.capture import CapturedGradients
from e2former_pyg.transforms import RadiusGraph

GPU_ROWS = (*MOLECULES, "organic")
GPU_SETTINGS: dict[str, dict[str, Any]] = {
    **{
        row: {
            "batch_size": 20,
            "optimizer": "muon",
            "lr": 3e-3,
            "energy_weight": 0.03,
            "ema": 0.999,
        }
        for row in MOLECULES
    },
    "organic": {
        "batch_size": 32,
        "optimizer": "muon",
        "lr": 5e-3,
        "energy_weight": 0.03,
        "weight_decay": 1e-3,
    },
}


def make_gpu_model(row: str, data: Row) -> nn.Module:
    """The model of the CPU's rows, larger."""
    size = {"hidden_channels": 64, "num_layers": 3, "heads": 8}
    return make_model("e2former", row, data, **SMOOTH, **size).cuda()


class _Frames:
    """Batches of frames of one molecule, all on the GPU and all the same graph."""

    def __init__(self, frames: list[Data], batch_size: int, generator: torch.Generator) -> None:
        whole = RadiusGraph(1e3)  # all pairs
        alike = [whole(Data(z=frames[0].z, pos=frames[0].pos)) for _ in range(batch_size)]
        self.graph = Batch.from_data_list(alike).cuda()
        self.pos, self.forces, self.energy = (
            torch.stack([frame[name] for frame in frames]).cuda()
            for name in ("pos", "forces", "energy")
        )
        self.batch_size = batch_size
        self.generator = generator

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.pos), generator=self.generator).cuda()
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            chosen = order[start : start + self.batch_size]
            data = self.graph
            data.pos = self.pos[chosen].flatten(0, 1)
            data.forces = self.forces[chosen].flatten(0, 1)
            data.energy = self.energy[chosen].flatten()
            yield data


def gpu_training(row: str, model: Any, data: Row, settings: Settings) -> dict[str, Any]:
    """What ``train`` is given besides."""
    if row in MOLECULES:
        gradients: Any = TracedGradients(model, settings.energy_weight)
        return {
            "gradients": gradients,
            "loader": lambda generator: _Frames(data.train, settings.batch_size, generator),
        }

    def loss(out: PotentialOutput, labels: Data) -> Tensor:
        assert out.forces is not None
        # The small constant keeps the derivative of a length finite at zero.
        forces = ((out.forces - labels.forces).square().sum(-1) + 1e-10).sqrt()
        energy = (out.energy - labels.energy).abs().to(forces.dtype)
        weight = settings.energy_weight
        return labels.atom_weight @ forces + weight * (labels.graph_weight @ energy)

    captured = CapturedGradients(model, loss, spare=0.5)

    def loader(generator: torch.Generator) -> DataLoader:
        return DataLoader(
            data.train,
            settings.batch_size,
            shuffle=True,
            drop_last=True,
            generator=generator,
            num_workers=1,
            persistent_workers=True,
        )

    return {"gradients": lambda batch: captured(batch.cuda()), "loader": loader}
