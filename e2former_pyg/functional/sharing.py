"""Sharing of edge geometry between the operations of one forward pass.

Layers of a model see the same positions and neighbourhoods. Inside a
:class:`SharedGeometry` what depends on these alone is computed once. A scope serves one forward
pass, since its content belongs to that pass's autograd graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar, Token
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class SharedGeometry:
    """A scope, as a context manager, that can be entered any number of times.

    Activation checkpointing runs a part of a forward pass again in the backward pass; entering
    the same scope there gives it what it had before.

    Args:
        lmax (int): Highest degree of the harmonics that operations inside will ask for.
    """

    def __init__(self, lmax: int) -> None:
        self.lmax = lmax
        self.entries: dict[Hashable, tuple[Any, ...]] = {}
        self._tokens: list[Token[SharedGeometry | None]] = []

    def __enter__(self) -> SharedGeometry:
        self._tokens.append(_SCOPE.set(self))
        return self

    def __exit__(self, *exception: object) -> None:
        _SCOPE.reset(self._tokens.pop())


_SCOPE: ContextVar[SharedGeometry | None] = ContextVar("e2former_pyg_geometry", default=None)


def shared_lmax(lmax: int) -> int:
    """The degree up to which harmonics are to be computed."""
    scope = _SCOPE.get()
    return lmax if scope is None else max(lmax, scope.lmax)


def shared(
    key: Hashable, inputs: tuple[Tensor | None, ...], compute: Callable[[], T], lmax: int = 0
) -> T:
    """The result of ``compute``, from the scope if the same tensors gave it there already."""
    scope = _SCOPE.get()
    if scope is None or lmax > scope.lmax:
        return compute()
    key = (key, *map(id, inputs), torch.is_grad_enabled())
    if key not in scope.entries:
        # The inputs are kept, so that their identities stay taken.
        scope.entries[key] = (compute(), inputs)
    return scope.entries[key][0]
