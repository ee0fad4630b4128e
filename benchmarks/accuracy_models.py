"""The models of the accuracy benchmark: ours, PyG's SchNet, ViSNet and DimeNet++, all on given
edges.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accuracy_dimenet import GivenDimeNet, has_torch_sparse
from accuracy_rows import CUTOFF, PROPERTIES, Row
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import SchNet
from torch_geometric.nn.models import ViSNet

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
import alloy_training
from training import fit_references

from e2former_pyg import E2FormerPotential, E2FormerProperty, PotentialOutput
from e2former_pyg.models import ElementReferences

SETTINGS: dict[str, dict[str, Any]] = {
    "e2former": {"optimizer": "muon", "lr": 5e-3, "energy_weight": 0.03},
    "schnet": {"optimizer": "muon", "lr": 3e-3},
    "visnet": {"optimizer": "muon", "lr": 3e-3},
    "dimenet": {"optimizer": "muon", "lr": 3e-3},
}
"""Training settings of all rows but those below, where the peers keep their learning rate."""
SMOOTH: dict[str, Any] = {"order": (0, 1, 2), "num_radial": 8}
"""Where data are few, not steps, directions of degree 2 and smoother radial functions tell more of
other frames.
"""
SMALL = ("ethanol", "malonaldehyde")
"""Rows where it is so within the time of a CPU, too."""
WEIGHT_DECAY = 0.1
"""Of organic molecules, where models are tested on others than they were trained on; chosen on
molecules of the training set that were held out.
"""
PROPERTY_SETTINGS: dict[str, Any] = {"batch_size": 16, "optimizer": "muon", "lr": 2e-3}


class GivenEdges(nn.Module):
    """The edges of a batch in place of a search for neighbours, which would need pyg-lib.

    Args:
        loops: Whether edges from each atom to itself follow, as ViSNet expects.
    """

    edges: Tensor
    shift: Tensor | None
    strain: Tensor | None

    def __init__(self, loops: bool) -> None:
        super().__init__()
        self.loops = loops

    def set(self, data: Batch, strain: Tensor | None) -> None:
        self.edges, self.shift = data.edge_index, data.get("edge_shift")
        self.strain = None if strain is None else strain[data.batch[data.edge_index[0]]]

    def vectors(self, pos: Tensor) -> tuple[Tensor, Tensor]:
        """The edges and their vectors, from targets to sources."""
        vectors = pos.index_select(0, self.edges[0]) - pos.index_select(0, self.edges[1])
        if self.shift is not None:
            vectors = vectors + self.shift
        if self.strain is not None:
            vectors = vectors + (self.strain @ vectors.unsqueeze(-1)).squeeze(-1)
        return self.edges, vectors

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, ...]:
        _, vectors = self.vectors(pos)
        lengths = vectors.norm(dim=-1)
        if not self.loops:
            return self.edges, lengths
        atoms = torch.arange(pos.size(0), device=pos.device)
        lengths = torch.cat([lengths, pos.new_zeros(pos.size(0))])
        vectors = torch.cat([vectors, torch.zeros_like(pos)])
        return torch.cat([self.edges, atoms.expand(2, -1)], dim=1), lengths, vectors


class Peer(nn.Module):
    """SchNet, ViSNet or DimeNet++: a value of each graph.

    Args:
        name: ``"schnet"``, ``"visnet"`` or ``"dimenet"``.
        dipole: Whether SchNet gives the length of a dipole moment, from charges of atoms.
        mean: Whether values of atoms are averaged, not summed.
    """

    def __init__(self, name: str, dipole: bool = False, mean: bool = False) -> None:
        super().__init__()
        self.distance = GivenEdges(loops=name == "visnet")
        self.network: nn.Module
        if name == "schnet":
            self.network = SchNet(
                hidden_channels=64,
                num_filters=64,
                num_interactions=4,
                num_gaussians=50,
                cutoff=CUTOFF,
                interaction_graph=self.distance,
                readout="mean" if mean else "add",
                dipole=dipole,
            )
        elif name == "dimenet":
            if not has_torch_sparse():
                raise ImportError("`dimenet` needs torch-sparse: pip install torch-sparse")
            self.network = GivenDimeNet(self.distance.vectors, CUTOFF, mean)
        else:
            reduce = "mean" if mean else "sum"
            self.network = ViSNet(
                lmax=2, num_layers=3, hidden_channels=64, cutoff=CUTOFF, reduce_op=reduce
            )
            self.network.representation_model.distance = self.distance

    def values(self, data: Batch, pos: Tensor, strain: Tensor | None = None) -> Tensor:
        self.distance.set(data, strain)
        out = self.network(data.z, pos, data.batch)
        return (out[0] if isinstance(out, tuple) else out).reshape(-1)


class PeerPotential(Peer):
    """With the interface of an ``E2FormerPotential``."""

    def __init__(self, name: str, stress: bool = False) -> None:
        super().__init__(name)
        self.stress = stress
        self.references = ElementReferences()

    def forward(self, data: Batch) -> PotentialOutput:
        with torch.enable_grad():
            pos = data.pos.detach().requires_grad_()
            strain = pos.new_zeros(data.num_graphs, 3, 3).requires_grad_() if self.stress else None
            out = self.values(data, pos, strain)
            wanted = [pos] if strain is None else [pos, strain]
            grads = torch.autograd.grad(out.sum(), wanted, create_graph=self.training)
        base = torch.zeros_like(out, dtype=torch.float64)
        base = base.index_add(0, data.batch, self.references.energies[data.z])
        scale, stress = self.references.scale, None
        if strain is not None:
            volumes = torch.linalg.det(data.cell).abs().view(-1, 1, 1)
            stress = scale.to(pos) * 0.5 * (grads[1] + grads[1].transpose(1, 2)) / volumes.to(pos)
        energy = out.double() * scale + base
        return PotentialOutput(energy, energy.new_zeros(0), -grads[0] * scale.to(pos), stress)


class PeerProperty(Peer):
    """The property in units of its deviation over the training set."""

    mean: Tensor
    scale: Tensor

    def __init__(self, name: str, row: str, targets: Tensor) -> None:
        dipole = name == "schnet" and row == "qm9-mu"
        super().__init__(name, dipole=dipole, mean=row == "qm9-gap")
        zero = row == "qm9-energy" or dipole
        self.register_buffer("mean", targets.new_zeros(()) if zero else targets.mean())
        self.register_buffer("scale", targets.new_ones(()) if dipole else targets.std())

    def forward(self, data: Batch) -> Tensor:
        return self.values(data, data.pos) * self.scale.float() + self.mean.float()


def make_model(name: str, row: str, data: Row, **other: Any) -> nn.Module:
    """A model for a row, with what its training set fixes; ``other`` arguments are for ours of
    molecules.
    """
    if row in PROPERTIES:
        return _property(name, row, data)
    model: Any
    if name != "e2former":
        model = PeerPotential(name, stress=row == "alloys")
    elif row == "alloys":
        model = E2FormerPotential(**alloy_training.MODEL)
    else:
        options: dict[str, Any] = {
            "hidden_channels": 64 if row == "organic" else 48,
            "num_layers": 2,
            "lmax": 2,
            "heads": 4,
            "cutoff": CUTOFF,
            "num_radial": 16,
            "avg_num_neighbors": 12.0,
            "elements": data.elements(),
        }
        if row in SMALL:
            options |= SMOOTH
        model = E2FormerPotential(**options | other)
    fit_references(model, data.train)
    return model


def _property(name: str, row: str, data: Row) -> nn.Module:
    targets = torch.cat([graph.y for graph in data.train])
    if name != "e2former":
        return PeerProperty(name, row, targets)
    options = {"hidden_channels": 64, "num_layers": 2, "lmax": 2, "heads": 4, "cutoff": CUTOFF}
    if row == "qm9-mu":
        return E2FormerProperty("1o", reduce="sum", parity="o3", **options)
    reduce = "mean" if row == "qm9-gap" else "sum"
    model = E2FormerProperty("0e", reduce=reduce, **options)
    if reduce == "mean":
        return model.fit_scale(targets)
    return model.fit_scale(targets, torch.tensor([graph.num_nodes for graph in data.train]))


def settings_of(name: str, row: str) -> dict[str, Any]:
    """The training settings of a model."""
    if row in PROPERTIES:
        return PROPERTY_SETTINGS | ({"lr": SETTINGS[name]["lr"]} if name != "e2former" else {})
    if row == "organic":
        return SETTINGS[name] | {"weight_decay": WEIGHT_DECAY}
    if row != "alloys":
        return SETTINGS[name]
    own = alloy_training.SETTINGS
    return own if name == "e2former" else own | SETTINGS[name]
