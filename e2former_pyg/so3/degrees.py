"""Degrees: their validation, the degree of each feature row, and cached constant tensors."""

import numbers
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def check_degree(name: str, value: object) -> int:
    """Returns `value` as a non-negative integer, or raises an error that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be an integer, found {type(value).__name__}")
    if value % 1 != 0 or value < 0:  # NaN and infinity fail the first test
        raise ValueError(f"`{name}` must be a non-negative integer, found {value}")
    return int(float(value))


def is_plain(tensor: Tensor) -> bool:
    """Whether constants from a cache may meet `tensor`: it is neither traced nor fake."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling()


def build_constant(build: Callable[[], T]) -> T:
    """Runs `build` in a thread of its own, so that its result can be cached.

    Inference mode, fake tensors, tracers, function transforms and default devices are all
    thread-local: a constant first built inside one of them would stay marked by it, and break
    (or falsify) every later use from the cache.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(build).result()


def _build_degree_index(lmax: int, device: torch.device) -> Tensor:
    degrees = [degree for degree in range(lmax + 1) for _ in range(2 * degree + 1)]
    return torch.tensor(degrees, dtype=torch.long, device=device)


@cache
def _cached_degree_index(lmax: int, device: torch.device) -> Tensor:
    return build_constant(lambda: _build_degree_index(lmax, device))


def degree_index(lmax: int, device: torch.device | str | None = None) -> Tensor:
    r"""Returns the degree :math:`\ell` of each row :math:`\ell^2 + \ell + m` of a feature tensor,
    *e.g.*, :obj:`[0, 1, 1, 1, 2, 2, 2, 2, 2]` for :obj:`lmax=2`.

    The result is cached per device and shared between callers: do not write to it.

    Args:
        lmax (int): The largest degree.
        device (torch.device or str, optional): The device of the result.
            (default: :obj:`None`, the current default device)

    Returns:
        A tensor of type :obj:`torch.long` and shape :math:`((\ell_{\max}+1)^2)`.

    Raises:
        TypeError: If :obj:`lmax` is not a number.
        ValueError: If :obj:`lmax` is negative or no integer.
    """
    lmax = check_degree("lmax", lmax)
    # A device without an index ("cuda") names another card once the current device changes.
    probe = torch.empty(0, device=device)
    build = _cached_degree_index if is_plain(probe) else _build_degree_index
    return build(lmax, probe.device)
