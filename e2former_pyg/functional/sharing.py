"""Sharing of edge geometry between the operations of one forward pass.

Layers of a model see the same positions and neighbourhoods. Inside :func:`share_geometry` what
depends on these alone is computed once. The scope must not outlast one forward pass, since its
content belongs to that pass's autograd graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class _Scope(NamedTuple):
    lmax: int
    entries: dict[Hashable, tuple[Any, ...]]


_SCOPE: ContextVar[_Scope | None] = ContextVar("e2former_pyg_geometry", default=None)


@contextmanager
def share_geometry(lmax: int) -> Iterator[None]:
    """Shares edge geometry with harmonics up to degree ``lmax`` among the operations inside."""
    token = _SCOPE.set(_Scope(lmax, {}))
    try:
        yield
    finally:
        _SCOPE.reset(token)


def shared_lmax(lmax: int) -> int:
    """The degree up to which harmonics are to be computed."""
    scope = _SCOPE.get()
    return lmax if scope is None else max(lmax, scope.lmax)


def shared(
    key: Hashable, inputs: tuple[Tensor | None, ...], lmax: int, compute: Callable[[], T]
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
