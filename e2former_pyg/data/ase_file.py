r"""Files that ASE reads."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .in_memory import FileDataset, Record
from .optional import require
from .record import damaged
from .xyz import xyz_frames

KEYS = {name: name for name in ("energy", "forces", "stress", "charge", "spin")}


class ASEDataset(FileDataset):
    r"""Molecules and crystals from extended XYZ or from any other file that
    `ASE <https://ase-lib.org>`__ reads, such as its trajectories, in ASE's units. Needs
    :obj:`pip install 'e2former-pyg[ase]'`.

    Energy, forces and stress are those of the calculator that the file holds, as they are:
    constraints are not applied to forces. All structures must have the same labels. All get a
    cell and the flags of its periodicity, zero and :obj:`False` in open systems, so that one file
    may hold molecules and crystals.

    Args:
        path (str): The file. It is read one structure at a time.
        root (str, optional): The folder in which processed graphs are kept, in
            :obj:`root/processed`. The file name there changes with the source file and with the
            arguments, transforms being told apart by their :obj:`repr`. Processing that takes
            longer than a minute is kept there once a minute and, when it was interrupted, goes on
            from there. If :obj:`None`, nothing is written. (default: :obj:`None`)
        transform (callable, optional): Applied to a graph before every access.
            (default: :obj:`None`)
        pre_transform (callable, optional): Applied to a graph before it is kept. A
            :obj:`ValueError` that it raises counts as damage. (default: :obj:`None`)
        pre_filter (callable, optional): Says which graphs are kept, before
            :obj:`pre_transform`. (default: :obj:`None`)
        keys (dict, optional): The names that labels have in the file, among the results of the
            calculator, :obj:`atoms.info` and :obj:`atoms.arrays`, such as
            :obj:`{"energy": "REF_energy"}`. Every structure must have these labels, but for the
            stress, which is zero then in systems that are not periodic in three directions.
            Other names than :obj:`"energy"`, :obj:`"forces"`, :obj:`"stress"`, :obj:`"charge"`
            and :obj:`"spin"` are labels of graphs. (default: :obj:`None`, those five under these
            names, where they are there)
        format (str, optional): The name of the format in ASE.
            (default: :obj:`None`, by the name and the beginning of the file)
        skip_damaged (bool, optional): If set to :obj:`True`, leaves damaged structures out,
            counts them in :obj:`num_skipped` and warns. What follows a place at which ASE
            cannot go on counts as one. (default: :obj:`False`)
        dtype (torch.dtype, optional): The dtype of positions, forces, cells and stresses.
            Energies are float64. (default: :obj:`torch.float32`)
        force_reload (bool, optional): If set to :obj:`True`, processes the file again.
            (default: :obj:`False`)

    Raises:
        DamagedDataError: If the file cannot be read, or a structure lacks labels or has values
            that are not finite.
        ImportError: If ASE is not installed.

    Shapes:
        - **z:** :math:`(N)`, **pos:** :math:`(N, 3)` in Å, **cell:** :math:`(1, 3, 3)` in Å,
          **pbc:** :math:`(1, 3)`
        - **energy:** :math:`(1)` in eV, **forces:** :math:`(N, 3)` in eV/Å, **stress:**
          :math:`(1, 3, 3)` in eV/Å³, **charge** and **spin** (its multiplicity): :math:`(1)`
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        transform: Callable | None = None,
        pre_transform: Callable | None = None,
        pre_filter: Callable | None = None,
        *,
        keys: Mapping[str, str] | None = None,
        format: str | None = None,
        skip_damaged: bool = False,
        dtype: torch.dtype = torch.float32,
        force_reload: bool = False,
    ) -> None:
        self.keys = dict(keys or {})
        self.format = format
        if taken := {"z", "pos", "cell", "pbc"} & self.keys.keys():
            raise ValueError(f"`keys` must name labels, found {sorted(taken)}")
        super().__init__(
            path,
            root,
            transform,
            pre_transform,
            pre_filter,
            skip_damaged=skip_damaged,
            dtype=dtype,
            force_reload=force_reload,
            keys=sorted(self.keys.items()),
            format=format,
        )

    def read(self, start: int) -> Iterator[Record]:
        formats = require("ase.io.formats", "ase")
        try:
            kind = self.format or formats.filetype(str(self.path))
        except Exception as error:  # whatever a reader of ASE may raise
            raise damaged(self.path, None, f"ASE cannot tell its format ({error})") from error
        xyz = kind == "extxyz"
        structures = _read_xyz(self.path, start) if xyz else _read_any(self.path, kind, start)
        for index, atoms in enumerate(structures, start):
            try:
                yield index, atoms if isinstance(atoms, ValueError) else self._fields(atoms)
            except ValueError as error:
                yield index, error

    def _fields(self, atoms: Any) -> dict[str, Any]:
        periodic = bool(atoms.pbc.all())
        fields = {
            "z": atoms.numbers,
            "pos": atoms.positions,
            "cell": atoms.cell.array,
            "pbc": atoms.pbc,
        }
        results = getattr(atoms.calc, "results", {})
        for name, key in {**KEYS, **self.keys}.items():
            places = (results, atoms.info, atoms.arrays)
            value = next((place[key] for place in places if place.get(key) is not None), None)
            if value is None and name in self.keys:
                if name != "stress" or periodic:
                    raise ValueError(f"it has no `{key}`")
                value = np.zeros((3, 3))
            if value is not None:
                fields[name] = _matrix(value) if name == "stress" else value
        return fields


def _matrix(stress: Any) -> np.ndarray:
    """The matrix of a stress that may be in Voigt's order: xx, yy, zz, yz, xz, xy."""
    stress = np.asarray(stress)
    if stress.shape == (6,):
        return stress[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    return stress.reshape(3, 3) if stress.shape == (9,) else stress


def _read_xyz(path: Path, start: int) -> Iterator[Any]:
    # ASE keeps the places of all frames and ends at the first that it cannot parse. Frame by frame
    # it can go on, with one of them in memory.
    read_xyz = require("ase.io.extxyz", "ase").read_xyz
    with require("ase.io.formats", "ase").open_with_compression(str(path), "rt") as file:
        for text in itertools.islice(xyz_frames(file), start, None):
            if isinstance(text, ValueError):
                yield text
                continue
            try:
                yield next(iter(read_xyz(io.StringIO(text), slice(0, 1))))
            except Exception as error:  # whatever a reader of ASE may raise
                yield ValueError(f"ASE cannot read it ({type(error).__name__}: {error})")


def _read_any(path: Path, kind: str, start: int) -> Iterator[Any]:
    iread = require("ase.io", "ase").iread
    index, failures = start, 0
    # A reader ends with its first error; another one may still read what comes after it.
    while failures < 2:
        try:
            for atoms in iread(str(path), index=slice(index, None), format=kind):
                yield atoms
                index, failures = index + 1, 0
            return
        except Exception as error:  # whatever a reader of ASE may raise
            if failures == 0:
                yield ValueError(f"ASE cannot read it ({type(error).__name__}: {error})")
            index, failures = index + 1, failures + 1
