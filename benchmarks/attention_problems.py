"""What is measured: an operation or a layer with its inputs, and those who compute it.

A problem is what all contenders solve. Each contender is a call without arguments and the tensors
by which its output is differentiated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from attention_baselines import EdgeTensorAttention, edge_operation
from attention_systems import ELEMENTS, NUM_RADIAL, Graph, Setting, make_atoms, part_of
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from e2former_pyg import E2FormerAttention
from e2former_pyg.functional import equivariant_attention, equivariant_convolution
from e2former_pyg.radial import RadialSplines

# Which atoms each input of an operation belongs to; the others belong to no atom.
ATOMS = {"q": ("target",), "k": ("source",), "v": ("source",), "pos": ("source", "target")}


class Contender(NamedTuple):
    """Who computes the output of a problem."""

    call: Callable[[], Tensor]
    leaves: dict[str, Tensor]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


@dataclass(frozen=True, eq=False)
class Operation:
    """The attention, or without ``q`` among its inputs the convolution."""

    setting: Setting
    graph: Graph
    leaves: dict[str, Any]

    @classmethod
    def make(cls, kind: str, setting: Setting, num_atoms: int, device: str) -> Operation:
        pos, graph = make_atoms(num_atoms, setting.cutoff, device)
        generator = torch.Generator(device).manual_seed(1)
        attention = kind == "attention"
        heads, orders = setting.heads, len(setting.orders)
        functions = heads * (orders + 2 if attention else orders)
        shapes = {
            "v": (num_atoms, (setting.lmax + 1) ** 2, setting.channels),
            "coefficients": (len(ELEMENTS), len(ELEMENTS), NUM_RADIAL, functions),
        }
        if attention:
            shapes["q"] = shapes["k"] = (num_atoms, heads, setting.qk_channels)
            shapes["sink"] = (heads,)
        leaves = {"pos": _leaf(pos)}
        for name, shape in shapes.items():
            dtype = setting.dtype if name in ATOMS else torch.float32
            value = torch.randn(shape, generator=generator, device=device)
            leaves[name] = value.to(dtype).requires_grad_()
        return cls(setting, graph, leaves)

    def double(self) -> Operation:
        leaves = {name: _leaf(value.double()) for name, value in self.leaves.items()}
        return Operation(self.setting, self.graph.to(torch.float64), leaves)

    def part(self, targets: Tensor) -> Operation:
        """The same for some of the targets, in float64."""
        graph, *index = part_of(self.graph, targets)
        rows = dict(zip(("source", "target"), index, strict=True))
        leaves: dict[str, Any] = {}
        for name, value in self.leaves.items():
            parts = [value.detach()[rows[side]].double() for side in ATOMS.get(name, ())]
            leaves[name] = value.detach().double() if not parts else parts[0]
            if len(parts) == 2:
                leaves[name] = tuple(parts)
        return Operation(self.setting, graph.to(torch.float64), leaves)

    def ours(self, backend: str) -> Contender:
        return Contender(partial(self._call, backend), self.leaves)

    def baseline(self, name: str) -> Contender:
        if name != "edge-tensors":
            raise ValueError(f"An operation has no baseline {name!r}")
        return Contender(
            partial(edge_operation, self.graph, self.setting, self.leaves), self.leaves
        )

    def _call(self, backend: str) -> Tensor:
        leaves, graph = self.leaves, self.graph
        radial = RadialSplines(
            leaves["coefficients"], graph.target_type, graph.source_type, self.setting.cutoff
        )
        edges = (leaves["v"], leaves["pos"], graph.neighborhood, radial)
        options: dict[str, Any] = {
            "orders": self.setting.orders,
            "edge_shift": graph.edge_shift,
            "backend": backend,
        }
        if "q" not in leaves:
            return equivariant_convolution(*edges, **options)
        return equivariant_attention(
            leaves["q"], leaves["k"], *edges, sink=leaves["sink"], **options
        )

    def useful_operations(self) -> int:
        """Floating-point operations of a forward pass of the direct form, the least that either
        algorithm needs: moments edge by edge, coupled once per node by the nonzero coefficients.
        """
        paths, heads = self.setting.coupling, self.setting.heads
        functions = self.leaves["coefficients"].size(-1)
        qk = 2 * heads * self.setting.qk_channels if "q" in self.leaves else 0
        moments = 2 * self.setting.channels * paths.num_moments * paths.num_inputs
        coupled = 2 * self.setting.channels * int(paths.dense().count_nonzero())
        per_edge = qk + 6 * functions + moments  # 6: a cubic polynomial
        return self.graph.num_edges * per_edge + self.leaves["pos"].size(0) * coupled


@dataclass(frozen=True, eq=False)
class Layer:
    """The attention layer with its projections."""

    setting: Setting
    graph: Graph
    module: E2FormerAttention
    x: Any
    pos: Any

    @classmethod
    def make(cls, setting: Setting, num_atoms: int, device: str) -> Layer:
        pos, graph = make_atoms(num_atoms, setting.cutoff, device)
        torch.manual_seed(2)
        module = _layer(E2FormerAttention, setting).to(device, setting.dtype)
        generator = torch.Generator(device).manual_seed(1)
        shape = (num_atoms, (setting.lmax + 1) ** 2, setting.channels)
        x = torch.randn(shape, generator=generator, device=device, dtype=setting.dtype)
        return cls(setting, graph, module, x.requires_grad_(), _leaf(pos))

    def double(self) -> Layer:
        module = copy.deepcopy(self.module).double()
        inputs = (_leaf(value.double()) for value in (self.x, self.pos))
        return Layer(self.setting, self.graph.to(torch.float64), module, *inputs)

    def part(self, targets: Tensor) -> Layer:
        """The same for some of the targets, in float64."""
        graph, *index = part_of(self.graph, targets)
        module = copy.deepcopy(self.module).double()
        inputs = (
            tuple(value.detach()[rows].double() for rows in index) for value in (self.x, self.pos)
        )
        return Layer(self.setting, graph.to(torch.float64), module, *inputs)

    def ours(self, backend: str) -> Contender:
        self.module.backend = backend
        return self._contender(self.module)

    def baseline(self, name: str) -> Contender:
        setting = self.setting
        if name == "edge-tensors":
            module = _layer(EdgeTensorAttention, setting).to(self.x.device, self.x.dtype)
            module.load_state_dict(self.module.state_dict())
            return self._contender(module)
        if name != "TransformerConv":
            raise ValueError(f"A layer has no baseline {name!r}")
        width = setting.channels
        conv = TransformerConv(width, width // setting.heads, setting.heads).to(self.x.device)
        x = _leaf(self.x[:, 0])
        edge_index = self.graph.edge_index.as_tensor()
        return Contender(lambda: conv(x, edge_index), {"x": x, **parameters_of(conv)})

    def _contender(self, module: nn.Module) -> Contender:
        call = partial(
            module.__call__,
            self.x,
            self.pos,
            self.graph.edge_index,
            self.graph.z,
            self.graph.edge_shift,
        )
        return Contender(call, {"x": self.x, "pos": self.pos, **parameters_of(module)})

    def useful_operations(self) -> None:
        """Not counted: most of the time goes to the projections."""


Problem = Operation | Layer


def make_problem(kind: str, setting: Setting, num_atoms: int, device: str) -> Problem:
    if kind == "layer":
        return Layer.make(setting, num_atoms, device)
    return Operation.make(kind, setting, num_atoms, device)


def _layer(cls: type[E2FormerAttention], setting: Setting) -> E2FormerAttention:
    return cls(
        setting.channels,
        setting.channels,
        setting.lmax,
        heads=setting.heads,
        qk_channels=setting.qk_channels,
        order=setting.orders,
        cutoff=setting.cutoff,
        num_radial=NUM_RADIAL,
        elements=ELEMENTS,
    )


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {f"parameters.{name}": value for name, value in module.named_parameters()}
