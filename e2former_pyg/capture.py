"""Force training on a GPU without launches: a CUDA graph of a loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data

from .cuda_graphs import Captured
from .graph import CSRNeighborhood, as_cell
from .graph.padded import PaddedNeighborhood
from .models import E2FormerPotential, PotentialOutput
from .models.fixed_elements import radial_networks
from .models.graphs import GraphInput, from_data, sorted_edges
from .models.inference import can_capture
from .tracing import check_differentiates, copied_like

__all__ = ["CapturedGradients"]

# Labels of graphs, and labels of atoms.
_OF_GRAPHS = ("energy", "stress")
_OF_ATOMS = ("forces",)
# What inputs hold of graphs.
_SYSTEMS = ("cell", "pbc", "charge", "spin")
# What is in labels whatever the loss.
_LABELS = {*_OF_GRAPHS, *_OF_ATOMS, "num_atoms", "graph_weight", "atom_weight"}

PaddedLoss = Callable[[PotentialOutput, Data], Tensor]


class CapturedGradients:
    r"""The loss of batches, which may hold forces and stresses, and its gradients by the parameters
    of a potential, as one CUDA graph.

    Autograd launches some 1,600 kernels for a training step, which for small molecules takes ten
    times as long as running them. A graph launches once. It serves any molecules and crystals:
    batches are padded by graphs without atoms and one of lone atoms to the graphs, atoms and edges
    that the captured graph has room for, and a larger batch is captured anew, with more room.
    Where all batches have the same atoms and edges, :func:`~e2former_pyg.tracing.trace_gradients`
    spares the padding and half of the kernels.

    Losses must leave the padding out. They are called as :obj:`loss(out, labels)`, where
    :obj:`labels` holds :obj:`energy` :math:`(G)`, :obj:`forces` :math:`(N, 3)` and :obj:`stress`
    :math:`(G, 3, 3)` as far as batches have them, with zeros on padding, :obj:`num_atoms`
    :math:`(G)`, and :obj:`graph_weight` :math:`(G)` and :obj:`atom_weight` :math:`(N)`, which are
    one over the number of graphs or atoms of the batch, and zero on padding: a sum of
    :obj:`atom_weight` times errors is their mean over the atoms. What a graph was captured with
    stays as it was, but for these: numbers that change, such as weights that follow the step, are
    given by each call, and are in :obj:`labels` as well.

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
            :obj:`elements` and without dropout, and served by the Triton kernels. Its parameters
            have to stay in their memory, as optimizers leave them, and gradients of a call last
            until the next one.
        loss (callable): The loss.
        spare (float, optional): Room for further graphs, atoms and edges, as a share of those of
            the batch that is captured. (default: :obj:`0.2`)

    Raises:
        ValueError: If :obj:`model` was made without :obj:`elements` or with dropout, or
            :obj:`spare` is negative; when called, if the model is in eval mode or not served.
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
        self._layers = list(radial_networks(model))
        self._captured: _Step | None = None

    def takes(self, data: Batch) -> bool:
        r"""Whether batches like this can be captured: on a GPU, where the kernels serve the model.

        Args:
            data (torch_geometric.data.Batch): A batch.
        """
        return can_capture(self.model, self._layers, data.pos)

    def __call__(self, data: Batch, **numbers: float) -> Tensor:
        r"""Sets :obj:`.grad` of the parameters and returns the loss.

        Args:
            data (Batch): Graphs on the GPU with their labels.
            **numbers (float, optional): Further numbers that the loss reads: each is in
                :obj:`labels` by its name, as a float64 tensor.
        """
        if not self.takes(data):
            backend = self.model.backbone.config["backend"]
            raise ValueError(
                "`data` must be on a GPU where the kernels serve the model to be captured, got "
                f"{data.pos.device} and backend={backend!r}"
            )
        check_differentiates(self.model)
        taken = sorted(_LABELS & numbers.keys())
        if taken:
            raise ValueError(f"`{taken[0]}` is the name of a label, expected one of a number")
        inputs = _prepare(data, self.model.cutoff)
        if self._captured is None or not self._captured.fits(inputs, data, numbers):
            room = _Room.of(inputs, data, self.spare)
            if self._captured is not None:  # batches of many graphs may have few edges
                room = _Room(*map(max, room, self._captured.room))
            self._captured = None  # its memory goes first
            self._captured = _Step(self.model, self.loss, inputs, data, room, numbers)
        value, gradients = self._captured(inputs, data, numbers)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return value.clone()

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.model})"


class _Room(NamedTuple):
    """What fits into the memory of a graph, the padding included."""

    graphs: int
    atoms: int
    edges: int

    @classmethod
    def of(cls, inputs: GraphInput, data: Batch, spare: float) -> _Room:
        """Room for a batch and a share more."""
        assert inputs.edge_index is not None
        sizes = data.num_graphs, inputs.pos.size(0), inputs.edge_index.size(1)
        graphs, atoms, edges = (int((1 + spare) * size) for size in sizes)
        return cls(graphs + 1, atoms + 1, edges + 64)


