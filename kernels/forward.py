"""Path rows of attention and convolution: one program per target and head."""

import triton
import triton.language as tl

from . import edge, moments
from .operands import Graph, Operands


@triton.jit
def forward_kernel(x: Operands, graph: Graph, sink, out, lse, S: tl.constexpr, P: tl.constexpr):
    """Writes path rows and, for attention, the log-sum-exp of each target and head."""
    DTYPE: tl.constexpr = S.dtype
    STRIDE: tl.constexpr = S.heads * S.channels
    i, start, stop, valid = edge.row(graph)
    head = tl.program_id(1)
    channel, in_head = edge.channels(head, S, P)
    point_i = edge.point(x.pos_i, None, i, valid, False)
    strain = edge.tensor9(x.strain, None, i, valid, False)
    type_i = tl.load(graph.type_i + i) * graph.num_types
    if S.attention:
        query = edge.head_vector(x.q, None, i, head, valid, S, False)
        largest = tl.load(sink + head).to(DTYPE)
        total = largest * 0.0 + 1.0

    sums = moments.zeros(len(P.pairs[2]), P.tile, P.block, DTYPE)
    tile = tl.arange(0, P.tile)
    fetched = edge.fetch(graph, start + tile, stop, x.pos_j, None, graph.type_j, False)
    for first in tl.range(start, stop, P.tile, num_stages=2):
        slot = first + tile
        mask = slot < stop
        j, point_j, type_j = fetched
        where = (j * (S.input_rows * STRIDE))[:, None] + channel[None, :]
        present = mask[:, None] & in_head[None, :]
        rows = moments.load_rows(x.v, where, present, STRIDE, DTYPE, P)
        if S.attention:
            key = edge.head_vectors(x.k, None, j, head, mask, S, False)
        fetched = edge.fetch(graph, slot + P.tile, stop, x.pos_j, None, graph.type_j, False)
        edge_id = edge.identity(graph.edge, slot, mask)
        e = edge.evaluate(
            edge.separation(point_i, point_j, graph.shift, edge_id, mask),
            strain,
            type_i + type_j,
            mask,
            head,
            x.polynomials,
            None,
            S,
            False,
        )
        if S.attention:
            kappa = edge.inner(query, key, S)
            kappa = edge.directional(kappa, e.harmonics, x.u, None, i, head, valid, S)
            s = edge.logit(e.functions, kappa, x.bias, None, edge_id, head, mask, S)
            envelope = tl.where(e.inside, e.envelope[0], 1.0)
            candidate = tl.where(e.inside, s[0] + tl.log(envelope), float("-inf"))
            candidate = tl.max(candidate, axis=0)
            # Sums are rescaled only when exponentials would grow large: rarely.
            if candidate > largest + 16.0:
                factor = tl.exp(largest - candidate)
                sums = moments.scaled(sums, factor)
                total *= factor
                largest = candidate
            _, alpha, weight = edge.softmax(s, largest, e, graph.seed, edge_id, head, S)
            total += tl.sum(alpha[0], axis=0)
            values = edge.after(e.functions, 2)
        else:
            weight = e.envelope
            values = edge.biased(e.functions, x.bias, None, edge_id, head, mask, S)
        coefficients = edge.parts(edge.spread(weight, values, e.harmonics, P), 0)
        sums = moments.accumulate(sums, coefficients, rows, P)

    if S.attention:
        sums = moments.scaled(sums, 1.0 / total)
        tl.store(lse + i * S.heads + head, largest + tl.log(total))
    where = i * (S.output_rows * STRIDE) + channel
    moments.store_coupled(sums, out, where, in_head, STRIDE, None, None, P)
