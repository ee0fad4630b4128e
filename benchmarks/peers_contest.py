"""What two libraries are timed at: functions without arguments on the same atoms and edges."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from attention_measure import MIB, Meter
from attention_passes import PASSES, Cotangents, Results
from attention_problems import Contender

Run = Callable[[], Results]


@dataclass(frozen=True)
class Contest:
    """Both sides of a case."""

    ours: Run
    peer: Run | None
    edges: int
    about: dict[str, Any]
    """What a reader of the record has to know of the peer and of ours."""
    errors: dict[str, float] = field(default_factory=dict)
    """Relative errors where something is known to be equal."""
    bar: float = 0.0
    """The largest of them that is allowed."""
    ours_kept_mib: float = 0.0
    """Memory of ours that is held between calls, and counts as well."""


def run_of(contender: Contender, which: str) -> Run:
    return partial(PASSES[which], contender, Cotangents.make(contender, which))


def held_mib(meter: Meter) -> float:
    """Memory of the process that no release gives back: also what a CUDA graph holds on to, which
    is no peak of a later call.
    """
    meter.release()
    return torch.cuda.memory_reserved(meter.device) / MIB if meter.is_cuda else 0.0


def bare_package(name: str) -> None:
    """Makes modules of a package importable without its ``__init__``, which would import much that
    they do not need.
    """
    if name in sys.modules:
        return
    parent, _, leaf = name.rpartition(".")
    above = importlib.util.find_spec(parent)
    if above is None:
        raise ModuleNotFoundError(f"No module named {parent!r}", name=parent)
    folders = [Path(folder) / leaf for folder in above.submodule_search_locations or ()]
    found = [str(folder) for folder in folders if folder.is_dir()]
    if not found:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = found
    module = ModuleType(name)
    module.__spec__ = spec
    module.__path__ = found
    sys.modules[name] = module


def require_cuequivariance() -> None:
    """Raises where cuEquivariance and what uses it would silently run without its kernels."""
    for name in ("cuequivariance_torch", "cuequivariance_ops_torch"):
        importlib.import_module(name)
