"""The operations edge by edge, on an edge list in the caller's order.

They keep edge-sized features. Explainers and message hooks need them; everything else takes the
node-centric form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .geometry import EdgeGeometry
from .torch_backend import Spec, by_head, moment_weights


def segment_sink_softmax(
    logits: Tensor, geometry: EdgeGeometry, sink: Tensor, index: Tensor, num_targets: int
) -> Tensor:
    """As :func:`~e2former_pyg.functional.softmax.sink_softmax`, with logits ``[E, H]`` over the
    edges of each target.
    """
    weight = geometry.envelope.unsqueeze(-1)
    inside = weight > 0
    target = index.unsqueeze(-1).expand_as(logits)
    with torch.no_grad():
        scores = torch.where(inside, logits + weight.log(), -math.inf)
        shift = sink.expand(num_targets, -1).scatter_reduce(0, target, scores, "amax")
    terms = weight * torch.where(inside, logits - shift[index], 0.0).exp()
    total = (sink - shift).exp().index_add(0, index, terms)
    return terms / total[index]


def edge_rows(spec: Spec, weights: Tensor, v_j: Tensor, harmonics: Tensor) -> Tensor:
    """Path rows ``[E, P, C]`` of single edges, from weights ``[E, orders, H]`` and values
    ``[E, inputs, C]``.
    """
    weights = moment_weights(spec, weights[..., None, None], harmonics[..., None, None])
    moments = weights.unsqueeze(-1) * by_head(v_j, spec.heads)[:, :, None, None]
    return spec.coupling.couple(moments)
