"""Softmax over neighbours with an envelope as a weight and a sink in the denominator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..precision import autograd_without_autocast


def sink_softmax(logits: Tensor, weight: Tensor, sink: Tensor) -> Tensor:
    r""":math:`\alpha_k = w_k e^{s_k} / (e^b + \sum_k w_k e^{s_k})` over the last dimension.

    The shift, the largest of :math:`s + \log w` and the sink, bounds every term by 1. Where the
    weight is zero, nothing depends on the logit.

    Args:
        logits (torch.Tensor): Logits :math:`s`, ``[G, H, T, K]``.
        weight (torch.Tensor): Weights :math:`w \ge 0`, ``[G, T, K]``.
        sink (torch.Tensor): Logits :math:`b` of the sink, ``[H]``.
    """
    return _SinkSoftmax.apply(logits, weight.unsqueeze(1), sink.view(-1, 1, 1))[0]


def _unweighted(logits: Tensor, weight: Tensor, lse: Tensor) -> Tensor:
    """``exp(s - lse)`` where the weight is not zero: no quotient by it, which may underflow."""
    # A CPU takes 30 times as long for an exponential of minus infinity as for one of zero.
    nothing = weight == 0
    return (logits - lse).masked_fill(nothing, 0.0).exp().masked_fill(nothing, 0.0)


@autograd_without_autocast
class _SinkSoftmax(torch.autograd.Function):
    """Returns the weights and the log-sum-exp; both are differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
        scores = (logits + weight.log()).masked_fill(weight == 0, -math.inf)
        shift = torch.maximum(scores.amax(dim=-1, keepdim=True), sink)
        terms = weight * _unweighted(logits, weight, shift)
        total = (sink - shift).exp() + terms.sum(dim=-1, keepdim=True)
        alpha, lse = terms / total, shift + total.log()
        ctx.save_for_backward(logits, weight, sink, alpha, lse)
        ctx.set_materialize_grads(False)
        return alpha, lse

    @staticmethod
    def backward(
        ctx: Any, grad_alpha: Tensor | None, grad_lse: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_alpha is None and grad_lse is None:
            return None, None, None
        logits, weight, sink, alpha, lse = ctx.saved_tensors
        need_logits, need_weight, need_sink = ctx.needs_input_grad
        shared = torch.zeros_like(lse) if grad_lse is None else grad_lse
        change = shared
        if grad_alpha is not None:
            shared = shared - (alpha * grad_alpha).sum(dim=-1, keepdim=True)
            change = grad_alpha + shared
        return (
            alpha * change if need_logits else None,
            (_unweighted(logits, weight, lse) * change).sum(dim=1, keepdim=True)
            if need_weight
            else None,
            ((sink - lse).exp() * shared).sum(dim=(0, 2)).view_as(sink) if need_sink else None,
        )
