"""The convolution in e3nn, cuEquivariance and OpenEquivariance, beside ours.

All of them sum the same products of features and harmonics over the same edges. The others read a
weight for each edge, path and channel, which their caller makes; ours has one for each edge, order
and group of channels, and makes it itself, with the harmonics, from positions. With weights that
are ours, repeated, all results are equal, which is what is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from attention_baselines import edge_functions
from attention_measure import Meter
from attention_passes import relative_error
from attention_problems import Contender, Operation
from attention_systems import Setting
from peers_cases import Case
from peers_contest import Contest, require_cuequivariance, run_of
from torch import Tensor

from e2former_pyg.functional import Coupling
from e2former_pyg.functional.paths import Path
from e2former_pyg.radial import RadialSplines

ACCURACY_ATOMS = 1024
BAR = 1e-5  # float32 against float64, outputs and first derivatives


@dataclass(frozen=True)
class Inputs:
    """What the others read: features ``[N, 9, C]``, harmonics ``[E, M]``, weights ``[E, paths,
    C]``, with edges in the order of target and source.
    """

    paths: list[Path]
    leaves: dict[str, Tensor]
    source: Tensor
    target: Tensor
    transposed: Tensor
    """The edges in the order of source and target."""
    orders: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.leaves["x"].size(-1)

    @property
    def atoms(self) -> int:
        return self.leaves["x"].size(0)

    @property
    def lmax(self) -> int:
        return max(path.degree_in for path in self.paths)

    def irreps(self, degrees: list[int], multiplicity: int) -> str:
        """Even parity throughout, with which every path is allowed."""
        return " + ".join(f"{multiplicity}x{degree}e" for degree in degrees)

    @property
    def instructions(self) -> list[tuple[int, int, int, str, bool]]:
        return [
            (path.degree_in, self.orders.index(path.order), slot, "uvu", True)
            for slot, path in enumerate(self.paths)
        ]

    @property
    def all_irreps(self) -> tuple[str, str, str]:
        """Of features, harmonics and outputs."""
        return (
            self.irreps(list(range(self.lmax + 1)), self.channels),
            self.irreps(list(self.orders), 1),
            self.irreps([path.degree_out for path in self.paths], self.channels),
        )


def sorted_paths(coupling: Coupling) -> list[Path]:
    """In the order in which the others store their outputs."""
    return sorted(coupling.paths, key=lambda path: (path.degree_out, path.degree_in, path.order))


def make_inputs(problem: Operation, dtype: torch.dtype) -> Inputs:
    setting, graph, leaves = problem.setting, problem.graph, problem.leaves
    with torch.no_grad():
        radial = RadialSplines(
            leaves["coefficients"], graph.target_type, graph.source_type, setting.cutoff
        )
        edges = graph.edge_index.as_tensor()
        pos = leaves["pos"]
        geometry, functions = edge_functions(
            edges, graph.edge_shift, (pos, pos), radial, max(setting.orders)
        )
        source, target = edges
        atoms = pos.size(0)
        order = (target * atoms + source).argsort()
        source, target = source[order], target[order]
        groups = (functions * geometry.envelope.unsqueeze(-1))[order]
        groups = groups.unflatten(-1, (len(setting.orders), -1))
        channels = groups.repeat_interleave(setting.channels // groups.size(-1), dim=-1)
        paths = sorted_paths(setting.coupling)
        weights = channels[:, [setting.orders.index(path.order) for path in paths]]
        harmonics = geometry.harmonics[order][:, setting.coupling.harmonic_rows]
    tensors = {"x": leaves["v"].detach(), "harmonics": harmonics, "weights": weights}
    # Kernels of other libraries do not look at strides, which indexing can leave transposed.
    plain = {name: value.to(dtype).contiguous().clone() for name, value in tensors.items()}
    return Inputs(
        paths,
        {name: value.requires_grad_() for name, value in plain.items()},
        source,
        target,
        (source * atoms + target).argsort(),
        setting.orders,
    )


def path_rows(coupling: Coupling) -> list[int]:
    return [row for path in sorted_paths(coupling) for row in coupling.row_of(path)]


def _mul_ir(x: Tensor) -> Tensor:
    """``[N, (lmax + 1)^2, C]`` with the channels of each degree first."""
    degrees = range(round(x.size(1) ** 0.5))
    parts = [x[:, n * n : (n + 1) ** 2].transpose(1, 2).flatten(1) for n in degrees]
    return torch.cat(parts, dim=1)


def _rows(inputs: Inputs, out: Tensor) -> Tensor:
    """``[N, rows, C]`` from outputs whose channels come first."""
    sizes = [2 * path.degree_out + 1 for path in inputs.paths]
    parts = out.split([inputs.channels * size for size in sizes], dim=1)
    pairs = zip(parts, sizes, strict=True)
    return torch.cat([part.view(-1, inputs.channels, n).transpose(1, 2) for part, n in pairs], 1)


def _flat_leaves(inputs: Inputs, channels_first: bool) -> dict[str, Tensor]:
    """Features and weights as a library stores them."""
    x, weights = inputs.leaves["x"].detach(), inputs.leaves["weights"].detach()
    x = _mul_ir(x) if channels_first else x.flatten(1)
    return {
        "x": x.requires_grad_(),
        "harmonics": inputs.leaves["harmonics"],
        "weights": weights.flatten(1).requires_grad_(),
    }


def e3nn_convolution(inputs: Inputs) -> Contender:
    from e3nn import o3

    leaves = _flat_leaves(inputs, channels_first=True)
    product = o3.TensorProduct(
        *inputs.all_irreps, inputs.instructions, shared_weights=False, internal_weights=False
    ).to(leaves["x"].device, leaves["x"].dtype)
    size = product.irreps_out.dim

    def call() -> Tensor:
        features = leaves["x"].index_select(0, inputs.source)
        rows = product(features, leaves["harmonics"], leaves["weights"])
        return rows.new_zeros(inputs.atoms, size).index_add(0, inputs.target, rows)

    return Contender(call, leaves)


def cuequivariance_convolution(inputs: Inputs, method: str) -> Contender:
    import cuequivariance as cue
    import cuequivariance_torch as cuet
    from cuequivariance.group_theory.experimental.e3nn import O3_e3nn

    leaves = _flat_leaves(inputs, channels_first=False)
    features, harmonics, _ = inputs.all_irreps
    degrees = inputs.irreps(list(range(inputs.lmax + 1)), 1)
    irreps = [cue.Irreps(O3_e3nn, names) for names in (features, harmonics, degrees)]
    product = cue.descriptors.channelwise_tensor_product(*irreps)
    if leaves["x"].is_cuda:
        require_cuequivariance()
    function = cuet.SegmentedPolynomial(
        product.flatten_coefficient_modes().squeeze_modes().polynomial,
        method=method,
        math_dtype=leaves["x"].dtype,
    ).to(leaves["x"].device)
    if leaves["x"].is_cuda and "Naive" in type(function.m).__name__:
        raise RuntimeError(f"cuEquivariance has no kernel for method {method!r} here")
    like = leaves["x"].detach().new_empty(inputs.atoms, 1)

    def call() -> Tensor:
        operands = [leaves["weights"], leaves["x"], leaves["harmonics"]]
        return function(operands, {1: inputs.source}, {0: like}, {0: inputs.target})[0]

    return Contender(call, leaves)


def openequivariance_convolution(inputs: Inputs) -> Contender:
    import openequivariance as oeq

    leaves = _flat_leaves(inputs, channels_first=True)
    irreps = [oeq.Irreps(names) for names in inputs.all_irreps]
    problem = oeq.TPProblem(
        *irreps, inputs.instructions, shared_weights=False, internal_weights=False
    )
    convolution = oeq.TensorProductConv(problem, deterministic=True)
    weights = convolution.reorder_weights_from_e3nn(leaves["weights"].detach())
    leaves["weights"] = weights.requires_grad_()

    def call() -> Tensor:
        operands = (leaves["x"], leaves["harmonics"], leaves["weights"])
        return convolution(*operands, inputs.target, inputs.source, inputs.transposed)

    return Contender(call, leaves)


@dataclass(frozen=True)
class Library:
    """A way to make the convolution."""

    make: Callable[[Inputs], Contender]
    channels_first: bool
    note: str

    def contender(self, problem: Operation, dtype: torch.dtype) -> tuple[Inputs, Contender]:
        inputs = make_inputs(problem, dtype)
        return inputs, self.make(inputs)

    def rows(self, inputs: Inputs, out: Tensor) -> Tensor:
        """Outputs as ``[N, rows, C]``, path by path."""
        return (
            _rows(inputs, out) if self.channels_first else out.unflatten(1, (-1, inputs.channels))
        )

    def features(self, inputs: Inputs, gradient: Tensor) -> Tensor:
        """The derivative by the features as ``[N, (lmax + 1)^2, C]``."""
        if not self.channels_first:
            return gradient.unflatten(1, (-1, inputs.channels))
        sizes = [2 * degree + 1 for degree in range(inputs.lmax + 1)]
        parts = gradient.split([inputs.channels * size for size in sizes], dim=1)
        shaped = [part.unflatten(1, (inputs.channels, -1)).transpose(1, 2) for part in parts]
        return torch.cat(shaped, dim=1)


E3NN = Library(e3nn_convolution, True, "TensorProduct and index_add")


def _cuequivariance(method: str) -> Library:
    note = f"fused convolution, method {method}"
    return Library(lambda inputs: cuequivariance_convolution(inputs, method), False, note)


LIBRARIES: dict[str, tuple[Library, ...]] = {
    "e3nn": (E3NN,),
    # The faster one is reported.
    "cuequivariance": (_cuequivariance("uniform_1d"), _cuequivariance("fused_tp")),
    "openequivariance": (
        Library(openequivariance_convolution, True, "TensorProductConv, deterministic"),
    ),
}


def _canonical(library: Library, problem: Operation, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and derivative by the features for a cotangent that is the same for all."""
    inputs, contender = library.contender(problem, dtype)
    return _derived(
        contender,
        "x",
        lambda out: library.rows(inputs, out),
        lambda gradient: library.features(inputs, gradient),
    )


