"""An order of nodes in which neighbours in space are near one another."""

from __future__ import annotations

import torch
from torch import Tensor

_WIDTH = 2.0  # Å: a cell holds about one atom
_BITS = 10  # of each axis


def curve_order(pos: Tensor) -> Tensor:
    """Positions in memory of the nodes along a Z-order (Morton) curve, int32 ``[N]``.

    Where programs visit nodes in this order, those at work at the same time share neighbours, whose
    features then come from the cache.
    """
    pos = pos.detach()
    if pos.size(0) == 0:
        return torch.zeros(0, dtype=torch.int32, device=pos.device)
    cell = ((pos - pos.amin(dim=0)) / _WIDTH).nan_to_num().clamp(0, 2**_BITS - 1).to(torch.int32)
    # Two zero bits between the bits of each axis.
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cell = (cell | (cell << shift)) & mask
    code = cell[:, 0] | (cell[:, 1] << 1) | (cell[:, 2] << 2)
    return code.argsort(stable=True).to(torch.int32)
