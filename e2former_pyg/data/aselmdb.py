"""ASE databases in LMDB files (``.aselmdb``), open for reading."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from .optional import require
from .record import damaged

_open: WeakValueDictionary[tuple[Path, int, int, int], ASELMDB] = WeakValueDictionary()


def open_database(path: Path) -> ASELMDB:
    """The open database in a file, which is closed with the last reference to it.

    LMDB lets a process open a file only once, however many datasets read it.
    """
    stat = path.stat()
    key = path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns
    database = _open.get(key)
    if database is None:
        database = _open[key] = ASELMDB(path)
    return database


class ASELMDB:
    """What is read of a database through ASE's backend.

    Raises:
        DamagedDataError: If the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._environment: Any = None
        self._database: Any = None
        self._connect()

    def ids(self) -> list[int]:
        """The ids of the rows, read anew: as a list they take more memory than all else."""
        return self._connect()

    def row(self, row_id: int) -> Mapping[str, Any]:
        """What a row holds by name: ``numbers``, ``positions``, ``pbc``, results, ``atoms.info``.

        Raises:
            ValueError: If it cannot be read.
        """
        if self._pid != os.getpid():
            self._connect()
        try:
            row = self._database.get(row_id)
            return {**row.data, **row.__dict__}
        except Exception as error:  # of zlib, json or LMDB, or of ASE where the contents are others
            reason = f"ASE cannot read it ({type(error).__name__}: {error})"
            raise ValueError(reason) from error

    def _connect(self) -> list[int]:
        backend = require("ase_db_backends.aselmdb", "data").LMDBDatabase
        lmdb = require("lmdb", "data")
        if self._environment is not None:
            # Of the process that this one was forked from, perhaps, which keeps its own: here LMDB
            # forbids to use it, and takes the file for open as long as it is not closed.
            self._environment.close()
            self._database = None
        try:
            self._check_length(lmdb)
            self._database = backend(str(self.path), use_lock_file=False, readonly=True)
        except (lmdb.Error, OSError, UnicodeDecodeError, zlib.error) as error:
            raise damaged(self.path, None, f"it cannot be opened ({error})") from error
        ids, self._database.ids = self._database.ids, []
        self._environment, self._pid = self._database.env, os.getpid()
        return ids

    def _check_length(self, lmdb: Any) -> None:
        # Beyond the end of a file that was cut short, reading ends the process with a bus error.
        with lmdb.open(str(self.path), subdir=False, readonly=True, lock=False) as environment:
            expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        found = self.path.stat().st_size
        if found < expected:
            raise damaged(self.path, None, f"it was cut short: {found} bytes, expected {expected}")
