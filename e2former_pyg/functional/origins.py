"""Origins amid the atoms, from which powers of positions keep their precision.

A harmonic of order ``l`` of the difference of two positions at distance ``D`` from the origin is a
sum of terms that are ``(D / r)**l`` times larger and cancel. In float64 the relative error of a sum
over neighbours within a cutoff is about ``(4 D / cutoff)**l`` roundings. As long as this is small
enough for the features one origin serves all atoms; beyond, space is divided into cubes, and a
source has a row for each cube with targets that see it.

Origins close by would do without float64: in float32, within 4 Å, the error is 1e-5 at order 4. But
then there are four times as many rows and twice the memory; on a CPU that saves a sixth to a third
of the time at orders 1 and 2 and hardly any above (343 periodic atoms with 50 neighbours each).
Hence float64, and as few origins as it allows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .image_rows import number_rows

# Relative errors to aim at; short edges bring up to ten times as much.
_TOLERANCE = {torch.float64: 2e-11}
_LOW_PRECISION_TOLERANCE = 1e-6


class Origins(NamedTuple):
    """Constants: no result depends on where they are, but for rounding."""

    points: Tensor
    """``[cubes, 3]``"""
    label: Tensor | None
    """The cube of each target; ``None`` if there is one."""


def reach(order: int, cutoff: float, dtype: torch.dtype) -> float:
    """How far from its origin a target may lie for results in ``dtype``, in Å."""
    if order == 0:
        return math.inf
    tolerance = _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE)
    roundings = tolerance / (torch.finfo(torch.float64).eps / 2)
    # Its sources lie up to a cutoff further out.
    return cutoff * (roundings ** (1 / order) / 4 - 1)


def origins(pos: Tensor, distance: float) -> Origins:
    """Origins such that each of ``pos [N, 3]`` has one within ``distance``.

    A graph that is being traced can not depend on positions: it gets a single origin.
    """
    if pos.size(0) == 0:
        return Origins(pos.new_zeros(1, 3), None)
    low, high = torch.aminmax(pos.detach(), dim=0)
    traced = torch.compiler.is_compiling() or get_proxy_mode() is not None
    if traced or float(torch.linalg.vector_norm(high - low)) <= 2 * distance:
        return Origins(((low + high) / 2).unsqueeze(0), None)
    side = 2 * distance / math.sqrt(3)
    cube = ((pos.detach() - low) / side).floor()
    label, count = number_rows(list(cube.unbind(-1)))
    points = pos.new_zeros(count, 3)
    points[label] = low + (cube + 0.5) * side  # all of a cube write the same
    return Origins(points, label)
