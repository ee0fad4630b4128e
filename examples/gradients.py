"""The loss of a batch and the gradients of the parameters, with autograd or from a traced graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data

from e2former_pyg import E2FormerPotential, PotentialOutput
from e2former_pyg.tracing import trace_gradients

Gradients = Callable[[Batch], Tensor]
"""Sets ``.grad`` of the parameters and returns the loss."""


def loss_function(out: PotentialOutput, data: Data, energy_weight: float) -> Tensor:
    """Mean length of the force errors, plus the weighted mean energy error."""
    assert out.forces is not None
    # The small constant keeps the derivative of a length finite at zero.
    forces = ((out.forces - data.forces).square().sum(-1) + 1e-10).sqrt().mean()
    energy = (out.energy - data.energy.view_as(out.energy)).abs().mean()
    return forces + energy_weight * energy.to(forces.dtype)


class EagerGradients:
    """For any model and any batch, and for any ``loss`` of what the model returns."""

    def __init__(
        self,
        model: nn.Module,
        energy_weight: float,
        loss: Callable[[Any, Batch], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.parameters = list(model.parameters())
        self.loss = loss or (lambda out, data: loss_function(out, data, energy_weight))

    def __call__(self, data: Batch) -> Tensor:
        loss = self.loss(self.model(data), data)
        self.model.zero_grad(set_to_none=True)
        # Naming the inputs spares the second derivatives by the positions.
        loss.backward(inputs=self.parameters)
        return loss.detach()


class TracedGradients:
    """For batches that have the atoms and edges of the first, which takes seconds."""

    def __init__(self, model: E2FormerPotential, energy_weight: float) -> None:
        self.model = model
        self.energy_weight = energy_weight
        self.run: Callable[[Mapping[str, Tensor]], Tensor] | None = None

    def __call__(self, data: Batch) -> Tensor:
        inputs = {key: data[key] for key in ("pos", "energy", "forces")}
        if self.run is None:
            self.run = self._trace(data, inputs)
        return self.run(inputs)

    def _trace(
        self, data: Batch, inputs: dict[str, Tensor]
    ) -> Callable[[Mapping[str, Tensor]], Tensor]:
        self.model(data)  # refuses what later calls take for granted
        size = (data.num_nodes, data.num_nodes)
        edges = EdgeIndex(data.edge_index, sparse_size=size).sort_by("col").values

        def loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
            pos, batch_size = inputs["pos"], data.num_graphs
            out = model(data.z, pos, data.batch, edge_index=edges, batch_size=batch_size)
            return loss_function(out, Data(**inputs), self.energy_weight)

        loss(self.model, inputs)
        return trace_gradients(self.model, loss, inputs, cuda_graph=data.pos.is_cuda)


def choose_gradients(
    model: nn.Module, frames: Sequence[Data], energy_weight: float
) -> EagerGradients | TracedGradients:
    """Traced ones where batches of a fixed size repeat their atoms and edges, and the model has
    fixed :obj:`elements`, so that shapes are fixed too.
    """
    if isinstance(model, E2FormerPotential):
        fixed = model.backbone.config["elements"] is not None
        if fixed and all(_same_graph(frame, frames[0]) for frame in frames):
            return TracedGradients(model, energy_weight)
    return EagerGradients(model, energy_weight)


def _same_graph(frame: Data, other: Data) -> bool:
    return (
        set(frame.keys()) == {"z", "pos", "energy", "forces", "edge_index", "edge_cutoff"}
        and torch.equal(frame.z, other.z)
        and torch.equal(frame.edge_index, other.edge_index)
    )
