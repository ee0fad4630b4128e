r"""Training with traced and captured gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data

from ..capture import CapturedGradients
from ..models import E2FormerPotential, PotentialOutput
from ..tracing import trace_gradients
from .losses import errors, loss_sums, weighted_means
from .module import E2FormerModule

MAX_TRACES = 4
"""Kinds of batches that are traced."""

GIVEN = ("z", "batch", "edge_index", "charge", "spin")
"""What batches of one kind have in common."""

Run = Callable[[Batch, Mapping[str, float]], Tensor]
"""Sets :obj:`.grad` of the parameters, by the weights of the losses, and returns the loss."""


class TracedE2FormerModule(E2FormerModule):
    r"""An :class:`E2FormerModule` whose loss and gradients run as one graph of operations instead
    of by autograd:

    - for frames of one molecule, batches with the same atoms and edges, a graph that is traced at
      the first of them by :meth:`~e2former_pyg.tracing.trace_gradients`, which takes seconds; up
      to four such kinds. On a GPU it runs as a CUDA graph, and batches of a single frame are left
      to the other kind. The frames must bring edges that do not change, from
      :class:`~e2former_pyg.transforms.RadiusGraph` with a cutoff larger than the molecule: those
      beyond the cutoff of the model contribute nothing.
    - for all other batches on a GPU, also periodic ones and those without edges, a CUDA graph of
      :class:`~e2former_pyg.capture.CapturedGradients`, which pads them.

    Without CUDA graphs, on a CPU and where the Triton kernels do not serve the model, other batches
    are computed as usual, with a warning.

    The model must be made with :obj:`elements` and without dropout, and be trained by one process
    in full precision. Of the losses :obj:`train/loss` alone is logged. Weights of losses may change
    from step to step, and gradients may be clipped or added up, as with :class:`E2FormerModule`.

    Args:
        model (E2FormerPotential): The potential.
        compile (bool, optional): If set to :obj:`True`, compiles what is traced, which takes
            minutes. (default: :obj:`False`)
        **kwargs: As in :class:`E2FormerModule`.
    """

    def __init__(self, model: E2FormerPotential, *, compile: bool = False, **kwargs: Any) -> None:
        config: dict[str, Any] = model.backbone.config
        if config["elements"] is None:
            raise ValueError("`model` must be made with `elements` to be traced, got None")
        if config["dropout"] > 0:
            raise ValueError(f"`model` must have no dropout to be traced, got {config['dropout']}")
        super().__init__(model, **kwargs)
        self.compile_graph = compile
        self._graphs = _Graphs()
        self._gradients: dict[nn.Parameter, Tensor] | None = None

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        if self.trainer.world_size > 1:
            raise ValueError(
                f"traced gradients are for one process, the trainer has {self.trainer.world_size}"
            )
        if not str(self.trainer.precision).endswith("true"):
            raise ValueError(
                f"traced gradients need full precision, the trainer has {self.trainer.precision}"
            )
        self._graphs = _Graphs()

    def teardown(self, stage: str) -> None:
        # Lightning moves the parameters from the GPU, and CUDA graphs read them where they were.
        self._graphs = _Graphs()

    def training_step(self, data: Batch, batch_idx: int) -> Tensor:
        self._gradients = None
        run = self._find(data)
        if run is None:
            return super().training_step(data, batch_idx)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        kept = [p.grad for p in parameters]  # of batches that are added up
        loss = run(data, self.loss_weights())
        self._gradients = {p: p.grad for p in parameters if p.grad is not None}
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient
        self.log("train/loss", loss.float(), prog_bar=True, batch_size=data.num_graphs)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._gradients is None:
            super().backward(loss, *args, **kwargs)
            return
        factor = 1 / self.trainer.accumulate_grad_batches
        for parameter, gradient in self._gradients.items():
            # A copy: a CUDA graph writes the next ones into the same memory.
            gradient = gradient * factor
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _find(self, data: Batch) -> Run | None:
        if self._graphs.padded is None:
            self._graphs.padded = CapturedGradients(self.model, self._padded_loss)
        captures = self._graphs.padded.takes(data)
        if data.get("edge_index") is None or data.get("cell") is not None:
            if captures:
                return self._run_padded
            reason = "have a cell" if "cell" in data else "have no edges"
            self._warn(f"batches {reason}")
            return None
        traces = self._graphs.traces
        for trace in traces:
            if trace.fits(data):
                return trace
        if captures and (len(traces) == MAX_TRACES or not _is_one_molecule(data)):
            return self._run_padded
        if len(traces) == MAX_TRACES:
            self._warn(f"there are more than {MAX_TRACES} kinds of batches")
            return None
        traces.append(_Trace(self, data, captures))
        return traces[-1]

    def _run_padded(self, data: Batch, weights: Mapping[str, float]) -> Tensor:
        assert self._graphs.padded is not None
        numbers = {f"{name}_weight": weight for name, weight in weights.items()}
        return self._graphs.padded(data, **numbers)

    def _padded_loss(self, out: PotentialOutput, labels: Data) -> Tensor:
        found = errors(out, labels, labels.num_atoms)
        means = weighted_means(found, self.wanted, labels.graph_weight, labels.atom_weight)
        return torch.stack([labels[f"{key}_weight"] * mean for key, mean in means.items()]).sum()

    @staticmethod
    def _warn(reason: str) -> None:
        warnings.warn(f"{reason}, whose gradients are not traced", stacklevel=3)


class _Graphs:
    """What has been traced and captured."""

    def __init__(self) -> None:
        self.traces: list[_Trace] = []
        self.padded: CapturedGradients | None = None

    def __deepcopy__(self, memo: dict) -> _Graphs:
        # They belong to the parameters of one module, of which averages of weights are copies.
        return _Graphs()


def _is_one_molecule(data: Batch) -> bool:
    """Whether all graphs, more than one, have the same atoms and edges."""
    graphs = data.num_graphs
    if graphs == 1:  # which may be the last one of many molecules
        return False
    atoms, odd_atoms = divmod(data.num_nodes, graphs)
    edges, odd_edges = divmod(data.num_edges, graphs)
    if odd_atoms or odd_edges or bool((data.ptr.diff() != atoms).any()):
        return False
    source, target = data.edge_index[0] % atoms, data.edge_index[1] % atoms
    rows = data.z.view(graphs, atoms), source.view(graphs, edges), target.view(graphs, edges)
    return all(bool((row == row[:1]).all()) for row in rows)


class _Trace:
    """The loss of batches that are like the first, and its gradients."""

    def __init__(self, module: TracedE2FormerModule, data: Batch, cuda_graph: bool) -> None:
        self.given = {name: data.get(name) for name in GIVEN}
        self.names = ("pos", *module.wanted)
        size = (data.num_nodes, data.num_nodes)
        edges = EdgeIndex(data.edge_index, sparse_size=size).sort_by("col").values
        wanted, ptr = module.wanted, data.ptr

        def loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
            out = model(
                data.z,
                inputs["pos"],
                data.batch,
                edge_index=edges,
                charge=data.get("charge"),
                spin=data.get("spin"),
                batch_size=data.num_graphs,
            )
            labels = Data(ptr=ptr, **{name: inputs[name] for name in wanted})
            sums = loss_sums(errors(out, labels), wanted)
            parts = [inputs[f"weight of {key}"] * s / count for key, (s, count) in sums.items()]
            return torch.stack(parts).sum()

        module.model(data)  # refuses what later calls take for granted
        inputs = self._inputs(data, module.loss_weights())
        loss(module.model, inputs)
        self.run: Callable[[Mapping[str, Tensor]], Tensor] = trace_gradients(
            module.model, loss, inputs, compile=module.compile_graph, cuda_graph=cuda_graph
        )

    def fits(self, data: Batch) -> bool:
        pairs = [(value, data.get(name)) for name, value in self.given.items()]
        if any((mine is None) != (theirs is None) for mine, theirs in pairs):
            return False
        return all(torch.equal(mine, theirs) for mine, theirs in pairs if mine is not None)

    def __call__(self, data: Batch, weights: Mapping[str, float]) -> Tensor:
        return self.run(self._inputs(data, weights))

    def _inputs(self, data: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        inputs = {}
        for name in self.names:
            if data.get(name) is None:
                raise ValueError(f"`{name}_weight` is not zero, but the batch has no `{name}`")
            inputs[name] = data[name]
        for name, weight in weights.items():
            inputs[f"weight of {name}"] = data.pos.new_tensor(weight, dtype=torch.float64)
        return inputs
