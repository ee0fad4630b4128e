"""Features of ghost atoms, which other processes own, by the exchange of LAMMPS' ML-IAP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class GhostExchange(torch.autograd.Function):
    """Fills in the features of ghosts from the atoms that they are copies of, on whichever rank
    those are. Its derivative adds the gradients of all copies to that of the atom.

    All ranks must call it as often, forward and backward, or those that do wait forever. They do,
    since features depend on positions in autograd's view also on a rank with no pair of atoms.

    Args:
        x (torch.Tensor): Features of own atoms, ``[N, ...]``, float32 or float64.
        data (MLIAPDataPy): ML-IAP's view of this rank's atoms: own ones first, then ghosts.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, data: Any) -> Tensor:
        ctx.data = data
        given = x.new_zeros(data.ntotal, *x.shape[1:])
        given[: x.size(0)] = x
        return _exchange(data.forward_exchange, given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = _exchange(ctx.data.reverse_exchange, grad.contiguous())
        return total[: ctx.data.nlocal], None


def _exchange(function: Any, rows: Tensor) -> Tensor:
    out = torch.empty_like(rows)
    wait(rows.device)
    function(rows, out, rows.shape[1:].numel())
    wait(rows.device)
    return out


def wait(device: torch.device) -> None:
    """Waits for kernels of PyTorch and of LAMMPS, which do not know of each other's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
