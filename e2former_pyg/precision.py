"""Keeping :class:`torch.autocast` out of code that chooses its own precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

C = TypeVar("C", bound=Callable[..., Any])
F = TypeVar("F", bound=type[torch.autograd.Function])

_DEVICES = ("cpu", "cuda")


def without_autocast(function: C) -> C:
    """Runs a function in the dtypes of its arguments, also inside an autocast region."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not any(torch.is_autocast_enabled(device) for device in _DEVICES):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def autograd_without_autocast(cls: F) -> F:
    """The same for both directions of an autograd function, which need not run in one region."""
    cls.forward = staticmethod(without_autocast(cls.forward))  # type: ignore[method-assign]
    cls.backward = staticmethod(without_autocast(cls.backward))  # type: ignore[method-assign]
    return cls
