"""Potentials for many evaluations, as simulations make them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from ..cuda_graphs import Captured
from ..functional.backends import takes_triton
from ..graph import CSRNeighborhood, as_cell
from ..graph.padded import PaddedNeighborhood, is_within
from ..nn.message_passing import EquivariantMessagePassing
from .e2former import E2Former
from .fixed_elements import fix_elements, radial_networks
from .graphs import GraphInput, as_input, check_atoms, sorted_edges
from .potential import E2FormerPotential, PotentialOutput
from .traced import RepeatedEvaluation

# Atoms from which on launches no longer take longer than what they launch, so that graphs, which
# hold on to their memory, gain nothing.
MAX_CAPTURED_ATOMS = 32768
# Graphs that are kept: those of the last systems that had one.
MAX_GRAPHS = 8
# Share of edges beyond the cutoff from which on leaving them out costs less than they do.
_MANY_LONG_EDGES = 0.05


class InferencePotential:
    r"""An :class:`E2FormerPotential` for many evaluations with the weights as they are, made by
    :meth:`E2FormerPotential.compile_for_inference`. It is called in the same way, and gives the
    same energies, forces and stresses, which have no autograd graph.

    On a GPU, where the kernels serve the model, systems of up to :obj:`32768` atoms run as CUDA
    graphs, which replace hundreds of launches by one. A graph is captured at the second call with a
    number of atoms and graphs; it serves any positions, elements and edges, and is captured anew
    when there are more edges than it has room for. It keeps the memory that an evaluation needs;
    the last eight are kept. Calls inside :class:`torch.autocast` regions have graphs of their own.

    On the CPU, systems of up to :obj:`4096` edges run as a trace, a list of operations without the
    share of Python and autograd. It is made, in seconds, after 200 calls in turn with the same
    atoms and edges.

    Neighbours are searched in each call without :obj:`edge_index`, which takes longer than the
    rest in small systems. Simulations should give edges that reach somewhat beyond the cutoff, and
    the same tensors until an atom has moved too far: what is derived from them is kept as well. On
    a GPU each call leaves out those that are too long at the time.

    Args:
        potential (E2FormerPotential): The potential. It is copied.
        spare_edges (float, optional): Room for further edges in a CUDA graph, as a share of those
            present. (default: :obj:`0.2`)
    """

    def __init__(self, potential: E2FormerPotential, *, spare_edges: float = 0.2) -> None:
        if not spare_edges >= 0:
            raise ValueError(f"`spare_edges` must not be negative, got {spare_edges}")
        self.potential = copy.deepcopy(potential).eval().requires_grad_(False)
        self.spare_edges = spare_edges
        self._networks = radial_networks(self.potential)
        self._elements: frozenset[int] = frozenset()
        self._captured: dict[tuple[Any, ...], _Replay | None] = {}
        self._checked = _Remembered()
        self._edges = _Remembered()
        # A trace each without and with the stress, which may be asked for now and then.
        self._repeated = {with_: RepeatedEvaluation(self.potential) for with_ in (False, True)}

    def __getstate__(self) -> dict[str, Any]:
        # CUDA graphs cannot be copied; copies capture their own.
        return {**self.__dict__, "_captured": {}}

    @property
    def cutoff(self) -> float:
        """The cutoff in Å."""
        return self.potential.cutoff

    def __call__(
        self,
        data: Data | Tensor | None = None,
        pos: Tensor | None = None,
        batch: Tensor | None = None,
        **others: Any,
    ) -> PotentialOutput:
        r"""Evaluates the potential; arguments are those of :meth:`E2FormerPotential.forward`."""
        inputs = as_input(data, pos, batch, self.cutoff, **others)
        with torch.inference_mode(False), torch.no_grad():
            # Tensors made in inference mode can never enter autograd; copies made outside can.
            own = (
                value.clone() if isinstance(value, Tensor) and value.is_inference() else value
                for value in inputs
            )
            return self._evaluate(GraphInput._make(own))

    def _evaluate(self, inputs: GraphInput) -> PotentialOutput:
        check_atoms(inputs.z, inputs.pos, inputs.batch, inputs.batch_size)
        if not self._checked.holds(inputs.z):
            self._learn_elements(inputs.z)
            self._checked.store(None, inputs.z)
        graph, num_graphs = inputs.graph_of_atom()
        given = inputs.edge_index, inputs.edge_shift
        # What the edges are checked against.
        system = inputs.z.size(0), inputs.is_periodic()
        known = self._edges.value is not None and self._edges.value[0] == system
        if inputs.edge_index is None or not known or not self._edges.holds(*given):
            self._edges.store((system, *sorted_edges(inputs, self.cutoff, num_graphs)), *given)
        _, edges, shift = self._edges.value
        inputs = inputs._replace(
            batch=graph, batch_size=num_graphs, edge_index=edges, edge_shift=shift
        )
        if can_capture(self.potential, self._networks, inputs.pos):
            if inputs.pos.size(0) <= MAX_CAPTURED_ATOMS:
                return self._replay(inputs, num_graphs)
            inputs = without_long_edges(inputs, self.cutoff)
        if inputs.pos.device.type == "cpu" and type(self.potential.backbone) is E2Former:
            return self._repeated[self.potential.stress](inputs)
        return self.potential._evaluate(inputs, differentiable=False)

    def _learn_elements(self, z: Tensor) -> None:
        """Makes splines of the pairs of all elements seen so far."""
        present = frozenset(z.unique().tolist())
        if present <= self._elements:
            return
        fix_elements(self._networks, sorted(present | self._elements), z.device)
        self._elements |= present
        self._captured.clear()
        for repeated in self._repeated.values():
            repeated.reset()

    def _replay(self, inputs: GraphInput, num_graphs: int) -> PotentialOutput:
        size = (inputs.z.size(0), inputs.z.size(0))
        assert inputs.edge_index is not None
        neighborhood = CSRNeighborhood.from_edge_index(inputs.edge_index, size)
        if self.potential.stress:
            cell, pbc = as_cell(
                inputs.cell, inputs.pbc, num_graphs, inputs.pos.dtype, inputs.pos.device
            )
            inputs = inputs._replace(cell=cell, pbc=pbc)
        else:  # where edges and offsets are given, only the stress needs them
            inputs = inputs._replace(cell=None, pbc=None)
        shapes = (
            (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value
            for value in inputs._replace(edge_index=None, edge_shift=None)
        )
        key = (*shapes, self.potential.stress, self.potential.forces, _autocast_dtype())
        if key not in self._captured:
            self._keep(key, None)
            return self.potential._evaluate(inputs, differentiable=False)
        captured = self._captured.pop(key)
        if captured is None or captured.capacity < neighborhood.num_edges:
            captured = None  # its memory goes first
            capacity = int((1 + self.spare_edges) * neighborhood.num_edges) + 64
            captured = _Replay(self.potential, inputs, neighborhood, capacity)
        self._keep(key, captured)
        return captured(inputs, neighborhood)

    def _keep(self, key: tuple[Any, ...], captured: _Replay | None) -> None:
        """Keeps a graph, or that a system of its kind was seen."""
        self._captured[key] = captured
        if len(self._captured) > MAX_GRAPHS:
            del self._captured[next(iter(self._captured))]

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.potential})"


def can_capture(
    potential: E2FormerPotential, layers: Iterable[EquivariantMessagePassing], pos: Tensor
) -> bool:
    """Whether the work on a potential with these layers fits into a CUDA graph that serves other
    edges as well: PyTorch's backend waits for the device and keeps what it derives from edges, and
    others' backbones may.
    """
    return (
        pos.is_cuda
        and type(potential.backbone) is E2Former
        and all(
            layer.algorithm == "direct"
            and takes_triton(layer.backend, pos, layer.coupling, layer.lmax_in)
            for layer in layers
        )
    )


def without_long_edges(inputs: GraphInput, cutoff: float) -> GraphInput:
    """Leaves out edges beyond the cutoff where they are many. Waits for the device."""
    edges = inputs.edge_index
    assert isinstance(edges, EdgeIndex)
    pairs, shift = edges.as_tensor(), inputs.edge_shift
    inside = is_within(inputs.pos, pairs, shift, cutoff)
    if not _are_many_long(inside.sum(), inside.numel()):
        return inputs
    kept = inside.nonzero().squeeze(1)
    edge_index = EdgeIndex(
        pairs.index_select(1, kept), sparse_size=edges.sparse_size(), sort_order="col"
    )
    edge_shift = None if shift is None else shift.index_select(0, kept)
    return inputs._replace(edge_index=edge_index, edge_shift=edge_shift)


def _are_many_long(inside: Tensor, num_edges: int) -> bool:
    return bool(inside < (1 - _MANY_LONG_EDGES) * num_edges)


def _autocast_dtype() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


class _Remembered:
    """Something made from tensors, for as long as the same ones come, unchanged."""

    value: Any = None

    def __init__(self) -> None:
        self._tensors: tuple[Tensor | None, ...] | None = None
        self._versions: tuple[int, ...] = ()

    def holds(self, *tensors: Tensor | None) -> bool:
        return (
            self._tensors is not None
            and all(one is other for one, other in zip(self._tensors, tensors, strict=True))
            and self._versions == _versions(tensors)
        )

    def store(self, value: Any, *tensors: Tensor | None) -> None:
        self.value = value
        self._tensors = tensors
        self._versions = _versions(tensors)


def _versions(tensors: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    """Counts of changes, of which an ``EdgeIndex`` has two."""
    both = (t.as_tensor() if isinstance(t, EdgeIndex) else None for t in tensors)
    return tuple(-1 if tensor is None else tensor._version for tensor in (*tensors, *both))


class _Replay:
    """A CUDA graph of one evaluation."""

    def __init__(
        self,
        potential: E2FormerPotential,
        inputs: GraphInput,
        neighborhood: CSRNeighborhood,
        capacity: int,
    ) -> None:
        device = inputs.pos.device
        self.capacity = capacity
        self._edges = PaddedNeighborhood(len(inputs.z), capacity, inputs.pos.dtype, device)
        # What the graph reads.
        self._inputs = GraphInput._make(
            value.clone() if isinstance(value, Tensor) else value
            for value in inputs._replace(edge_index=None, edge_shift=None)
        )
        self._written = _Remembered()
        self._write(inputs, neighborhood)
        given = used = self._edges
        inside = given.is_within(inputs.pos, potential.cutoff).sum()
        if _are_many_long(inside, neighborhood.num_edges):
            used = PaddedNeighborhood(len(inputs.z), capacity, inputs.pos.dtype, device)
        own = self._inputs._replace(edge_index=used.edge_index, edge_shift=used.edge_shift)

        def run() -> PotentialOutput:
            if used is not given:
                used.take_within(given, own.pos, potential.cutoff)
            return potential._evaluate(own, differentiable=False)

        self._run = Captured(run, device)

    def _write(self, inputs: GraphInput, neighborhood: CSRNeighborhood) -> None:
        for mine, theirs in zip(self._inputs, inputs, strict=True):
            if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
                mine.copy_(theirs)
        given = inputs.edge_index, inputs.edge_shift
        if not self._written.holds(*given):
            self._edges.update(neighborhood, inputs.edge_shift, inputs.pos)
            self._written.store(None, *given)

    def __call__(self, inputs: GraphInput, neighborhood: CSRNeighborhood) -> PotentialOutput:
        self._write(inputs, neighborhood)
        return PotentialOutput._make(None if out is None else out.clone() for out in self._run())
