"""Cotangent of the normaliser of attention."""

import triton
import triton.language as tl

from . import lanes


@triton.jit
def normaliser_kernel(y, grad, sink, lse, out, sink_bar, S: tl.constexpr, P: tl.constexpr):
    """Writes ``-<y, grad>`` of each node and head, and its share of the gradient of the sink."""
    i = tl.program_id(0).to(tl.int64)
    head, own = lanes.heads(S, P)
    STRIDE: tl.constexpr = S.heads * S.channels
    ROWS: tl.constexpr = 8
    total = tl.zeros([ROWS, P.heads * P.block], S.dtype)
    for first in tl.static_range(0, S.channels, P.block):
        channel, present = lanes.channels(S.channels, P.block, first, S, P)
        for first_row in range(0, S.output_rows, ROWS):
            row = first_row + tl.arange(0, ROWS)[:, None]
            where = (i * S.output_rows + row) * STRIDE + channel
            mask = lanes.both(row < S.output_rows, present)
            a = lanes.load(y + where, mask).to(S.dtype)
            total += a * lanes.load(grad + where, mask).to(S.dtype)
    value = -lanes.narrow(tl.sum(total, axis=0, keep_dims=True), P.heads)
    place = i * S.heads + head
    lanes.put(out + place, value, own, False)
    share = tl.exp(tl.load(sink + head) - tl.load(lse + place))
    lanes.put(sink_bar + place, share * value, own, False)
