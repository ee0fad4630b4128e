"""Energy and forces by whole models of other libraries, beside our potential.

All models get the same edges, so that no time of a neighbour list is counted, except in the cases
of our potential that say so. Weights are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from attention_measure import MIB, Meter
from attention_passes import Results, relative_error
from attention_systems import DENSITY, ELEMENTS, Graph, Setting, make_atoms
from peers_cases import Case
from peers_contest import Contest, require_cuequivariance
from torch import Tensor, nn

from e2former_pyg import E2FormerPotential

NEIGHBORS = 50.0
LAYERS = 4
NEQUIP_SHARE = 2
"""NequIP has 64 channels where the others have 128, as its larger published models do."""
COMPILE = "compile_for_inference"
# A compiled model must agree with the plain one.
BAR = 1e-4
# The plain potential is run beside the compiled one up to this size.
LARGEST_CHECKED = 10_240


class System:
    """The atoms of a case."""

    def __init__(self, case: Case, meter: Meter) -> None:
        self.meter, self.device = meter, meter.device
        self.cutoff = Setting().cutoff
        self.pos, self.graph = make_atoms(case.atoms, self.cutoff, str(meter.device))
        length = (case.atoms / DENSITY) ** (1 / 3)
        self.cell = length * torch.eye(3, dtype=torch.float32, device=meter.device)
        self.batch = torch.zeros(case.atoms, dtype=torch.long, device=meter.device)

    @property
    def types(self) -> Tensor:
        return self.graph.source_type

    @property
    def edge_index(self) -> Tensor:
        return self.graph.edge_index.as_tensor()

    def vectors(self, pos: Tensor) -> Tensor:
        """From the target to the source of each edge."""
        source, target = self.edge_index
        return pos.index_select(0, source) - pos.index_select(0, target) + self.graph.edge_shift


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _frozen(model: nn.Module, device: torch.device) -> nn.Module:
    """Ready for forces without derivatives by weights."""
    return model.to(device).eval().requires_grad_(False)


def make_potential(case: Case, system: System) -> E2FormerPotential:
    torch.manual_seed(2)
    model = E2FormerPotential(
        hidden_channels=case.channels,
        num_layers=LAYERS,
        lmax=2,
        cutoff=system.cutoff,
        avg_num_neighbors=NEIGHBORS,
        elements=ELEMENTS,
    )
    return model.to(system.device).eval()


def fast_potential(model: E2FormerPotential) -> Callable[..., Any]:
    """The fastest way to run the potential that this version of the package has."""
    if not hasattr(model, COMPILE):
        return model
    return getattr(model, COMPILE)() or model  # made in place if nothing is returned


def _energy_and_forces(model: Callable[..., Any], inputs: dict[str, Any]) -> Results:
    with torch.no_grad():
        out = model(**inputs)
    return {"energy": out.energy, "forces": out.forces}


def _our_inputs(system: System, neighbours: bool) -> dict[str, Any]:
    numbers = torch.tensor(ELEMENTS, device=system.device)
    inputs = {"z": numbers[system.types], "pos": system.pos, "cell": system.cell.unsqueeze(0)}
    if not neighbours:
        graph: Graph = system.graph
        inputs |= {"edge_index": graph.edge_index, "edge_shift": graph.edge_shift}
    return inputs


def kept_mib(meter: Meter, run: Callable[[], Results]) -> float:
    """What the first calls leave behind: a CUDA graph holds on to all that an evaluation needs,
    which is no peak of a later call.
    """
    if not meter.is_cuda:
        return 0.0
    meter.release()
    before = torch.cuda.memory_reserved(meter.device)
    for _ in range(3):
        run()
    meter.release()
    return (torch.cuda.memory_reserved(meter.device) - before) / MIB


def _contest(
    case: Case, system: System, peer: Callable[[], Results] | None, about: dict[str, Any]
) -> Contest:
    model = make_potential(case, system)
    inputs = _our_inputs(system, neighbours=case.which.startswith("neighbours"))
    is_fast = hasattr(model, COMPILE)
    plain: Results = {}
    if is_fast and case.atoms <= LARGEST_CHECKED:
        plain = _energy_and_forces(model, _our_inputs(system, neighbours=False))
    run = partial(_energy_and_forces, fast_potential(model), inputs)
    kept = kept_mib(system.meter, run) if is_fast else 0.0
    found = run() if plain else {}
    what = f"E2FormerPotential, {LAYERS} layers, {case.channels} channels, lmax 2, "
    ours = {
        "ours_what": what + (COMPILE if is_fast else "as it is"),
        "ours_parameters": _size(model),
    }
    return Contest(
        run,
        peer,
        system.graph.num_edges,
        {**about, **ours},
        {f"ours.{name}": relative_error(found[name], plain[name]) for name in plain},
        BAR,
        kept,
    )


def potential_contest(case: Case, meter: Meter) -> Contest:
    return _contest(case, System(case, meter), None, {})


@cache
def _mace(channels: int, cutoff: float, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """MACE with two layers, scalars and vectors; with cuEquivariance on a GPU. Kept for the next
    size, since it takes long to build.
    """
    import numpy
    from e3nn import o3
    from mace.modules import RealAgnosticResidualInteractionBlock, ScaleShiftMACE
    from mace.modules.wrapper_ops import CuEquivarianceConfig

    accelerated = None
    if device.type == "cuda":
        require_cuequivariance()
        accelerated = CuEquivarianceConfig(
            enabled=True, layout="ir_mul", group="O3_e3nn", optimize_all=True, conv_fusion=True
        )
    torch.manual_seed(2)
    model = ScaleShiftMACE(
        r_max=cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=RealAgnosticResidualInteractionBlock,
        interaction_cls_first=RealAgnosticResidualInteractionBlock,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps(f"{channels}x0e + {channels}x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=numpy.zeros(len(ELEMENTS)),
        avg_num_neighbors=NEIGHBORS,
        atomic_numbers=list(ELEMENTS),
        correlation=3,
        gate=nn.functional.silu,
        cueq_config=accelerated,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    what = f"MACE, 2 layers, {channels}x0e + {channels}x1o, harmonics to 2, correlation 3, "
    what += "cuEquivariance" if accelerated else "e3nn"
    about = {"peer_what": what, "peer_parameters": _size(model)}
    return _frozen(model, device), about


def mace_contest(case: Case, meter: Meter) -> Contest:
    system = System(case, meter)
    model, about = _mace(case.channels, system.cutoff, meter.device)
    inputs = {
        "positions": system.pos.clone(),
        "node_attrs": nn.functional.one_hot(system.types, len(ELEMENTS)).float(),
        "edge_index": system.edge_index,
        "shifts": -system.graph.edge_shift,
        "unit_shifts": torch.zeros_like(system.graph.edge_shift),
        "cell": system.cell,
        "batch": system.batch,
        "ptr": torch.tensor([0, case.atoms], device=system.device),
    }

    def run() -> Results:
        out = model(dict(inputs))
        return {"energy": out["energy"].detach(), "forces": out["forces"].detach()}

    return _contest(case, system, run, about)


@contextmanager
def kept_settings() -> Iterator[None]:
    """Puts back what NequIP changes for the whole process, and with it for other libraries."""
    import e3nn
    from torch._dynamo import config

    names = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")
    dtype, defaults = torch.get_default_dtype(), e3nn.get_optimization_defaults()
    fusion = torch.jit.set_fusion_strategy([("DYNAMIC", 1)])  # it can only be read so
    torch.jit.set_fusion_strategy(fusion)
    try:
        with config.patch({name: getattr(config, name) for name in names}):
            yield
    finally:
        torch.set_default_dtype(dtype)
        e3nn.set_optimization_defaults(**defaults)
        torch.jit.set_fusion_strategy(fusion)


@cache
def _nequip(channels: int, cutoff: float, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """NequIP with four layers; with cuEquivariance on a GPU."""
    from nequip.model import NequIPGNNModel
    from nequip.model.modify_utils import modify
    from nequip.utils.global_state import set_global_state

    with kept_settings():
        set_global_state(allow_tf32=False)
        model = NequIPGNNModel(
            seed=2,
            model_dtype="float32",
            r_max=cutoff,
            type_names=["H", "C", "N", "O"],
            num_layers=LAYERS,
            l_max=2,
            parity=False,
            num_features=channels,
            avg_num_neighbors=NEIGHBORS,
        )
        if device.type == "cuda":
            require_cuequivariance()
            model = modify(model, [{"modifier": "enable_CuEquivariance"}])
    what = f"NequIP, {LAYERS} layers, {channels} channels, lmax 2, no parity, "
    what += "cuEquivariance" if device.type == "cuda" else "e3nn"
    about = {"peer_what": what, "peer_parameters": _size(model)}
    return _frozen(model, device), about


def nequip_contest(case: Case, meter: Meter) -> Contest:
    from nequip.data import AtomicDataDict as Key

    system = System(case, meter)
    model, about = _nequip(max(case.channels // NEQUIP_SHARE, 1), system.cutoff, meter.device)
    inputs = {
        Key.POSITIONS_KEY: system.pos.clone(),
        Key.EDGE_INDEX_KEY: system.edge_index.flip(0).contiguous(),  # targets first
        Key.EDGE_CELL_SHIFT_KEY: (system.graph.edge_shift / system.cell[0, 0]).round(),
        Key.CELL_KEY: system.cell.unsqueeze(0),
        Key.ATOM_TYPE_KEY: system.types,
    }

    def run() -> Results:
        out = model(dict(inputs))
        energy, forces = out[Key.TOTAL_ENERGY_KEY], out[Key.FORCE_KEY]
        return {"energy": energy.detach(), "forces": forces.detach()}

    return _contest(case, system, run, about)


def _by_autograd(system: System, energy_of: Callable[[Tensor], Tensor]) -> Results:
    pos = system.pos.detach().requires_grad_()
    energy = energy_of(pos)
    (gradient,) = torch.autograd.grad(energy.sum(), pos)
    return {"energy": energy.detach(), "forces": -gradient}


def schnet_contest(case: Case, meter: Meter) -> Contest:
    from torch_geometric.nn import SchNet

    system = System(case, meter)

    def interaction_graph(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return system.edge_index, system.vectors(pos).norm(dim=-1)

    torch.manual_seed(2)
    model = SchNet(
        hidden_channels=case.channels,
        num_filters=case.channels,
        num_interactions=LAYERS,
        cutoff=system.cutoff,
        interaction_graph=interaction_graph,
    )
    about = {
        "peer_what": f"SchNet, {LAYERS} layers, {case.channels} channels",
        "peer_parameters": _size(model),
    }
    model, numbers = _frozen(model, system.device), torch.tensor(ELEMENTS, device=system.device)
    z = numbers[system.types]
    energy = partial(model, z, batch=system.batch)
    return _contest(case, system, partial(_by_autograd, system, energy), about)


class GivenEdges(nn.Module):
    """In the place of ViSNet's own search: the edges of the benchmark, and the loops it expects."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system
        atoms = torch.arange(system.pos.size(0), device=system.device)
        self.edge_index = torch.cat([system.edge_index, atoms.expand(2, -1)], dim=1)

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors = self.system.vectors(pos)
        lengths = torch.cat([vectors.norm(dim=-1), pos.new_zeros(pos.size(0))])
        return self.edge_index, lengths, torch.cat([vectors, torch.zeros_like(pos)])


def visnet_contest(case: Case, meter: Meter) -> Contest:
    from torch_geometric.nn.models import ViSNet

    system = System(case, meter)
    torch.manual_seed(2)
    model = ViSNet(lmax=2, num_layers=LAYERS, hidden_channels=case.channels, cutoff=system.cutoff)
    about = {
        "peer_what": f"ViSNet, {LAYERS} layers, {case.channels} channels, lmax 2",
        "peer_parameters": _size(model),
    }
    model.representation_model.distance = GivenEdges(system)
    model, numbers = _frozen(model, system.device), torch.tensor(ELEMENTS, device=system.device)
    z = numbers[system.types]

    def energy(pos: Tensor) -> Tensor:
        return model(z, pos, system.batch)[0]

    return _contest(case, system, partial(_by_autograd, system, energy), about)


MODELS: dict[str, Callable[[Case, Meter], Contest]] = {
    "potential": potential_contest,
    "mace": mace_contest,
    "nequip": nequip_contest,
    "schnet": schnet_contest,
    "visnet": visnet_contest,
}
