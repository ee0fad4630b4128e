"""From the arrays of one record of a file to a checked ``Data`` object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from ..radial import MAX_ATOMIC_NUMBER

PER_ATOM = ("pos", "forces")
MATRICES = ("cell", "stress")
INTEGERS = ("charge", "spin")


class DamagedDataError(ValueError):
    """Raised where a file or one of its records cannot be used."""


class OtherFieldsError(ValueError):
    """Raised where a record has not the fields of those before it."""


def damaged(path: Path, index: int | None, reason: object) -> DamagedDataError:
    """The error for record ``index`` of a file, or for the file as a whole."""
    place = f"'{path}'" if index is None else f"'{path}', record {index}"
    return DamagedDataError(f"{place}: {reason}")


def make_data(fields: Mapping[str, Any], dtype: torch.dtype) -> Data:
    r"""Makes a graph without edges of the arrays of one record.

    Args:
        fields (dict): ``z`` :math:`(N)`, ``pos`` :math:`(N, 3)` and, each optional, ``energy``,
            ``forces`` :math:`(N, 3)`, ``cell`` and ``stress`` :math:`(3, 3)`, ``pbc``
            :math:`(3)`, ``charge`` and ``spin``. Whatever else there is belongs to the graph.
        dtype (torch.dtype): The dtype of ``pos``, ``forces``, ``cell`` and ``stress``. Energies
            and other labels of graphs are float64.

    Raises:
        ValueError: If shapes disagree or values are not finite.
    """
    z = _atomic_numbers(fields["z"])
    num_atoms = z.size(0)
    data = Data(z=z)
    for name, value in fields.items():
        if name in PER_ATOM:
            data[name] = _floats(name, value, (num_atoms, 3)).to(dtype)
        elif name in MATRICES:
            data[name] = _floats(name, value, (3, 3)).to(dtype)[None]
        elif name in INTEGERS:
            data[name] = _integer(name, value)
        elif name == "pbc":
            data.pbc = _flags(value)
        elif name != "z":
            shape = () if name == "energy" else None
            data[name] = _floats(name, value, shape)[None]
    return data


def check_same_fields(data: Data, names: frozenset[str]) -> None:
    """Raises unless a record has the fields of those before it, as batches need."""
    found = frozenset(data.keys())
    for verb, others in (("lacks", names - found), ("also has", found - names)):
        if others:
            raise OtherFieldsError(f"it {verb} {sorted(others)}, unlike the records before it")


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Names of further values, which are attributes of graphs beside those of PyG."""
    if isinstance(labels, str):
        raise TypeError(f"`labels` must be a list of names, got the string {labels!r}")
    if taken := {"batch", "ptr", "edge_index"} & set(labels):
        raise ValueError(f"`labels` must name further values, found {sorted(taken)}")
    return tuple(labels)


def _atomic_numbers(value: Any) -> torch.Tensor:
    numbers = np.asarray(value)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"`z` must have shape [N] with N > 0, found {list(numbers.shape)}")
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"`z` must hold integers, found {numbers.dtype}")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 1 or high > MAX_ATOMIC_NUMBER:
        found = low if low < 1 else high
        raise ValueError(f"`z` must lie in 1..{MAX_ATOMIC_NUMBER}, found {found}")
    return torch.from_numpy(numbers.astype(np.int64))


def _floats(name: str, value: Any, shape: tuple[int, ...] | None) -> torch.Tensor:
    array = np.array(value, dtype=np.float64)  # a copy, since arrays of files may be read-only
    if shape is not None and array.shape != shape:
        raise ValueError(f"`{name}` must have shape {list(shape)}, found {list(array.shape)}")
    if not np.isfinite(array).all():
        found = array[~np.isfinite(array)].flat[0]
        raise ValueError(f"`{name}` must be finite, found {found}")
    return torch.from_numpy(array)


def _integer(name: str, value: Any) -> torch.Tensor:
    number = float(_floats(name, value, ()))
    if not number.is_integer():
        raise ValueError(f"`{name}` must be an integer, found {number}")
    return torch.tensor([int(number)])


def _flags(value: Any) -> torch.Tensor:
    flags = np.array(value, dtype=bool)
    if flags.shape != (3,):
        raise ValueError(f"`pbc` must have shape [3], found {list(flags.shape)}")
    return torch.from_numpy(flags)[None]
