"""Dropout by a counter-based generator: the same mask in every backend and in recomputation."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57


def philox(seed: Tensor, counter: Tensor, rounds: int = 10) -> Tensor:
    r"""First 32-bit word of Philox 4x32 (Salmon et al., 2011) for the counter
    :obj:`(counter, 0, 0, 0)`: what ``tl.randint(seed, counter)`` gives.

    Args:
        seed (torch.Tensor): Scalar int64 seed.
        counter (torch.Tensor): Counters in :math:`[0, 2^{32})`, int64.
        rounds (int, optional): Number of rounds. (default: :obj:`10`)
    """
    c0 = counter & _MASK
    c1 = c2 = c3 = torch.zeros_like(c0)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(rounds):
        # Products wrap modulo 2**64; the masks after the shifts take out the sign.
        a, b = c0 * _ROUND_A, c2 * _ROUND_B
        c0, c1, c2, c3 = (
            ((b >> 32) & _MASK) ^ c1 ^ k0,
            b & _MASK,
            ((a >> 32) & _MASK) ^ c3 ^ k1,
            a & _MASK,
        )
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return c0


def uniform(bits: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from 32-bit words, as ``tl.rand`` makes them (float32)."""
    signed = torch.where(bits >= 2**31, bits - 2**32, bits)
    positive = torch.where(signed < 0, -signed - 1, signed)
    return positive.to(torch.float32) * 4.6566127342e-10


def dropout_mask(
    seed: Tensor, edge: Tensor, heads: int, probability: float, dtype: torch.dtype
) -> Tensor:
    """Zero with ``probability``, else ``1 / (1 - probability)``, for each edge and head.

    The counter is ``edge * heads + head``, so that a mask belongs to the edge's place in the
    caller's list and not to the order of the computation.
    """
    counter = edge.unsqueeze(-1) * heads + torch.arange(heads, device=edge.device)
    keep = uniform(philox(seed, counter)) >= probability
    return keep.to(dtype) / (1 - probability)
