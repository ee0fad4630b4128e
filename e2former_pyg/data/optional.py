"""Packages that only some datasets need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports a module that belongs to an extra of this package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"`{package}` is needed to read this file; install it by "
            f"`pip install 'e2former-pyg[{extra}]'`"
        ) from error
