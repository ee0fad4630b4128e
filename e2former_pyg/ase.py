r"""Potentials as calculators of `ASE <https://ase-lib.org>`__, for its optimizers, molecular
dynamics and analysis.

Needs :obj:`pip install 'e2former-pyg[ase]'`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .models import E2FormerPotential, PotentialOutput
from .running import LABELS, check_elements, check_label, neighbor_list, prepare

if TYPE_CHECKING:
    from ase import Atoms

try:
    from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
except ImportError as error:
    raise ImportError("`ase` is needed; install it by `pip install 'e2former-pyg[ase]'`") from error

__all__ = ["E2FormerCalculator"]

# The attributes of Atoms that the potential reads, beside the cell.
READ = ("positions", "numbers", "pbc")
# Below this volume of an atom in Å³ a cell has collapsed: metallic hydrogen at 500 GPa has 1.2.
SMALLEST_VOLUME = 0.5
# No two nuclei come as near as this (in Å) in matter that a potential is trained on.
CLOSE = 0.4


class E2FormerCalculator(Calculator):
    r"""Energies, forces and stresses of an :class:`~e2former_pyg.E2FormerPotential` for ASE.

    Stress is there for systems that are periodic in three directions and has, as all results,
    ASE's units, sign and (Voigt) order. It is left out until it is asked for, and then computed
    with the rest as long as it is asked for at each step. The total charge and the spin
    multiplicity are :obj:`atoms.info["charge"]` and :obj:`atoms.info["spin"]`, as in
    :class:`~e2former_pyg.data.ASEDataset`; a potential that does not read them accepts neutral
    singlets only. Positions stay in float64 until distances are formed from them, whatever the
    dtype of the potential.

    What simulations run into is reported as early as it can be seen. Errors: positions or cells
    that are not finite, atoms that coincide, a cell below 0.5 Å³ per atom, elements that the
    potential was not trained on, results that are not finite. Warnings, one for each system:
    an atom without any neighbour, as after it has left a molecule, and atoms less than 0.4 Å
    apart. ASE has then written all earlier frames; a run goes on from the last of them.

    Dispersion or another analytical term is added with ASE's
    :class:`~ase.calculators.mixing.SumCalculator`, *e.g.*,
    :obj:`SumCalculator([E2FormerCalculator("model.safetensors"), DFTD3(method="PBE")])`, if the
    training data had none.

    The potential runs by :meth:`~e2former_pyg.E2FormerPotential.compile_for_inference`, on a GPU as
    CUDA graphs.

    Args:
        potential (E2FormerPotential or str): The potential, of which a copy is made, or the path of
            a checkpoint.
        device (torch.device or str, optional): Where to compute.
            (default: :obj:`None`, where the potential is; checkpoints are loaded to the CPU)
        dtype (torch.dtype, optional): :obj:`torch.float32` or :obj:`torch.float64`.
            (default: :obj:`None`, that of the potential)
        skin (float, optional): The skin of the neighbour list in Å; see
            :class:`~e2former_pyg.graph.VerletList`. (default: :obj:`None`, which is :obj:`1.0` on
            a GPU, where edges beyond the cutoff cost next to nothing, and :obj:`0.5` elsewhere)

    Attributes:
        potential (E2FormerPotential): What is run.
        neighbors (VerletList): The neighbour list.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is damaged.

    Example:
        >>> from ase import Atoms
        >>> from e2former_pyg import E2FormerPotential
        >>> from e2former_pyg.ase import E2FormerCalculator
        >>> potential = E2FormerPotential(hidden_channels=16, num_layers=1, lmax=1, heads=2)
        >>> atoms = Atoms("H2", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]])
        >>> atoms.calc = E2FormerCalculator(potential)
        >>> atoms.get_forces().shape
        (2, 3)
    """

    implemented_properties: list[str] = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        potential: E2FormerPotential | str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        skin: float | None = None,
    ) -> None:
        super().__init__()
        self._run = prepare(potential, device, dtype).compile_for_inference()
        self.potential = self._run.potential
        self.device = next(self.potential.parameters()).device
        self.neighbors = neighbor_list(self.potential.cutoff, skin, self.device)
        if self.potential.forces is None:
            self.implemented_properties = [
                name for name in type(self).implemented_properties if name != "forces"
            ]
        self._numbers: np.ndarray | None = None
        self._z = torch.empty(0, dtype=torch.long)
        self._cell: tuple[Tensor, Tensor] | None = None
        self._stress_wanted = False
        self._warned: set[str] = set()

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, of what the potential reads.

        Compares exactly, which costs a fifth of what ASE's comparison with a tolerance does.
        """
        old = self.atoms
        if old is None:
            return list(all_changes)
        pairs = {name: (getattr(old, name), getattr(atoms, name)) for name in READ}
        pairs["cell"] = old.cell.array, atoms.cell.array
        changes = [name for name, pair in pairs.items() if not np.array_equal(*pair)]
        if any(old.info.get(name) != atoms.info.get(name) for name in LABELS):
            changes.append("info")
        return changes

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """A result, computed if it is not there; ASE calls this."""
        if name == "stress" and allow_calculation:
            self._stress_wanted = True
        return super().get_property(name, atoms, allow_calculation)

    @torch.inference_mode(False)  # or the list would be of no use outside
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Computes all properties at once, of which the stress only if it is asked for or was for
        the structure before; ASE calls this.
        """
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms  # a copy
        assert atoms is not None
        solid = bool(atoms.pbc.all())
        stress = solid and (self._stress_wanted or "stress" in properties)
        self._stress_wanted = "stress" in properties
        self._check_system(atoms, solid)
        pos = torch.from_numpy(atoms.positions)
        cell = pbc = None
        if atoms.pbc.any():
            cell = torch.from_numpy(atoms.cell.array)
            pbc = None if solid else torch.from_numpy(atoms.pbc)
        builds = self.neighbors.num_builds
        # The list's check looks at positions on the CPU, so that it does not wait for a GPU.
        edge_index, edge_shift = self.neighbors.update(pos, None, cell, pbc)
        pos = pos.to(self.device)
        if self.neighbors.num_builds > builds:
            self._inspect(pos, edge_index, edge_shift)
        labels = {name: self._label(atoms, name) for name in LABELS}
        out = self._evaluate(
            self._z,
            pos,
            edge_index=edge_index,
            edge_shift=edge_shift,
            cell=None if cell is None else self._on_device(cell),
            pbc=None if pbc is None else pbc.to(self.device),
            stress=stress,
            **labels,
        )
        results = self._as_results(out, stress)
        if len(system_changes) == 0:
            # Asked for later: what was given out before stays, to the last bit.
            results |= self.results
        self.results = results

    @torch.no_grad()
    def _evaluate(
        self, z: Tensor, pos: Tensor, *, stress: bool, **inputs: Tensor | None
    ) -> PotentialOutput:
        """The one call of the potential, on tensors of its device."""
        self.potential.stress = stress
        return self._run(z, pos, batch_size=1, **inputs)

    def _as_results(self, out: PotentialOutput, stress: bool) -> dict[str, Any]:
        tensors = [out.energy, out.atomic_energies, out.forces, out.stress if stress else None]
        # A copy of each would wait for a GPU again.
        together = torch.cat([value.double().flatten() for value in tensors if value is not None])
        ends = np.cumsum([0 if value is None else value.numel() for value in tensors])
        energies, *parts = np.split(together.cpu().numpy(), ends[:-1])
        energy = float(energies[0])
        results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "energies": parts[0],
        }
        if out.forces is not None:
            results["forces"] = parts[1].reshape(-1, 3)
        if stress and out.stress is not None:
            # Voigt's order: xx, yy, zz, yz, xz, xy.
            results["stress"] = parts[2][[0, 4, 8, 5, 2, 1]]
        for name, value in results.items():
            if not np.isfinite(value).all():
                raise CalculationFailed(
                    f"the potential gave {name} that are not finite; the structure is far from "
                    "what it was trained on"
                )
        return results

    def _on_device(self, cell: Tensor) -> Tensor:
        """The cell as the potential reads it, the same tensor for the same cell."""
        if self._cell is None or not torch.equal(cell, self._cell[0]):
            own = cell.clone()
            self._cell = own, own.to(self.device)
        return self._cell[1]

    def _check_system(self, atoms: Atoms, solid: bool) -> None:
        if self._numbers is None or not np.array_equal(atoms.numbers, self._numbers):
            check_elements(self.potential, atoms.numbers.tolist())
            self._numbers = atoms.numbers.copy()
            self._z = torch.from_numpy(self._numbers).long().to(self.device)
            self._warned.clear()
        if solid and len(atoms) > 0 and atoms.cell.rank == 3:
            volume = atoms.cell.volume / len(atoms)
            if volume < SMALLEST_VOLUME:
                raise ValueError(
                    f"`cell` has collapsed to {volume:.3g} Å³ per atom, expected at least "
                    f"{SMALLEST_VOLUME}: {atoms.cell.array.tolist()}"
                )

    def _label(self, atoms: Atoms, name: str) -> Tensor | None:
        value = atoms.info.get(name)
        number = None if value is None else check_label(self.potential, name, value)
        return None if number is None else torch.tensor([number], device=self.device)

    def _inspect(self, pos: Tensor, edge_index: Tensor, edge_shift: Tensor | None) -> None:
        """Warns of what is no error but seldom meant, whenever the list is new."""
        if pos.size(0) < 2:
            return
        source, target = edge_index[0], edge_index[1]
        alone = target.bincount(minlength=pos.size(0)) == 0
        if bool(alone.any()):
            self._warn(
                "alone",
                f"atom {int(alone.nonzero()[0])} has no neighbour within "
                f"{self.potential.cutoff + self.neighbors.skin:.3g} Å; it may have left the system",
            )
        vectors = pos[target] - pos[source]
        if edge_shift is not None:
            vectors = vectors - edge_shift
        squares = vectors.square().sum(1)
        if squares.numel() > 0 and float(squares.min()) < CLOSE**2:
            edge = int(squares.argmin())
            self._warn(
                "close",
                f"atoms {int(source[edge])} and {int(target[edge])} are "
                f"{float(squares[edge]) ** 0.5:.3g} Å apart, nearer than any in training",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)
