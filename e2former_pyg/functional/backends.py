"""Which backend serves a call."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from .inputs import check_backend_name
from .paths import Coupling

# What the kernels were written and tested for; the PyTorch backend goes to degree 8.
_MAX_ORDER = 4
_MAX_DEGREE = 6
_TRITON = (3, 6)  # tuples as arguments and as constants


def _lacking() -> str | None:
    """What is wrong with the installed Triton, which is not imported for this."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "the package triton is not installed"
    if tuple(int(part) for part in found.split(".")[:2]) < _TRITON:
        return f"triton {found} is older than {'.'.join(map(str, _TRITON))}"
    return None


# Found out once, where no compiler traces it.
_LACKING = _lacking()


def has_triton() -> bool:
    """Whether a Triton that the kernels can use is installed."""
    return _LACKING is None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(v: Tensor, paths: Coupling, lmax: int, edge_shift: Tensor | None) -> str | None:
    """Why the kernels cannot serve a call."""
    if _LACKING is not None:
        return _LACKING
    if not v.is_cuda and not _interpreted():
        return f"tensors are on {v.device.type!r}, kernels need a CUDA device"
    if max(paths.orders) > _MAX_ORDER:
        return f"order {max(paths.orders)} is above {_MAX_ORDER}"
    lmax = max(lmax, paths.lmax_in, paths.lmax_out)
    if lmax > _MAX_DEGREE:
        return f"lmax {lmax} is above {_MAX_DEGREE}"
    if edge_shift is not None and edge_shift.requires_grad and torch.is_grad_enabled():
        return "`edge_shift` asks for a gradient, which is of the size of the edges (see `strain`)"
    return None


def takes_triton(
    backend: str, v: Tensor, paths: Coupling, lmax: int = 0, edge_shift: Tensor | None = None
) -> bool:
    """Whether the Triton backend serves a call.

    Args:
        backend (str): ``"auto"`` takes it for CUDA tensors where it supports the call.
        v (torch.Tensor): The features.
        paths (Coupling): The paths of the call.
        lmax (int): Highest degree of further harmonics.
        edge_shift (torch.Tensor, optional): Image offsets, whose gradient only the PyTorch
            backend has.

    Raises:
        ValueError: If there is no such backend.
        RuntimeError: If ``backend="triton"`` cannot serve the call.
    """
    check_backend_name(backend)
    if backend == "torch" or (backend == "auto" and not v.is_cuda):
        return False
    obstacle = _obstacle(v, paths, lmax, edge_shift)
    if obstacle is not None and backend == "triton":
        raise RuntimeError(
            f"backend='triton' is not available: {obstacle}; use backend='auto' or 'torch'"
        )
    return obstacle is None