def _derived(
    contender: Contender,
    name: str,
    rows: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    out = rows(contender.call())
    generator = torch.Generator(out.device).manual_seed(5)
    cotangent = torch.randn(
        out.shape, generator=generator, device=out.device, dtype=torch.float32
    ).to(out.dtype)
    (gradient,) = torch.autograd.grad(out, contender.leaves[name], cotangent)
    return {"out": out.detach(), "features": features(gradient)}


@cache
def errors_of(library: Library, setting: Setting, atoms: int, device: str) -> dict[str, float]:
    """Of the library and of ours, against e3nn in float64."""
    problem = Operation.make("convolution", setting, atoms, device)
    reference = _canonical(E3NN, problem, torch.float64)
    theirs = _canonical(library, problem, torch.float32)
    order = torch.tensor(path_rows(setting.coupling), device=device)
    mine = _derived(problem.ours("auto"), "v", lambda out: out.index_select(1, order), lambda x: x)
    errors = {}
    for side, found in (("peer", theirs), ("ours", mine)):
        for name, value in reference.items():
            errors[f"{side}.{name}"] = relative_error(found[name], value)
    return errors


def convolution_contest(case: Case, meter: Meter) -> Contest:
    device = str(meter.device)
    setting = case.setting
    library = _fastest(case, setting, meter)
    usual = replace(setting, cutoff=Setting.cutoff)  # a function does not depend on the degree
    errors = errors_of(library, usual, min(case.atoms, ACCURACY_ATOMS), device)
    meter.release()
    problem = Operation.make("convolution", setting, case.atoms, device)
    inputs, contender = library.contender(problem, torch.float32)
    about: dict[str, Any] = {
        "peer_what": library.note,
        "ours_what": "equivariant_convolution, with harmonics and radial functions",
        "paths": len(inputs.paths),
        "peer_weights_mib": inputs.leaves["weights"].nbytes / 2**20,
    }
    return Contest(
        run_of(problem.ours("auto"), case.which),
        run_of(contender, case.which),
        problem.graph.num_edges,
        about,
        errors,
        BAR,
    )


def _fastest(case: Case, setting: Setting, meter: Meter) -> Library:
    """The way of a library that takes the least time; ways that fail do not count."""
    libraries = LIBRARIES[case.group]
    if len(libraries) == 1:
        return libraries[0]
    problem = Operation.make("convolution", setting, case.atoms, str(meter.device))
    times: dict[int, float] = {}
    failures: list[Exception] = []
    for n, library in enumerate(libraries):
        try:
            run = run_of(library.contender(problem, torch.float32)[1], case.which)
            times[n] = Meter(str(meter.device), repeats=5, seconds=0).times([run])[0].median
        except ImportError:
            raise
        except Exception as failure:
            failures.append(failure)
    if not times:
        raise failures[0]
    return libraries[min(times, key=times.__getitem__)]
