r"""The :obj:`.npz` layout of this project."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .in_memory import FileDataset, Record
from .record import damaged, label_names

PER_FRAME = ("energy", "cell", "stress", "charge", "spin")
SPLITS = {"train": 0, "val": 1}

MD17_KEYS = {"pos": "R", "energy": "E", "forces": "F"}
"""The arrays of the files of MD17."""

REVISED_MD17_KEYS = {"z": "nuclear_charges", "pos": "coords", "energy": "energies"}
"""The arrays of the files of revised MD17."""


class NPZDataset(FileDataset):
    r"""Molecules and crystals from an :obj:`.npz` file in eV and Å.

    Files of one molecule hold :obj:`z` :math:`(N)`, :obj:`pos` and, optionally, :obj:`forces`
    :math:`(F, N, 3)` for :math:`F` frames. Files of graphs of any size hold :obj:`z` :math:`(A)`,
    :obj:`pos` and :obj:`forces` :math:`(A, 3)` of all atoms in a row and :obj:`ptr`
    :math:`(F + 1)`: frame :math:`i` has the atoms :obj:`ptr[i]:ptr[i + 1]`. Both hold
    :obj:`energy` :math:`(F)` and, optionally, :obj:`cell` and :obj:`stress` :math:`(F, 3, 3)`,
    :obj:`pbc` :math:`(3)` or :math:`(F, 3)`, :obj:`charge`, :obj:`spin` and :obj:`split`
    :math:`(F)`.

    Files with other names for these arrays can be read with :obj:`keys`, and in other units with
    :class:`~e2former_pyg.transforms.ConvertUnits`. So the files of MD17, original and revised,
    keep the digits of their energies, which PyG's :class:`~torch_geometric.datasets.MD17` casts to
    float32:

    .. code-block:: python

        NPZDataset("md17_ethanol.npz", keys=MD17_KEYS, pre_transform=ConvertUnits("kcal/mol"))
        NPZDataset("rmd17_ethanol.npz", keys=REVISED_MD17_KEYS,
                   pre_transform=ConvertUnits("kcal/mol"))

    Args:
        path (str): The file.
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
        split (str, optional): Keep only the frames of this part, :obj:`"train"` or
            :obj:`"val"`. (default: :obj:`None`, all)
        labels (list of str, optional): Further arrays :math:`(F, *)` of the file to keep, in
            float64 and in their own units. (default: :obj:`()`)
        keys (dict, optional): The names that arrays have in the file, where they have others, such
            as :obj:`{"energy": "E"}`. (default: :obj:`None`)
        skip_damaged (bool, optional): If set to :obj:`True`, leaves damaged frames out, counts
            them in :obj:`num_skipped` and warns. (default: :obj:`False`)
        dtype (torch.dtype, optional): The dtype of positions, forces, cells and stresses.
            Energies are float64. (default: :obj:`torch.float32`)
        force_reload (bool, optional): If set to :obj:`True`, processes the file again.
            (default: :obj:`False`)

    Raises:
        DamagedDataError: If the file cannot be read, or a frame has shapes that disagree or
            values that are not finite.
        ValueError: If :obj:`split` or :obj:`labels` are not in the file.

    Shapes:
        - **z:** :math:`(N)`, **pos:** :math:`(N, 3)` in Å, **energy:** :math:`(1)` in eV,
          **forces:** :math:`(N, 3)` in eV/Å
        - **cell:** :math:`(1, 3, 3)` in Å, **pbc:** :math:`(1, 3)`,
          **stress:** :math:`(1, 3, 3)` in eV/Å³, **charge** and **spin:** :math:`(1)`
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        transform: Callable | None = None,
        pre_transform: Callable | None = None,
        pre_filter: Callable | None = None,
        *,
        split: str | None = None,
        labels: Sequence[str] = (),
        keys: Mapping[str, str] | None = None,
        skip_damaged: bool = False,
        dtype: torch.dtype = torch.float32,
        force_reload: bool = False,
    ) -> None:
        if split is not None and split not in SPLITS:
            raise ValueError(f"`split` must be one of {list(SPLITS)}, found {split!r}")
        self.split = split
        self.labels = label_names(labels)
        self.keys = dict(keys or {})
        super().__init__(
            path,
            root,
            transform,
            pre_transform,
            pre_filter,
            skip_damaged=skip_damaged,
            dtype=dtype,
            force_reload=force_reload,
            split=split,
            labels=self.labels,
            keys=sorted(self.keys.items()),
        )

    def read(self, start: int) -> Iterator[Record]:
        arrays = self._arrays()
        per_frame = [name for name in (*PER_FRAME, *self.labels) if name in arrays]
        ragged = "ptr" in arrays
        lengths = [len(arrays[name]) for name in per_frame]
        # The longest array counts, so that frames which another one lacks are found.
        if ragged:
            lengths.append(len(arrays["ptr"]) - 1)
        else:
            lengths += [len(arrays[name]) for name in ("pos", "forces") if name in arrays]
        if "pbc" in arrays and arrays["pbc"].ndim > 1:
            lengths.append(len(arrays["pbc"]))
        for index in range(start, max(lengths)):
            if self.split is not None:
                split = arrays["split"]
                if index < len(split) and split[index] != SPLITS[self.split]:
                    continue
            try:
                fields = self._atoms(arrays, index) if ragged else self._frame(arrays, index)
                for name in per_frame:
                    fields[name] = _entry(arrays, name, index)
                if "pbc" in arrays:
                    pbc = arrays["pbc"]
                    fields["pbc"] = pbc if pbc.ndim == 1 else _entry(arrays, "pbc", index)
                if self.split is not None:
                    _entry(arrays, "split", index)
                yield index, fields
            except ValueError as error:
                yield index, error

    def _arrays(self) -> dict[str, np.ndarray]:
        names = {"z", "pos", "forces", "ptr", "pbc", *PER_FRAME, *self.labels}
        names |= set() if self.split is None else {"split"}
        if unknown := self.keys.keys() - names:
            raise ValueError(f"`keys` must be of {sorted(names)}, found {sorted(unknown)}")
        in_file = {name: self.keys.get(name, name) for name in names}
        found = _load(self.path, set(in_file.values()))
        arrays = {name: found[key] for name, key in in_file.items() if key in found}
        for argument, wanted in (
            ("split", {"split"} & names),
            ("labels", set(self.labels)),
            ("keys", self.keys.keys()),
        ):
            if missing := [in_file[name] for name in wanted if name not in arrays]:
                raise ValueError(f"`{argument}`: '{self.path}' has no {sorted(missing)}")
        if missing := [in_file[n] for n in ("z", "pos", "energy") if n not in arrays]:
            raise damaged(self.path, None, f"it has no {sorted(missing)}")
        if arrays["energy"].shape[1:] == (1,):  # as in MD17
            arrays["energy"] = arrays["energy"][:, 0]
        dims = {"z": 1, "ptr": 1, "energy": 1, "split": 1}
        dims["pos"] = dims["forces"] = 2 if "ptr" in arrays else 3
        for name, array in arrays.items():
            ndim = dims.get(name, max(array.ndim, 1))
            if array.ndim != ndim:
                reason = f"`{name}` must have {ndim} dimensions, found shape {list(array.shape)}"
                raise damaged(self.path, None, reason)
        if "ptr" in arrays and (len(arrays["ptr"]) == 0 or arrays["ptr"].dtype.kind not in "iu"):
            raise damaged(self.path, None, "`ptr` must hold the first atom of each frame")
        if "ptr" in arrays:
            if arrays["ptr"][0] != 0:
                raise damaged(self.path, 0, f"`ptr` must begin with 0, found {arrays['ptr'][0]}")
            for name in ("pos", "z", "forces"):
                if name in arrays and arrays["ptr"][-1] < len(arrays[name]):
                    rows = f"`{name}` has {len(arrays[name])} rows"
                    reason = f"{rows}, `ptr` ends at {arrays['ptr'][-1]}"
                    raise damaged(self.path, len(arrays["ptr"]) - 1, reason)
        return arrays

    @staticmethod
    def _frame(arrays: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
        fields: dict[str, Any] = {"z": arrays["z"]}
        for name in ("pos", "forces"):
            if name in arrays:
                fields[name] = _entry(arrays, name, index)
        return fields

    @staticmethod
    def _atoms(arrays: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
        start = int(_entry(arrays, "ptr", index))
        stop = int(_entry(arrays, "ptr", index + 1))
        if not 0 <= start < stop <= len(arrays["z"]):
            raise ValueError(
                f"`ptr` must rise within 0..{len(arrays['z'])}, found {start} before {stop}"
            )
        return {name: arrays[name][start:stop] for name in ("z", "pos", "forces") if name in arrays}


def _entry(arrays: Mapping[str, np.ndarray], name: str, index: int) -> np.ndarray:
    array = arrays[name]
    if index >= len(array):
        raise ValueError(f"`{name}` has {len(array)} entries")
    return array[index]


def _load(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with file:
            return {name: file[name] for name in names if name in file}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise damaged(path, None, f"it is no readable .npz file ({error})") from error
