"""Models and what they are run on in the benchmark of whole models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from attention_measure import Meter
from attention_systems import DENSITY, ELEMENTS, make_atoms
from torch import Tensor
from torch_geometric import EdgeIndex

from e2former_pyg import E2FormerPotential
from e2former_pyg.graph import radius_graph

__all__ = ["DENSITY", "System", "describe", "make_model", "molecules", "relative", "solid", "timed"]

CUTOFF = 4.924
LARGE = {
    "hidden_channels": 128,
    "num_layers": 4,
    "lmax": 2,
    "cutoff": CUTOFF,
    "avg_num_neighbors": 50.0,
    "elements": ELEMENTS,
}
SMALL = {
    "hidden_channels": 64,
    "num_layers": 3,
    "lmax": 2,
    "cutoff": 5.0,
    "avg_num_neighbors": 10.0,
    "elements": ELEMENTS,
}

# Ethanol and aspirin near their minima, in Å.
ETHANOL = """
C 0.00 -0.56 0.00; C -1.22 0.35 0.00; O 1.16 0.24 0.00; H 0.02 -1.20 0.88; H 0.02 -1.20 -0.88;
H -2.13 -0.25 0.00; H -1.22 0.99 0.88; H -1.22 0.99 -0.88; H 1.93 -0.33 0.00
"""
ASPIRIN = """
C 1.23 0.55 0.01; C 0.02 -0.14 -0.24; C -1.19 0.54 -0.12; C -1.21 1.88 0.22; C -0.01 2.56 0.46;
C 1.20 1.89 0.35; C 2.54 -0.12 -0.09; O 3.57 0.46 0.16; O 2.47 -1.39 -0.50; O 0.03 -1.49 -0.57;
C -0.12 -2.39 0.45; O -0.24 -2.07 1.60; C -0.10 -3.80 -0.05; H -2.11 0.00 -0.31; H -2.15 2.40 0.31;
H -0.02 3.61 0.73; H 2.14 2.41 0.53; H 3.37 -1.74 -0.53; H -0.94 -3.95 -0.73; H -0.18 -4.48 0.80;
H 0.83 -4.00 -0.58
"""
_NUMBERS = {"H": 1, "C": 6, "O": 8}


def molecule(text: str) -> tuple[Tensor, Tensor]:
    """Atomic numbers and positions."""
    rows = [entry.split() for entry in text.replace("\n", " ").split(";")]
    z = torch.tensor([_NUMBERS[row[0]] for row in rows])
    return z, torch.tensor([[float(value) for value in row[1:]] for row in rows])


@dataclass(frozen=True, eq=False)
class System:
    """Graphs with labels, which are random."""

    z: Tensor
    pos: Tensor
    batch: Tensor
    batch_size: int
    edge_index: EdgeIndex
    edge_shift: Tensor | None

    @property
    def graph(self) -> dict[str, Any]:
        """What models take besides ``z`` and ``pos``."""
        return {
            "batch": self.batch,
            "batch_size": self.batch_size,
            "edge_index": self.edge_index,
            "edge_shift": self.edge_shift,
        }

    def to(self, dtype: torch.dtype) -> System:
        shift = None if self.edge_shift is None else self.edge_shift.to(dtype)
        return System(
            self.z, self.pos.to(dtype), self.batch, self.batch_size, self.edge_index, shift
        )

    def labels(self) -> dict[str, Tensor]:
        """Positions, energies and forces."""
        generator = torch.Generator().manual_seed(1)
        energy = torch.randn(self.batch_size, dtype=torch.float64, generator=generator)
        forces = torch.randn(self.pos.shape, generator=generator)
        labels = {"energy": energy, "forces": forces.to(self.pos.dtype)}
        return {"pos": self.pos, **{k: v.to(self.pos.device) for k, v in labels.items()}}


def solid(atoms: int, device: str, cutoff: float = CUTOFF) -> System:
    """Atoms at 0.1/Å³ in a periodic cube."""
    pos, graph = make_atoms(atoms, cutoff, device)
    assert isinstance(graph.z, Tensor)
    batch = torch.zeros(atoms, dtype=torch.long, device=device)
    return System(graph.z, pos, batch, 1, graph.edge_index, graph.edge_shift)


def molecules(text: str, count: int, cutoff: float, device: str) -> System:
    """Distorted copies of a molecule."""
    z, pos = molecule(text)
    generator = torch.Generator().manual_seed(0)
    pos = pos.repeat(count, 1)
    pos = (pos + 0.05 * torch.randn(pos.shape, generator=generator)).to(device)
    batch = torch.arange(count, device=device).repeat_interleave(z.numel())
    edges = EdgeIndex(
        radius_graph(pos, cutoff, batch)[0], sparse_size=(len(pos), len(pos)), sort_order="col"
    )
    return System(z.repeat(count).to(device), pos, batch, count, edges, None)


def make_model(settings: dict[str, Any], device: str, backend: str = "auto") -> E2FormerPotential:
    torch.manual_seed(0)
    return E2FormerPotential(**settings, backend=backend).to(device)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def describe(name: str, system: System) -> dict[str, Any]:
    return {
        "case": name,
        "atoms": system.z.numel(),
        "graphs": system.batch_size,
        "edges": system.edge_index.size(1),
    }


def timed(meter: Meter, runs: dict[str, Callable[[], Any]], right: bool) -> dict[str, Any]:
    """Times of ``ours``, of others, and the ratio to ``baseline``, if there is one."""
    timings = dict(zip(runs, meter.times(list(runs.values())), strict=True))
    record: dict[str, Any] = {"right": right, "runs": timings["ours"].runs}
    for name, timing in timings.items():
        record[f"{name}_ms"], record[f"{name}_spread"] = timing.median, timing.spread
    baseline = timings.get("baseline")
    record["baseline"] = None if baseline is None else "backend='torch'"
    known = right and baseline is not None
    record["ratio"] = baseline.median / timings["ours"].median if known else None
    return record
