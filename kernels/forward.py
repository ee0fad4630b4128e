"""Path rows of attention and convolution: one program per target and group of heads."""

import triton
import triton.language as tl

from . import edge, lanes, moments
from .operands import Graph, Operands


@triton.jit
def forward_kernel(x: Operands, graph: Graph, sink, out, lse, S: tl.constexpr, P: tl.constexpr):
    """Writes path rows and, for attention, the log-sum-exp of each target and head."""
    STRIDE: tl.constexpr = S.heads * S.channels
    i, start, stop = edge.visit(graph, tl.program_id(0).to(tl.int64))
    head, own = lanes.heads(S, P)
    channel, present = lanes.channels(S.channels, P.block, P.first, S, P)
    target = edge.target(x, x, graph, i, False)
    if S.attention:
        largest = tl.load(sink + head).to(S.dtype)
        total = tl.zeros([P.tile, P.heads], S.dtype)

    sums = lanes.zeros(len(P.pairs[2]), 1, P.heads * P.block, S)
    tile = tl.arange(0, P.tile)[:, None]
    for first in range(start, stop, P.tile):
        slot = first + tile
        j, edge_id, e = edge.around(target, slot, stop, head, own, x, x, graph, S, False, False)
        if S.attention:
            where_q = lanes.anew((i * S.heads + head) * S.d, j)
            kappa = edge.inner(x, x, where_q, (j * S.heads + head) * S.d, S, False)
            kappa = edge.directional(kappa, e.harmonics, x.u, None, i, head, S)
            s = edge.logit(e.functions, kappa, x.bias, None, edge_id, head, S)
            envelope = tl.where(e.inside, e.envelope[0], 1.0)
            candidate = tl.where(e.inside, s[0] + tl.log(envelope), float("-inf"))
            candidate = tl.max(candidate, axis=0, keep_dims=True)
            # Sums are rescaled only when exponentials would grow large: rarely.
            if tl.max(candidate - largest) > 16.0:
                candidate = tl.maximum(candidate, largest)
                factor = tl.exp(largest - candidate)
                sums = moments.scaled(sums, lanes.widen(factor, P.block))
                total *= factor
                largest = candidate
            _, alpha, weight = edge.softmax(s, largest, e, graph.seed, edge_id, head, S)
            total += alpha[0]
            values = edge.after(e.functions, 2)
        else:
            weight = e.envelope
            values = edge.biased(e.functions, x.bias, None, edge_id, head, S)
        coefficients = edge.parts(edge.spread(weight, values, e.harmonics, P), 0)
        sums = moments.accumulate(
            sums, coefficients, x.v, graph, first, stop, channel, present, S, P
        )

    if S.attention:
        sink_part = tl.exp(tl.load(sink + head).to(S.dtype) - largest)
        normaliser = tl.sum(total, axis=0, keep_dims=True) + sink_part
        sums = moments.scaled(sums, lanes.widen(1.0 / normaliser, P.block))
        lanes.put(lse + i * S.heads + head, largest + tl.log(normaliser), own, False)
    where = i * (S.output_rows * STRIDE) + channel
    moments.store_coupled(sums, out, where, present, STRIDE, None, None, None, P)
