"""Cotangent of the normaliser of attention."""

import triton
import triton.language as tl


@triton.jit
def normaliser_kernel(y, grad, z_bar, z_dot, out, S: tl.constexpr):
    """Writes ``-<y, grad>`` of each node and head, less ``z_bar z_dot`` where given."""
    i = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    STRIDE: tl.constexpr = S.heads * S.channels
    ROWS: tl.constexpr = 8
    BLOCK: tl.constexpr = 16
    total = tl.zeros([ROWS, BLOCK], S.dtype)
    for first_row in range(0, S.output_rows, ROWS):
        for first in range(0, S.channels, BLOCK):
            row = first_row + tl.arange(0, ROWS)
            channel = first + tl.arange(0, BLOCK)
            where = i * (S.output_rows * STRIDE) + row[:, None] * STRIDE
            where += head * S.channels + channel[None, :]
            mask = (row < S.output_rows)[:, None] & (channel < S.channels)[None, :]
            a = tl.load(y + where, mask=mask, other=0.0).to(S.dtype)
            total += a * tl.load(grad + where, mask=mask, other=0.0).to(S.dtype)
    value = -tl.sum(tl.sum(total, axis=1), axis=0)
    place = i * S.heads + head
    if z_dot is not None:
        value -= tl.load(z_bar + place) * tl.load(z_dot + place)
    tl.store(out + place, value)
