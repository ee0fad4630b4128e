"""What datasets that fit into memory share."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Data, InMemoryDataset

from .cache import cached, processed_name
from .parts import Conversion, remove_parts
from .record import OtherFieldsError, check_same_fields, damaged, make_data

Record = tuple[int, Mapping[str, Any] | ValueError]
"""The index of a record in its file, and its arrays or what is wrong with it."""


class FileDataset(InMemoryDataset, ABC):
    """A dataset read from one file; subclasses say how by :meth:`read`.

    Where processing takes longer than a minute, what is done is kept once a minute, so that an
    interrupted run goes on from there. Collating and writing the whole, at the end, start again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str] | None,
        transform: Callable | None,
        pre_transform: Callable | None,
        pre_filter: Callable | None,
        *,
        skip_damaged: bool,
        dtype: torch.dtype,
        force_reload: bool,
        **settings: Any,
    ) -> None:
        self.path = source_file(path)
        self.skip_damaged = skip_damaged
        self.dtype = dtype
        self._settings = {
            "class": type(self).__name__,
            "pre_transform": pre_transform,
            "pre_filter": pre_filter,
            "skip_damaged": skip_damaged,
            "dtype": dtype,
            **settings,
        }
        root = None if root is None else os.fspath(root)
        super().__init__(root, transform, pre_transform, pre_filter, force_reload=force_reload)
        processed = None if root is None else Path(self.processed_paths[0])
        if processed is not None and force_reload:
            remove_parts(processed)
        state = cached(processed, partial(self._build, processed), force_reload)
        if processed is not None:
            remove_parts(processed)
        self._data, self.slices = Data.from_dict(state["data"]), state["slices"]
        self.num_skipped: int = state["num_skipped"]
        warn_skipped(self.path, self.num_skipped, stacklevel=4)

    @property
    def raw_paths(self) -> list[str]:
        return [str(self.path)]

    @property
    def processed_file_names(self) -> str:
        return processed_name(self.path, self._settings)

    @abstractmethod
    def read(self, start: int) -> Iterator[Record]:
        """Yields the records of the file one after the other, from one of them on."""

    def _build(self, processed: Path | None) -> dict[str, Any]:
        conversion = Conversion(processed)
        reason: ValueError | None = None
        # Of what an interrupted conversion has done, all but the skipped.
        alike, unlike = conversion.next - conversion.num_skipped, 0
        for index, fields in self.read(conversion.next):
            try:
                if isinstance(fields, ValueError):
                    raise fields
                data = make_data(fields, self.dtype)
                if conversion.names is None:
                    conversion.names = frozenset(data.keys())
                check_same_fields(data, conversion.names)
                alike += 1
                if self.pre_filter is None or self.pre_filter(data):
                    # Transforms look at more than we do: RadiusGraph finds coincident atoms.
                    if self.pre_transform is not None:
                        data = transformed(self.pre_transform, data)
                    conversion.graphs.append(data)
            except ValueError as error:
                unlike += isinstance(error, OtherFieldsError)
                reason = damaged(self.path, index, error)
                if not self.skip_damaged:
                    raise reason from error
                conversion.num_skipped += 1
            conversion.done(index)
        if not conversion.graphs:
            found = f"no record to use, {conversion.num_skipped} are damaged"
            raise damaged(self.path, None, found) from reason
        if unlike > alike:
            # The first record is the odd one out, and what is damaged are not the others.
            names = sorted(conversion.names or ())
            found = f"{unlike} records have other fields than the first, which has {names}"
            raise damaged(self.path, None, found) from reason
        data, slices = self.collate(conversion.graphs)
        return {
            "data": data.to_dict(),
            "slices": slices,
            "num_skipped": conversion.num_skipped,
        }


def transformed(pre_transform: Callable[[Data], Data], data: Data) -> Data:
    """What a ``pre_transform`` makes of a graph."""
    out = pre_transform(data)
    if not isinstance(out, Data):
        raise TypeError(f"`pre_transform` must return a Data, got {type(out).__name__}")
    return out


def source_file(path: str | os.PathLike[str]) -> Path:
    """The path of an existing file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"`path` must be an existing file, found '{file}'")
    return file


def warn_skipped(path: Path, num_skipped: int, stacklevel: int) -> None:
    """Says that records were left out, each time a dataset is opened."""
    if num_skipped > 0:
        warnings.warn(f"'{path}': {num_skipped} damaged records are skipped", stacklevel=stacklevel)
