"""Loads and stores between the type of a tensor and that of the arithmetic."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_wide(x, place, mask):
    """Entries in the type of the arithmetic: float32 unless they are float64."""
    value = tl.load(x + place, mask=mask, other=0.0)
    if x.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    return value


@triton.jit
def store_as(out, place, value, mask):
    """Stores entries in the type of ``out``."""
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
