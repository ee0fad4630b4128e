"""Force training without autograd at run time: one traced graph for a loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from .checks import check_shape
from .cuda_graphs import Captured
from .fx_passes import simplify
from .models.potential import E2FormerPotential

__all__ = ["trace_gradients"]

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
Gradients = Callable[[Mapping[str, Tensor]], tuple[Tensor, list[Tensor]]]


class _Loss(nn.Module):
    """A loss as a module, so that parameters can be replaced by traced ones."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.loss(self.model, inputs)


def trace_gradients(
    model: nn.Module,
    loss: Loss,
    inputs: Mapping[str, Tensor],
    *,
    compile: bool = False,
    cuda_graph: bool = False,
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
        model (torch.nn.Module): The model. Potentials whose forces or stresses are derivatives must
            be in training mode, since they are constants otherwise.
        loss (callable): :obj:`loss(model, inputs)` gives a scalar.
        inputs (dict): Tensors like those of later calls, *e.g.*, positions and labels.
        compile (bool, optional): If set to :obj:`True`, the graph is compiled with
            :func:`torch.compile`, which takes minutes for a model of two blocks on two cores, to
            save a fifth of each step there, and needs a C++ compiler on the CPU.
            (default: :obj:`False`)
        cuda_graph (bool, optional): If set to :obj:`True`, the graph runs as a CUDA graph, which
            replaces a thousand launches by one. Parameters then have to stay in their memory, as
            optimizers leave them, and the gradients of a call last until the next one.
            (default: :obj:`False`)

    Returns:
        A function of such inputs that sets :obj:`.grad` of the parameters and returns the loss.

    Raises:
        ValueError: If a potential is not in training mode.
    """
    for module in model.modules():
        if isinstance(module, E2FormerPotential):
            check_differentiates(module)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with_loss = _Loss(model, loss)

    def value_and_gradients(
        weights: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        traced = {f"model.{name}": weight for name, weight in weights.items()}
        value = torch.func.functional_call(with_loss, traced, (inputs,))
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
    def evaluate(inputs: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        weights = {name: p.detach() for name, p in parameters.items()}
        value, gradients = graph(weights, dict(inputs))
        # Gradients may share memory, and callers may change them in place.
        copies = map(copied_like, gradients, parameters.values())
        return value, list(copies)

    gradients_of = _captured(evaluate, inputs) if cuda_graph else evaluate

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        value, gradients = gradients_of(inputs)
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        return value

    return run


def check_differentiates(potential: E2FormerPotential) -> None:
    """Refuses a potential whose gradients would silently lack what forces contribute."""
    derivatives = potential.forces == "conservative" or potential.stress
    if derivatives and not potential.training:
        raise ValueError(
            "`model` must be in training mode for its forces to be differentiated, got eval mode"
        )


def copied_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A copy that lies in memory as the parameter does, which fused optimizers rely on."""
    return torch.empty_like(parameter).copy_(gradient)


def _captured(evaluate: Gradients, inputs: Mapping[str, Tensor]) -> Gradients:
    """The same as a CUDA graph."""
    own = {name: tensor.clone() for name, tensor in inputs.items()}
    device = next(iter(own.values())).device
    captured = Captured(lambda: evaluate(own), device)

    @torch.no_grad()
    def replay(inputs: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        for name, tensor in own.items():
            check_shape(name, inputs[name], *tensor.shape)  # none is broadcast
            tensor.copy_(inputs[name])
        value, gradients = captured()
        return value.clone(), gradients

    return replay
