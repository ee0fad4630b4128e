"""The data of the accuracy benchmark, and how errors on them are measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
import alloy_training
from training import evaluate, mean_predictor

from e2former_pyg import PotentialOutput
from e2former_pyg.data import NPZDataset
from e2former_pyg.models import ElementReferences
from e2former_pyg.transforms import RadiusGraph

CUTOFF = 5.0
MOLECULES = ("ethanol", "malonaldehyde", "paracetamol", "aspirin", "ala_dipeptide")
PROPERTIES = {"qm9-energy": "energy_atomization", "qm9-gap": "gap", "qm9-mu": "mu"}
"""Their names in the file: energies in eV, the length of the dipole moment in Debye."""
ROWS = (*MOLECULES, "organic", "alloys", *PROPERTIES)


@dataclass(frozen=True)
class Row:
    """Training and test data."""

    train: list[Data]
    test: list[Data]

    def elements(self) -> list[int]:
        return sorted({int(z) for data in self.train for z in data.z.unique()})


def load(row: str, folder: Path, seed: int, count: int, cutoff: float = CUTOFF) -> Row:
    """The data of a row with their edges.

    Args:
        row: One of ``ROWS``.
        folder: Where the files are.
        seed: Draws the training frames of a molecule.
        count: How many these are.
        cutoff: Of the edges, in Å.
    """
    graph = RadiusGraph(cutoff)
    if row in MOLECULES:
        frames = list(NPZDataset(str(folder / f"xtbmd_{row}.npz"), pre_transform=graph))
        order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed)).tolist()
        return Row([frames[n] for n in order[:count]], [frames[n] for n in order[count:]])
    name = {"organic": "xtb_organic", "alloys": "emt_alloys"}.get(row, "qm9_subset")
    labels = tuple(PROPERTIES.values()) if row in PROPERTIES else ()
    parts = [
        list(
            NPZDataset(str(folder / f"{name}.npz"), pre_transform=graph, split=split, labels=labels)
        )
        for split in ("train", "val")
    ]
    if row in PROPERTIES:
        for data in (*parts[0], *parts[1]):
            data.y = data[PROPERTIES[row]]
            for label in (*labels, "energy"):
                del data[label]
        if row == "qm9-energy":
            _subtract_compositions(*parts)
    return Row(*parts)


def _subtract_compositions(train: Sequence[Data], test: Sequence[Data]) -> None:
    """Leaves of energies what a sum over the elements, fitted to ``train``, does not give."""
    references = ElementReferences()
    sizes = torch.tensor([data.num_nodes for data in train])
    batch = torch.arange(len(train)).repeat_interleave(sizes)
    references.fit(torch.cat([d.z for d in train]), torch.cat([d.y for d in train]), batch)
    for data in (*train, *test):
        data.y = data.y - references.energies[data.z].sum()


def property_loss(out: Tensor, data: Batch) -> Tensor:
    """The mean absolute error of a scalar, or of the length of a vector."""
    if out.dim() > 1 and out.size(1) > 1:
        # The small constant keeps the derivative of a length finite at zero.
        out = (out.square().sum(1) + 1e-8).sqrt()
    return (out.flatten() - data.y.to(out.dtype)).abs().mean()


@torch.no_grad()
def measure(row: str, model: nn.Module, frames: Sequence[Data]) -> dict[str, float]:
    """Mean absolute errors, with their units."""
    if row == "alloys":
        return alloy_training.alloy_errors(model, frames)
    if row not in PROPERTIES:
        return evaluate(model, frames)
    model.eval()
    total = sum(
        float(property_loss(model(data), data)) * data.num_graphs
        for data in DataLoader(frames, 100)
    )
    unit, factor = ("debye", 1.0) if row == "qm9-mu" else ("mev", 1e3)
    return {f"mae_{unit}": factor * total / len(frames)}


def trivial(row: str, data: Row) -> dict[str, float]:
    """The errors of predicting means."""
    if row == "alloys":
        energies = torch.cat([frame.energy / frame.num_nodes for frame in data.train])

        def predict(batch: Batch) -> PotentialOutput:
            energy = energies.mean() * batch.ptr.diff()
            zeros = torch.zeros_like(batch.forces), torch.zeros_like(batch.stress)
            return PotentialOutput(energy, energy.new_zeros(0), *zeros)

        return alloy_training.alloy_errors(predict, data.test)
    if row not in PROPERTIES:
        return mean_predictor(data.train, data.test)
    values = [torch.cat([d.y for d in part]) for part in (data.train, data.test)]
    error = float((values[1] - values[0].mean()).abs().mean())
    unit, factor = ("debye", 1.0) if row == "qm9-mu" else ("mev", 1e3)
    return {f"mae_{unit}": factor * error}
