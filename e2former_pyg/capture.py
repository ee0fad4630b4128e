"""Force training on a GPU without launches: a CUDA graph of a loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data

from .cuda_graphs import Captured
from .graph import CSRNeighborhood, as_cell
from .graph.padded import PaddedNeighborhood
from .models import E2FormerPotential, PotentialOutput
from .models.graphs import GraphInput, from_data, sorted_edges

__all__ = ["CapturedGradients"]

# Labels of graphs, and labels of atoms.
_OF_GRAPHS = ("energy", "stress")
_OF_ATOMS = ("forces",)
# What inputs hold of graphs.
_SYSTEMS = ("cell", "pbc", "charge", "spin")

PaddedLoss = Callable[[PotentialOutput, Data], Tensor]


class CapturedGradients:
    r"""The loss of batches, which may hold forces and stresses, and its gradients by the parameters
    of a potential, as one CUDA graph.

    Autograd launches some 1,600 kernels for a training step, which for small molecules takes ten
    times as long as running them. A graph launches once. It serves any molecules and crystals:
    batches are padded by an additional graph of lone atoms to the atoms and edges that the captured
    graph has room for, and a larger batch is captured anew, with its number of graphs as well.
    Where all batches have the same atoms and edges, :func:`~e2former_pyg.tracing.trace_gradients`
    spares the padding and half of the kernels.

    Losses must leave the padding out. They are called as :obj:`loss(out, labels)`, where
    :obj:`labels` holds :obj:`energy` :math:`(G)`, :obj:`forces` :math:`(N, 3)` and :obj:`stress`
    :math:`(G, 3, 3)` as far as batches have them, with zeros on padding, :obj:`num_atoms`
    :math:`(G)`, and :obj:`graph_weight` :math:`(G)` and :obj:`atom_weight` :math:`(N)`, which are
    one over the number of graphs or atoms of the batch, and zero on padding: a sum of
    :obj:`atom_weight` times errors is their mean over the atoms.

    .. code-block:: python

        def loss(out, labels):
            forces = (out.forces - labels.forces).abs().sum(-1)
            energy = (out.energy - labels.energy).abs() / labels.num_atoms
            return labels.atom_weight @ forces + (labels.graph_weight @ energy.float())

        gradients = CapturedGradients(model, loss)
        for data in loader:
            value = gradients(data.cuda())  # sets `.grad`
            optimizer.step()

    Args:
        model (E2FormerPotential): The potential, on a GPU, in training mode, made with
            :obj:`elements` and without dropout. Its parameters have to stay in their memory, as
            optimizers leave them, and gradients of a call last until the next one.
        loss (callable): The loss.
        spare (float, optional): Room for further atoms and edges, as a share of those of the batch
            that is captured. (default: :obj:`0.2`)

    Raises:
        ValueError: If :obj:`model` is not like that, or :obj:`spare` is negative.
    """

    def __init__(self, model: E2FormerPotential, loss: PaddedLoss, *, spare: float = 0.2) -> None:
        config: dict[str, Any] = model.backbone.config
        if config["elements"] is None:
            raise ValueError("`model` must be made with `elements` to be captured, got None")
        dropout = config["dropout"]
        if dropout > 0:
            raise ValueError(f"`model` must have no dropout to be captured, got {dropout}")
        if not spare >= 0:
            raise ValueError(f"`spare` must not be negative, got {spare}")
        self.model = model
        self.loss = loss
        self.spare = spare
        self._captured: _Step | None = None

    def __call__(self, data: Batch) -> Tensor:
        r"""Sets :obj:`.grad` of the parameters and returns the loss.

        Args:
            data (Batch): Graphs on the GPU with their labels.
        """
        if not data.pos.is_cuda:
            raise ValueError(f"`data` must be on a GPU to be captured, got {data.pos.device}")
        inputs = _prepare(data, self.model.cutoff)
        if self._captured is None or not self._captured.fits(inputs, data):
            self._captured = None  # its memory goes first
            self._captured = _Step(self.model, self.loss, inputs, data, self.spare)
        value, gradients = self._captured(inputs, data)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return value.clone()

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.model})"


class _Step:
    """A CUDA graph, with the memory that it reads."""

    def __init__(
        self,
        model: E2FormerPotential,
        loss: PaddedLoss,
        inputs: GraphInput,
        data: Batch,
        spare: float,
    ) -> None:
        pos, edges = inputs.pos, inputs.edge_index
        assert edges is not None
        device = pos.device
        self.num_graphs = data.num_graphs + 1
        self.num_atoms = int((1 + spare) * pos.size(0)) + 1
        self.num_edges = int((1 + spare) * edges.size(1)) + 64
        self._edges = PaddedNeighborhood(self.num_atoms, self.num_edges, pos.dtype, device)
        self._keys = _keys(inputs, data)

        def room(like: Tensor, size: int) -> Tensor:
            return like.new_zeros(size, *like.shape[1:])

        graphs, atoms = self.num_graphs, self.num_atoms
        systems = {name: getattr(inputs, name) for name in _SYSTEMS}
        self._inputs = GraphInput(
            z=room(inputs.z, atoms),
            pos=room(pos, atoms),
            batch=torch.zeros(atoms, dtype=torch.long, device=device),
            edge_index=self._edges.edge_index,
            edge_shift=self._edges.edge_shift,
            batch_size=graphs,
            **{name: room(v, graphs) for name, v in systems.items() if v is not None},
        )
        of_graphs = {name: room(data[name], graphs) for name in _OF_GRAPHS if name in data}
        of_atoms = {name: room(data[name], atoms) for name in _OF_ATOMS if name in data}
        self._labels = Data(
            **of_graphs,
            **of_atoms,
            num_atoms=torch.ones(graphs, dtype=torch.long, device=device),
            graph_weight=pos.new_zeros(graphs),
            atom_weight=pos.new_zeros(atoms),
        )
        # Lone atoms of an element that the model knows.
        elements: Any = model.backbone.config["elements"]
        self._element = int(elements[0])
        self._write(inputs, data)
        parameters = [p for p in model.parameters() if p.requires_grad]

        def run() -> tuple[Tensor, dict[torch.nn.Parameter, Tensor]]:
            with torch.enable_grad():
                value = loss(model._evaluate(self._inputs, differentiable=True), self._labels)
                found = torch.autograd.grad(value, parameters, materialize_grads=True)
            return value.detach(), dict(zip(parameters, found, strict=True))

        self._run = Captured(run, device)

    def fits(self, inputs: GraphInput, data: Batch) -> bool:
        """Whether there is room for a batch."""
        assert inputs.edge_index is not None
        return (
            data.num_graphs + 1 == self.num_graphs
            and inputs.pos.size(0) < self.num_atoms
            and inputs.edge_index.size(1) <= self.num_edges
            and _keys(inputs, data) == self._keys
        )

    def _write(self, inputs: GraphInput, data: Batch) -> None:
        atoms, graphs = inputs.pos.size(0), data.num_graphs
        own = self._inputs
        own.z[:atoms], own.z[atoms:] = inputs.z, self._element
        own.pos[:atoms], own.pos[atoms:] = inputs.pos, 0.0
        assert own.batch is not None and inputs.edge_index is not None
        own.batch[:atoms] = 0 if inputs.batch is None else inputs.batch
        own.batch[atoms:] = graphs
        for name in _SYSTEMS:
            mine, theirs = getattr(own, name), getattr(inputs, name)
            if mine is not None:
                mine[:graphs] = theirs
        if own.spin is not None:
            own.spin[graphs:] = 1
        size = (self.num_atoms, self.num_atoms)
        # The same edges among the nodes of the padding as well, none of which has one.
        edges: Any = inputs.edge_index
        edges = EdgeIndex(edges.as_tensor(), sparse_size=size, sort_order="col")
        neighborhood = CSRNeighborhood.from_edge_index(edges, size)
        self._edges.update(neighborhood, inputs.edge_shift, own.pos)
        labels = self._labels
        for name in (*_OF_GRAPHS, *_OF_ATOMS):
            if name in labels:
                labels[name][: data[name].size(0)] = data[name]
                labels[name][data[name].size(0) :] = 0.0
        labels.num_atoms[:graphs] = data.ptr.diff()
        labels.graph_weight[:graphs] = 1 / graphs
        labels.atom_weight[:atoms], labels.atom_weight[atoms:] = 1 / atoms, 0.0

    def __call__(
        self, inputs: GraphInput, data: Batch
    ) -> tuple[Tensor, dict[torch.nn.Parameter, Tensor]]:
        self._write(inputs, data)
        return self._run()


def _prepare(data: Batch, cutoff: float) -> GraphInput:
    """What the model reads of a batch, with edges sorted by target and a cell for each graph."""
    inputs, graphs = from_data(data, cutoff), data.num_graphs
    edges, shift = sorted_edges(inputs, cutoff, graphs)
    inputs = inputs._replace(edge_index=edges, edge_shift=shift)
    if inputs.cell is None:
        return inputs._replace(pbc=None)
    cell, pbc = as_cell(inputs.cell, inputs.pbc, graphs, inputs.pos.dtype, inputs.pos.device)
    return inputs._replace(cell=cell, pbc=pbc)


def _keys(inputs: GraphInput, data: Batch) -> tuple[object, ...]:
    """What a batch brings, beside its sizes."""
    tensors = {name: data.get(name) for name in (*_OF_GRAPHS, *_OF_ATOMS)}
    tensors |= {name: getattr(inputs, name) for name in ("pos", *_SYSTEMS)}
    return tuple(
        (name, value.dtype, value.shape[1:]) for name, value in tensors.items() if value is not None
    )