class _Step:
    """A CUDA graph, with the memory that it reads."""

    def __init__(
        self,
        model: E2FormerPotential,
        loss: PaddedLoss,
        inputs: GraphInput,
        data: Batch,
        room: _Room,
        numbers: Mapping[str, float],
    ) -> None:
        pos, device = inputs.pos, inputs.pos.device
        self.room = room
        self._edges = PaddedNeighborhood(room.atoms, room.edges, pos.dtype, device)
        self._keys = _keys(inputs, data, numbers)

        def zeros(like: Tensor, size: int) -> Tensor:
            return like.new_zeros(size, *like.shape[1:])

        graphs, atoms = room.graphs, room.atoms
        systems = {name: getattr(inputs, name) for name in _SYSTEMS}
        self._inputs = own = GraphInput(
            z=zeros(inputs.z, atoms),
            pos=zeros(pos, atoms),
            batch=torch.zeros(atoms, dtype=torch.long, device=device),
            edge_index=self._edges.edge_index,
            edge_shift=self._edges.edge_shift,
            batch_size=graphs,
            **{name: zeros(v, graphs) for name, v in systems.items() if v is not None},
        )
        of_graphs = {name: zeros(data[name], graphs) for name in _OF_GRAPHS if name in data}
        of_atoms = {name: zeros(data[name], atoms) for name in _OF_ATOMS if name in data}
        self._labels = labels = Data(
            **of_graphs,
            **of_atoms,
            num_atoms=torch.ones(graphs, dtype=torch.long, device=device),
            graph_weight=pos.new_zeros(graphs),
            atom_weight=pos.new_zeros(atoms),
            **{name: pos.new_zeros((), dtype=torch.float64) for name in numbers},
        )
        # Lone atoms of an element that the model knows.
        elements: Any = model.backbone.config["elements"]
        self._element = int(elements[0])
        self._write(inputs, data, numbers)
        parameters = [p for p in model.parameters() if p.requires_grad]

        # Without `self`, which would be a cycle and keep the memory of a graph that is replaced.
        def run() -> tuple[Tensor, dict[torch.nn.Parameter, Tensor]]:
            with torch.enable_grad():
                value = loss(model._evaluate(own, differentiable=True), labels)
                found = torch.autograd.grad(value, parameters, materialize_grads=True)
            gradients = map(copied_like, found, parameters)
            return value.detach(), dict(zip(parameters, gradients, strict=True))

        self._run = Captured(run, device)

    def fits(self, inputs: GraphInput, data: Batch, numbers: Mapping[str, float]) -> bool:
        """Whether there is room for a batch."""
        assert inputs.edge_index is not None
        return (
            data.num_graphs < self.room.graphs
            and inputs.pos.size(0) < self.room.atoms
            and inputs.edge_index.size(1) <= self.room.edges
            and _keys(inputs, data, numbers) == self._keys
        )

    def _write(self, inputs: GraphInput, data: Batch, numbers: Mapping[str, float]) -> None:
        atoms, graphs = inputs.pos.size(0), data.num_graphs
        own = self._inputs
        own.z[:atoms], own.z[atoms:] = inputs.z, self._element
        own.pos[:atoms], own.pos[atoms:] = inputs.pos, 0.0
        assert own.batch is not None and inputs.edge_index is not None
        own.batch[:atoms] = 0 if inputs.batch is None else inputs.batch
        own.batch[atoms:] = self.room.graphs - 1
        for name in _SYSTEMS:
            mine, theirs = getattr(own, name), getattr(inputs, name)
            if mine is not None:
                mine[:graphs], mine[graphs:] = theirs, int(name == "spin")
        size = (self.room.atoms, self.room.atoms)
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
        labels.num_atoms[:graphs], labels.num_atoms[graphs:] = data.ptr.diff(), 1
        labels.graph_weight[:graphs], labels.graph_weight[graphs:] = 1 / graphs, 0.0
        labels.atom_weight[:atoms], labels.atom_weight[atoms:] = 1 / atoms, 0.0
        for name, number in numbers.items():
            labels[name].fill_(number)

    def __call__(
        self, inputs: GraphInput, data: Batch, numbers: Mapping[str, float]
    ) -> tuple[Tensor, dict[torch.nn.Parameter, Tensor]]:
        self._write(inputs, data, numbers)
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


def _keys(inputs: GraphInput, data: Batch, numbers: Mapping[str, float]) -> tuple[object, ...]:
    """What a call brings, beside sizes."""
    tensors = {name: data.get(name) for name in (*_OF_GRAPHS, *_OF_ATOMS)}
    tensors |= {name: getattr(inputs, name) for name in ("pos", *_SYSTEMS)}
    kinds = [
        (name, value.dtype, value.shape[1:]) for name, value in tensors.items() if value is not None
    ]
    return (*kinds, *sorted(numbers))
