r"""Training on frames of one molecule with traced gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data

from ..models import E2FormerPotential
from ..tracing import trace_gradients
from .losses import errors, loss_sums
from .module import E2FormerModule

MAX_TRACES = 4
"""Kinds of batches that are traced."""

GIVEN = ("z", "batch", "edge_index")
"""What batches of one kind have in common."""


class TracedE2FormerModule(E2FormerModule):
    r"""An :class:`E2FormerModule` for frames of one molecule: loss and gradients of batches with
    the same atoms and edges run as one graph of operations, traced at the first of them by
    :meth:`~e2former_pyg.tracing.trace_gradients`, which takes seconds.

    The frames must bring edges that do not change, from
    :class:`~e2former_pyg.transforms.RadiusGraph` with a cutoff larger than the molecule: those
    beyond the cutoff of the model contribute nothing. Other batches are computed as usual. The
    model must be made with :obj:`elements` and without dropout, and be trained by one process in
    full precision. Of the losses :obj:`train/loss` alone is logged.

    Args:
        model (E2FormerPotential): The potential.
        compile (bool, optional): If set to :obj:`True`, compiles the graph, which takes minutes.
            (default: :obj:`False`)
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
        self._traces: list[_Trace] = []
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

    def training_step(self, data: Batch, batch_idx: int) -> Tensor:
        self._gradients = None
        trace = self._find(data)
        if trace is None:
            return super().training_step(data, batch_idx)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        kept = [p.grad for p in parameters]  # of batches that are added up
        loss = trace(data, self.loss_weights())
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
            gradient = gradient * factor
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _find(self, data: Batch) -> _Trace | None:
        if data.get("edge_index") is None or data.get("cell") is not None:
            reason = "have a cell" if "cell" in data else "have no edges"
            self._warn(f"batches {reason}")
            return None
        for trace in self._traces:
            if trace.fits(data):
                return trace
        if len(self._traces) == MAX_TRACES:
            self._warn(f"there are more than {MAX_TRACES} kinds of batches")
            return None
        self._traces.append(_Trace(self, data))
        return self._traces[-1]

    @staticmethod
    def _warn(reason: str) -> None:
        warnings.warn(f"{reason}, whose gradients are not traced", stacklevel=3)


class _Trace:
    """The loss of batches that are like the first, and its gradients."""

    def __init__(self, module: TracedE2FormerModule, data: Batch) -> None:
        self.given = {name: data[name] for name in GIVEN}
        self.names = ("pos", *module.wanted)
        size = (data.num_nodes, data.num_nodes)
        edges = EdgeIndex(data.edge_index, sparse_size=size).sort_by("col").values
        wanted, ptr = module.wanted, data.ptr

        def loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
            out = model(
                data.z, inputs["pos"], data.batch, edge_index=edges, batch_size=data.num_graphs
            )
            labels = Data(ptr=ptr, **{name: inputs[name] for name in wanted})
            sums = loss_sums(errors(out, labels), wanted)
            parts = [inputs[f"weight of {key}"] * s / count for key, (s, count) in sums.items()]
            return torch.stack(parts).sum()

        module.model(data)  # refuses what later calls take for granted
        inputs = self._inputs(data, module.loss_weights())
        loss(module.model, inputs)
        self.run: Callable[[Mapping[str, Tensor]], Tensor] = trace_gradients(
            module.model, loss, inputs, compile=module.compile_graph
        )

    def fits(self, data: Batch) -> bool:
        return all(torch.equal(data[name], value) for name, value in self.given.items())

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
