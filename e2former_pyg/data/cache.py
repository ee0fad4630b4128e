"""Processed files: written whole or not at all, and never read for other sources or settings."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch_geometric.io import fs

from ..files import written_whole
from .record import damaged

VERSION = "2"
"""To be raised whenever the same file and settings give other contents."""


def processed_name(path: Path, settings: Mapping[str, Any]) -> str:
    """A file name that changes with the source file and with how it is read."""
    stat = path.stat()
    text = [VERSION, str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    text += [f"{key}={_described(settings[key])}" for key in settings]
    return f"{path.stem}-{hashlib.sha256(chr(0).join(text).encode()).hexdigest()[:12]}.pt"


def _described(value: Any) -> str:
    """The text of a setting, of a function with its code and the variables that it closes over."""
    code, cells = getattr(value, "__code__", None), getattr(value, "__closure__", None) or ()
    parts = [value, *(cell.cell_contents for cell in cells)]
    if code is not None:
        parts += [code.co_code, code.co_consts, code.co_names, value.__defaults__]
    # The address of an object says nothing about it and changes from run to run.
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(map(str, parts)))


def cached(path: Path | None, build: Callable[[], Any], force_reload: bool) -> Any:
    """What ``build`` returns, kept in the file ``path`` unless that is :obj:`None`."""
    if path is None:
        return build()
    if force_reload or not path.exists():
        save_atomically(build(), path)
    return load(path)


def load(path: Path) -> Any:
    """Reads a file of :meth:`save_atomically`."""
    try:
        return fs.torch_load(str(path))
    except (EOFError, KeyError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = f"it cannot be read; pass force_reload=True to make it again ({error})"
        raise damaged(path, None, reason) from error


def save_atomically(value: Any, path: Path) -> None:
    """Writes a file under a temporary name beside ``path``, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        torch.save(value, temporary)
