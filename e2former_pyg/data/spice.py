r"""The HDF5 layout of the SPICE dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data, Dataset

from ..units import BOHR, HARTREE
from .cache import cached, processed_name
from .in_memory import source_file, warn_skipped
from .optional import require
from .record import damaged, make_data

ATOMS_PER_READ = 1 << 15
"""Atoms whose positions and gradients are looked at in one piece: about two megabytes."""

POSITIONS, GRADIENTS = "conformations", "dft_total_gradient"
UNITS = {
    POSITIONS: "bohr",
    GRADIENTS: "hartree/bohr",
    "dft_total_energy": "hartree",
    "formation_energy": "hartree",
}


class SPICEDataset(Dataset):
    r"""Conformations of the `SPICE dataset <https://github.com/openmm/spice-dataset>`__, versions
    1 and 2, read from its HDF5 file when they are asked for. Needs
    :obj:`pip install 'e2former-pyg[data]'`.

    The file has a group for each molecule with :obj:`atomic_numbers` :math:`(N)`,
    :obj:`conformations` :math:`(M, N, 3)` in bohr, :obj:`dft_total_energy` :math:`(M)` in
    hartree, :obj:`dft_total_gradient` :math:`(M, N, 3)` in hartree/bohr, :obj:`smiles` and
    :obj:`subset`. It is read once from its beginning to its end, a few megabytes at a time, to
    check it and to make an index, of sixteen bytes for each conformation, that holds the energies.
    Conformations are in the order of the names of their molecules.

    Args:
        path (str): The file.
        root (str, optional): The folder in which the index is kept, in :obj:`root/processed`.
            The file name there changes with the source file and with the arguments. If making it
            is interrupted, it starts again. If :obj:`None`, nothing is written and the index is
            made each time. (default: :obj:`None`)
        transform (callable, optional): Applied to a graph before every access.
            (default: :obj:`None`)
        subsets (list of str, optional): The subsets to read, by the full names that the file
            has for them. (default: :obj:`None`, all)
        energy (str, optional): The energies to read, :obj:`"dft_total_energy"` or
            :obj:`"formation_energy"`. (default: :obj:`"dft_total_energy"`)
        charge (bool, optional): If set to :obj:`True`, gives the total charge of each
            conformation, the sum of the formal charges in the SMILES of its molecule.
            (default: :obj:`True`)
        skip_damaged (bool, optional): If set to :obj:`True`, leaves damaged conformations out,
            counts them in :obj:`num_skipped` and warns. A molecule whose arrays do not fit
            together is left out with all its conformations. (default: :obj:`False`)
        dtype (torch.dtype, optional): The dtype of positions and forces. Energies are float64.
            (default: :obj:`torch.float32`)
        force_reload (bool, optional): If set to :obj:`True`, makes the index again.
            (default: :obj:`False`)

    Raises:
        DamagedDataError: If the file cannot be read, or a conformation has shapes that disagree
            or values that are not finite.
        ImportError: If h5py is not installed.
        ValueError: If :obj:`subsets` are not in the file.

    Shapes:
        - **z:** :math:`(N)`, **pos:** :math:`(N, 3)` in Å, **energy:** :math:`(1)` in eV,
          **forces:** :math:`(N, 3)` in eV/Å, **charge:** :math:`(1)` in e
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        transform: Callable | None = None,
        *,
        subsets: Sequence[str] | None = None,
        energy: str = "dft_total_energy",
        charge: bool = True,
        skip_damaged: bool = False,
        dtype: torch.dtype = torch.float32,
        force_reload: bool = False,
    ) -> None:
        energies = ("dft_total_energy", "formation_energy")
        if energy not in energies:
            raise ValueError(f"`energy` must be one of {list(energies)}, found {energy!r}")
        self.path = source_file(path)
        self.subsets = None if subsets is None else frozenset(subsets)
        self.energy = energy
        self.charge = charge
        self.skip_damaged = skip_damaged
        self.dtype = dtype
        self._handle: tuple[int, Any] | None = None
        super().__init__(None if root is None else os.fspath(root), transform)
        state = cached(
            None if root is None else Path(self.processed_paths[0]), self._index, force_reload
        )
        self._names: list[str] = state["names"]
        self._z: torch.Tensor = state["z"]
        self._ptr: torch.Tensor = state["ptr"]
        self._charge: torch.Tensor = state["charge"]
        self._molecule: torch.Tensor = state["molecule"]
        self._conformation: torch.Tensor = state["conformation"]
        self._energy: torch.Tensor = state["energy"]
        self.num_skipped: int = state["num_skipped"]
        warn_skipped(self.path, self.num_skipped, stacklevel=3)

    @property
    def raw_paths(self) -> list[str]:
        return [str(self.path)]

    @property
    def processed_file_names(self) -> str:
        names = None if self.subsets is None else sorted(self.subsets)
        settings = {
            "class": type(self).__name__,
            "subsets": names,
            "energy": self.energy,
            "charge": self.charge,
            "skip_damaged": self.skip_damaged,
        }
        return processed_name(self.path, settings)

    @property
    def num_atoms(self) -> torch.Tensor:
        """The number of atoms of each conformation, which needs no reading."""
        chosen = torch.as_tensor(list(self.indices()), dtype=torch.long)
        return self._ptr.diff()[self._molecule[chosen].long()]

    def len(self) -> int:
        return self._molecule.numel()

    def get(self, idx: int) -> Data:
        number, row = int(self._molecule[idx]), int(self._conformation[idx])
        name = self._names[number]
        try:
            file = self._file()
            fields = {
                "z": self._z[self._ptr[number] : self._ptr[number + 1]].numpy(),
                "pos": file[f"{name}/{POSITIONS}"][row].astype(np.float64) * BOHR,
                "energy": float(self._energy[idx]) * HARTREE,
                "forces": file[f"{name}/{GRADIENTS}"][row].astype(np.float64) * (-HARTREE / BOHR),
            }
            if self.charge:
                fields["charge"] = int(self._charge[number])
            return make_data(fields, self.dtype)
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise damaged(self.path, idx, f"molecule '{name}', conformation {row}: {error}") from (
                error
            )

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be pickled, and are not for another process.
        return {**self.__dict__, "_handle": None}

    def _file(self) -> Any:
        if self._handle is None or self._handle[0] != os.getpid():
            h5py = require("h5py", "data")
            try:
                self._handle = os.getpid(), h5py.File(self.path, "r")
            except OSError as error:
                raise damaged(self.path, None, f"it is no readable HDF5 file ({error})") from error
        return self._handle[1]

    def _index(self) -> dict[str, Any]:
        file = self._file()
        try:
            groups = list(file)
        except (KeyError, RuntimeError, ValueError) as error:
            raise damaged(self.path, None, f"its groups cannot be listed ({error})") from error
        names: list[str] = []
        elements: list[torch.Tensor] = []
        charges: list[int] = []
        rows: list[np.ndarray] = []
        energies: list[np.ndarray] = []
        seen: set[str] = set()
        record = num_skipped = 0
        for name in groups:
            reason: Exception | None
            try:
                group = file[name]
                if self.subsets is not None:
                    subset = _text(group, "subset")
                    seen.add(subset)
                    if subset not in self.subsets:
                        continue
                size, z, charge = self._check_molecule(group)
                energy, good, reason = self._check_conformations(group, size)
            except (AttributeError, KeyError, OSError, RuntimeError, ValueError) as error:
                size, reason = _size(file, name), error
                good = np.zeros(size, dtype=bool)
            if reason is not None:
                row = int(np.argmin(good))
                if not self.skip_damaged:
                    place = f"molecule '{name}', conformation {row}"
                    raise damaged(self.path, record + row, f"{place}: {reason}") from reason
                num_skipped += int(size - good.sum())
            record += size
            if good.any():
                names.append(name)
                elements.append(z)
                charges.append(charge)
                rows.append(np.flatnonzero(good).astype(np.int32))
                energies.append(energy[good])
        if self.subsets is not None and (missing := self.subsets - seen):
            raise ValueError(f"`subsets`: '{self.path}' has no {sorted(missing)}")
        if not names:
            raise damaged(self.path, None, f"no record to use, {num_skipped} are damaged")
        sizes = torch.tensor([len(row) for row in rows])
        ptr = torch.tensor([0, *(len(z) for z in elements)]).cumsum(0)
        return {
            "names": names,
            "z": torch.cat(elements),
            "ptr": ptr,
            "charge": torch.tensor(charges),
            "molecule": torch.arange(len(names), dtype=torch.int32).repeat_interleave(sizes),
            "conformation": torch.from_numpy(np.concatenate(rows)),
            "energy": torch.from_numpy(np.concatenate(energies)),
            "num_skipped": num_skipped,
        }

    def _check_molecule(self, group: Any) -> tuple[int, torch.Tensor, int]:
        """The number of conformations of a molecule whose arrays fit together, its atomic numbers
        and its charge.
        """
        z = make_data({"z": group["atomic_numbers"][()]}, self.dtype).z.byte()
        size = group[POSITIONS].shape[0]
        if size == 0:  # all were filtered out when the file was made; arrays have shape [0] then
            return 0, z, 0
        for name in (POSITIONS, GRADIENTS, self.energy):
            # Units are noted in newer files only.
            unit = group[name].attrs.get("units", UNITS[name])
            if unit != UNITS[name]:
                raise ValueError(f"`{name}` must be in {UNITS[name]}, found {unit!r}")
            shape = (size,) if name == self.energy else (size, len(z), 3)
            if group[name].shape != shape:
                raise ValueError(
                    f"`{name}` must have shape {list(shape)}, found {list(group[name].shape)}"
                )
        if self.charge:
            if "smiles" not in group:
                raise ValueError("it has no `smiles` for `charge=True`")
            return size, z, formal_charge(_text(group, "smiles"))
        return size, z, 0

    def _check_conformations(
        self, group: Any, size: int
    ) -> tuple[np.ndarray, np.ndarray, ValueError | None]:
        """The energies, which conformations are finite, and what is wrong with the first that is
        not.
        """
        if size == 0:
            return np.zeros(0), np.zeros(0, dtype=bool), None
        energy = group[self.energy][()].astype(np.float64)
        good = np.isfinite(energy)
        reasons = {int(np.argmin(good)): self.energy} if not good.all() else {}
        step = max(1, ATOMS_PER_READ // group[POSITIONS].shape[1])
        for name in (POSITIONS, GRADIENTS):
            for start in range(0, size, step):
                finite = np.isfinite(group[name][start : start + step]).all(axis=(1, 2))
                if not finite.all():
                    reasons.setdefault(start + int(np.argmin(finite)), name)
                good[start : start + step] &= finite
        if not reasons:
            return energy, good, None
        return energy, good, ValueError(f"`{reasons[min(reasons)]}` must be finite")


def formal_charge(smiles: str) -> int:
    """The sum of the charges of the atoms of a SMILES."""
    total = 0
    # Only atoms in brackets have charges: [O-:3], [NH3+], [Ca+2:1], [Mg++].
    for signs, digits in re.findall(r"\[[^\]+-]*(\++|-+)(\d*)[^\]]*\]", smiles):
        total += (1 if signs[0] == "+" else -1) * (int(digits) if digits else len(signs))
    return total


def _text(group: Any, name: str) -> str:
    value = np.ravel(group[name][()])
    if value.size != 1:
        raise ValueError(f"`{name}` must hold one text, found {value.size}")
    return value[0].decode() if isinstance(value[0], bytes) else str(value[0])


def _size(file: Any, name: str) -> int:
    """The number of conformations that a damaged molecule was to have, as far as can be told."""
    try:
        return max(1, int(file[name][POSITIONS].shape[0]))
    except (AttributeError, IndexError, KeyError, OSError, RuntimeError, ValueError):
        return 1
