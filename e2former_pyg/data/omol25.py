r"""The ASE databases of the OMol25 dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data, Dataset

from .aselmdb import ASELMDB, open_database
from .cache import cached, processed_name
from .in_memory import source_file, warn_skipped
from .record import DamagedDataError, damaged, label_names, make_data

MAX_OPEN = 64
"""Files that a dataset holds open at a time."""

FIELDS = {"z": "numbers", "pos": "positions"} | {
    name: name for name in ("energy", "forces", "charge", "spin")
}


class OMol25Dataset(Dataset):
    r"""Molecules of `OMol25 <https://huggingface.co/facebook/OMol25>`__, read from its
    :obj:`.aselmdb` files when they are asked for, in ASE's units. Needs
    :obj:`pip install 'e2former-pyg[data]'`.

    The files are databases of ASE in LMDB, whose rows hold the atoms, energy and forces and, in
    what becomes :obj:`atoms.info`, total charge, spin multiplicity and much else. Molecules are in
    the order of the files and of the ids in them.

    Opening the dataset reads no row: four bytes for each are kept in memory, and a damaged one
    raises when it is asked for. With :obj:`skip_damaged=True` all rows are read once, one at a
    time, to find out which can be used.

    Args:
        path (str or list of str): A file, several files, or a folder whose :obj:`.aselmdb` files
            are read in the order of their names.
        root (str, optional): The folder in which the lists of usable rows that
            :obj:`skip_damaged=True` makes are kept, one for each file, in :obj:`root/processed`.
            The names there change with the source file and with the arguments. A search that is
            interrupted goes on with the file that it was at. If :obj:`None`, nothing is written
            and all is read each time. (default: :obj:`None`)
        transform (callable, optional): Applied to a graph before every access.
            (default: :obj:`None`)
        labels (list of str, optional): Further numbers of :obj:`atoms.info` to give, in float64
            and in their own units, such as :obj:`"homo_lumo_gap"`. All molecules must have them.
            (default: :obj:`()`)
        skip_damaged (bool, optional): If set to :obj:`True`, leaves damaged rows out, counts
            them in :obj:`num_skipped` and warns. (default: :obj:`False`)
        dtype (torch.dtype, optional): The dtype of positions and forces. Energies are float64.
            (default: :obj:`torch.float32`)
        force_reload (bool, optional): If set to :obj:`True`, looks for damaged rows again.
            (default: :obj:`False`)

    Raises:
        DamagedDataError: If a file cannot be read, or, when it is asked for, a row cannot be
            read, lacks energy, forces, charge, spin or labels, has values that are not finite, or
            is periodic.
        FileNotFoundError: If :obj:`path` names no file.
        ImportError: If ASE or its LMDB backend is not installed.

    Shapes:
        - **z:** :math:`(N)`, **pos:** :math:`(N, 3)` in Å, **energy:** :math:`(1)` in eV,
          **forces:** :math:`(N, 3)` in eV/Å, **charge:** :math:`(1)` in e, **spin:**
          :math:`(1)`, the multiplicity
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        root: str | os.PathLike[str] | None = None,
        transform: Callable | None = None,
        *,
        labels: Sequence[str] = (),
        skip_damaged: bool = False,
        dtype: torch.dtype = torch.float32,
        force_reload: bool = False,
    ) -> None:
        if taken := {"z", "pos", *FIELDS} & set(labels):
            raise ValueError(f"`labels` must name further values, found {sorted(taken)}")
        self.paths = source_files(path)
        self.labels = label_names(labels)
        self.skip_damaged = skip_damaged
        self.dtype = dtype
        self._database = lru_cache(MAX_OPEN)(open_database)
        super().__init__(None if root is None else os.fspath(root), transform)
        states = []
        for number, file in enumerate(self.paths):
            kept = Path(self.processed_paths[number]) if skip_damaged and root is not None else None
            states.append(cached(kept, partial(self._index, file), force_reload))
        self._ids: list[torch.Tensor] = [state["ids"] for state in states]
        self._ends = np.cumsum([ids.numel() for ids in self._ids])
        self.num_skipped: int = sum(state["num_skipped"] for state in states)
        if len(self) == 0:
            found = f"no record to use, {self.num_skipped} are damaged"
            raise damaged(self.paths[0].parent, None, found)
        for file, state in zip(self.paths, states, strict=True):
            warn_skipped(file, state["num_skipped"], stacklevel=3)

    @property
    def raw_paths(self) -> list[str]:
        return [str(path) for path in self.paths]

    @property
    def processed_file_names(self) -> list[str]:
        settings = {"class": type(self).__name__, "labels": self.labels}
        return [processed_name(path, settings) for path in self.paths]

    def len(self) -> int:
        return int(self._ends[-1])

    def get(self, idx: int) -> Data:
        number = int(np.searchsorted(self._ends, idx, side="right"))
        ids, path = self._ids[number], self.paths[number]
        place = idx - int(self._ends[number]) + ids.numel()
        row_id = int(ids[place])
        try:
            return self._read(self._database(path), row_id)
        except DamagedDataError:  # of the file
            raise
        except ValueError as error:
            raise damaged(path, place, f"id {row_id}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be pickled.
        return {name: value for name, value in self.__dict__.items() if name != "_database"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _database=lru_cache(MAX_OPEN)(open_database))

    def _read(self, database: ASELMDB, row_id: int) -> Data:
        row = database.row(row_id)
        names = {**FIELDS, **{name: name for name in self.labels}}
        if missing := [key for key in names.values() if row.get(key) is None]:
            raise ValueError(f"it has no {missing}")
        if np.any(row.get("pbc", False)):
            raise ValueError("it is periodic, expected a molecule")
        return make_data({name: row[key] for name, key in names.items()}, self.dtype)

    def _index(self, path: Path) -> dict[str, Any]:
        database = open_database(path)
        ids = database.ids()
        good = [n for n in ids if self._is_good(database, n)] if self.skip_damaged else ids
        return {
            "ids": torch.tensor(good, dtype=torch.int32),
            "num_skipped": len(ids) - len(good),
        }

    def _is_good(self, database: ASELMDB, row_id: int) -> bool:
        try:
            self._read(database, row_id)
        except DamagedDataError:  # of the file
            raise
        except ValueError:
            return False
        return True


def source_files(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[Path]:
    """The files that a path, several paths or a folder name."""
    if not isinstance(path, str | os.PathLike):
        files = [source_file(each) for each in path]
        if not files:
            raise FileNotFoundError("`path` must name at least one file, found none")
        return files
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return [source_file(path)]
    files = sorted(folder.glob("*.aselmdb"))
    if not files:
        raise FileNotFoundError(f"`path` must hold .aselmdb files, found none in '{folder}'")
    return files
