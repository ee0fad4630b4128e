"""Force training without autograd at run time: one traced graph for a loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from .fx_passes import simplify

__all__ = ["trace_gradients"]

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


class _Loss(nn.Module):
    """A loss as a module, so that parameters can be replaced by traced ones."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.loss(self.model, inputs)


def trace_gradients(
    model: nn.Module, loss: Loss, inputs: Mapping[str, Tensor], *, compile: bool = False
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    r"""Traces a loss, which may hold forces, and its gradients by the parameters of a model into
    one graph.

    :func:`torch.compile` cannot differentiate twice, and autograd spends much of a small model's
    training step on its own work. Here energies, forces and parameter gradients become one list
    of operations, which runs as it is or is compiled. What layers would compute twice to save
    memory is computed once.

    The graph holds for the shapes of :obj:`inputs` and for everything else that :obj:`loss` reads
    as it was when traced: neighbourhoods, elements and buffers. It fits frames of one molecule
    whose neighbours do not change; build a new one for others. A model made with :obj:`elements`
    and with edges in an :class:`~torch_geometric.EdgeIndex` sorted by :obj:`"col"` can be traced
    after one call on the same :class:`~torch_geometric.EdgeIndex`.

    Args:
        model (torch.nn.Module): The model.
        loss (callable): :obj:`loss(model, inputs)` gives a scalar.
        inputs (dict): Tensors like those of later calls, *e.g.*, positions and labels.
        compile (bool, optional): If set to :obj:`True`, the graph is compiled with
            :func:`torch.compile`, which takes minutes for a model of two blocks on two cores, to
            save a fifth of each step there, and needs a C++ compiler on the CPU.
            (default: :obj:`False`)

    Returns:
        A function of such inputs that sets :obj:`.grad` of the parameters and returns the loss.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    module = _Loss(model, loss)

    def value_and_gradients(
        weights: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        traced = {f"model.{name}": weight for name, weight in weights.items()}
        value = torch.func.functional_call(module, traced, (inputs,))
        gradients = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
        return value, list(gradients)

    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    graph: Any = make_fx(value_and_gradients)(leaves, dict(inputs))
    # Derivatives by positions that only forces needed.
    graph.graph.eliminate_dead_code()
    graph.recompile()
    with torch.no_grad():
        weights = {name: p.detach() for name, p in parameters.items()}
        graph = simplify(graph, (weights, dict(inputs)))
    if compile:
        # No vectors of its own making on the CPU: in PyTorch 2.13 their sums over an index reach
        # beyond the end of a tensor.
        graph = torch.compile(graph, fullgraph=True, options={"cpp.simdlen": 1})

    @torch.no_grad()
    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        weights = {name: p.detach() for name, p in parameters.items()}
        value, gradients = graph(weights, dict(inputs))
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            # Gradients may share memory, and callers may change them in place.
            parameter.grad = gradient.clone()
        return value

    return run
