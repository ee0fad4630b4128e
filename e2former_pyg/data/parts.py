"""What a long conversion has done so far, from which it goes on after an interruption."""

from __future__ import annotations

import contextlib
import glob
import time
from pathlib import Path

from torch_geometric.data import Data, InMemoryDataset

from .cache import load, save_atomically
from .record import DamagedDataError

INTERVAL = 60.0
"""Seconds of work after which it is kept."""


class Conversion:
    """The graphs made of the records of a file, which are kept in parts beside the processed file.

    A part is a file that is named by its first record and says at which one the next part begins.
    Runs at the same time may leave parts of different lengths: only those that follow one another
    are used.

    Args:
        path: The processed file to be, or :obj:`None` to keep nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.graphs: list[Data] = []
        self.names: frozenset[str] | None = None
        """The fields of all records."""
        self.num_skipped = 0
        self.next = 0
        """The first record that is not done."""
        self._path = path
        self._resume()
        self._kept = len(self.graphs)
        self._part = self._name(self.next)
        self._since = time.monotonic()

    def done(self, index: int) -> None:
        """Says that all records up to this one are done."""
        self.next = index + 1
        if self._part is None or time.monotonic() - self._since < INTERVAL:
            return
        new = self.graphs[self._kept :]
        data, slices = InMemoryDataset.collate(new) if new else (Data(), None)
        part = {
            "next": self.next,
            "size": len(new),
            "data": data.to_dict(),
            "slices": slices,
            "names": None if self.names is None else sorted(self.names),
            "num_skipped": self.num_skipped,
        }
        save_atomically(part, self._part)
        self._kept = len(self.graphs)
        self._part = self._name(self.next)
        self._since = time.monotonic()

    def _resume(self) -> None:
        while (path := self._name(self.next)) is not None and path.exists():
            try:
                part = load(path)
            except DamagedDataError:
                return  # and do again what it was to hold
            dataset = InMemoryDataset()
            dataset._data, dataset.slices = Data.from_dict(part["data"]), part["slices"]
            self.graphs += [dataset.get(index) for index in range(part["size"])]
            self.names = None if part["names"] is None else frozenset(part["names"])
            self.num_skipped, self.next = part["num_skipped"], part["next"]

    def _name(self, start: int) -> Path | None:
        path = self._path
        return None if path is None else path.with_name(f".{path.name}.{start}.part")


def remove_parts(path: Path) -> None:
    """Deletes the parts of a processed file."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
