"""What whole models are run on, in the forms in which libraries ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from attention_systems import DENSITY, ELEMENTS
from model_systems import ASPIRIN, ETHANOL, LARGE, SMALL, System, molecules, solid
from peers_cases import MOLECULES, Case
from torch import Tensor

TEXTS = {"ethanol": ETHANOL, "aspirin": ASPIRIN}


@dataclass(frozen=True, eq=False)
class Atoms:
    """The atoms and edges of a case, and the settings of our potential for them, which others
    follow as far as they have the same.
    """

    system: System
    settings: dict[str, Any]
    cell: Tensor | None
    """Of a periodic cube."""

    @classmethod
    def make(cls, case: Case, device: str) -> Atoms:
        """The molecules or the solid that a case names, whose models are evaluated on a solid."""
        if case.part in MOLECULES:
            settings = SMALL | {"hidden_channels": case.channels}
            count = case.atoms // MOLECULES[case.part][0]
            system = molecules(TEXTS[case.part], count, settings["cutoff"], device)
            return cls(system, settings, None)
        settings = LARGE | {"hidden_channels": case.channels, "cutoff": case.cutoff}
        length = (case.atoms / DENSITY) ** (1 / 3)
        cell = length * torch.eye(3, dtype=torch.float32, device=device)
        return cls(solid(case.atoms, device, case.cutoff), settings, cell)

    @property
    def pos(self) -> Tensor:
        return self.system.pos

    @property
    def batch(self) -> Tensor:
        return self.system.batch

    @property
    def edge_index(self) -> Tensor:
        return self.system.edge_index.as_tensor()

    @cached_property
    def types(self) -> Tensor:
        """The place of each atom's element among those of the benchmark."""
        elements = torch.tensor(ELEMENTS, device=self.pos.device)
        return torch.searchsorted(elements, self.system.z)

    @cached_property
    def edge_shift(self) -> Tensor:
        """Zero between the atoms of molecules."""
        shift = self.system.edge_shift
        return self.pos.new_zeros(self.edge_index.size(1), 3) if shift is None else shift

    @cached_property
    def counts(self) -> Tensor:
        """Atoms of each graph."""
        return self.batch.bincount(minlength=self.system.batch_size)

    def vectors(self, pos: Tensor) -> Tensor:
        """From the target to the source of each edge."""
        source, target = self.edge_index
        return pos.index_select(0, source) - pos.index_select(0, target) + self.edge_shift
